"""Jobs: long work for an operator that goes on after a crash. Rows change through `console/jobs.py` and
`console/imports.py` alone.
"""

from __future__ import annotations

from django.conf import settings
from django.db import models
from django.db.models import Q

from brokers import clock
from brokers.models import Broker


class Job(models.Model):
    """One order of an operator.

    RUNNING: a worker has it (`holder` until `lease_until`) or takes it, not before `retry_at`. STOPPED: waits for the
    operator, `reason` says why. DONE and CANCELLED never change again. An import brings the objects of `broker` that
    begin with `prefix`, and that are not ours, into `folder` of `owner`'s drive; `objects_there` and `bytes_there` are
    what there is to look at, counted once. An adoption looks through a broker for objects of ours that no row knows.
    """

    class Kind(models.TextChoices):
        IMPORT = "import", "import of files"
        ADOPTION = "adoption", "adoption of known objects"

    class State(models.TextChoices):
        RUNNING = "running", "running"
        STOPPED = "stopped", "stopped"
        DONE = "done", "done"
        CANCELLED = "cancelled", "cancelled"

    class Conflict(models.TextChoices):
        KEEP_BOTH = "keep_both", "keep both, under another name"
        SKIP = "skip", "skip"

    kind = models.CharField(max_length=20, choices=Kind.choices)
    state = models.CharField(max_length=20, choices=State.choices, default=State.RUNNING)
    reason = models.CharField(max_length=500, blank=True)
    broker = models.ForeignKey(Broker, null=True, on_delete=models.SET_NULL, related_name="+")
    broker_name = models.CharField(max_length=100)
    prefix = models.CharField(max_length=1000, blank=True, help_text="Only objects whose name begins so.")
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+"
    )
    folder = models.TextField(blank=True, help_text="Where in the drive, e.g. /imported/photos.")
    conflict = models.CharField(
        max_length=20,
        choices=Conflict.choices,
        default=Conflict.KEEP_BOTH,
        help_text="What becomes of an object for whose name there is a file already.",
    )
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+"
    )
    created_at = models.DateTimeField(default=clock.now)
    finished_at = models.DateTimeField(null=True, blank=True)
    holder = models.CharField(max_length=400, blank=True)
    lease_until = models.DateTimeField(null=True, blank=True)
    retry_at = models.DateTimeField(null=True, blank=True)
    objects_there = models.BigIntegerField(null=True, blank=True)
    bytes_there = models.BigIntegerField(null=True, blank=True)
    report = models.JSONField(default=dict, blank=True)

    class Meta:
        ordering = ["-pk"]
        indexes = [models.Index(fields=["state"], name="job_running", condition=Q(state="running"))]

    def __str__(self) -> str:
        return f"{self.kind} {self.pk} of {self.broker_name}"


class ImportedFile(models.Model):
    """What became of one object of an import: written in the transaction that makes the file visible, so that it is
    brought in once. `name` is the object's name as far as it can be shown, `digest` the SHA-256 of the name itself.
    FAILED ones are tried again."""

    class State(models.TextChoices):
        DONE = "done", "brought in"
        SKIPPED = "skipped", "skipped"
        REFUSED = "refused", "refused"
        FAILED = "failed", "failed"

    job = models.ForeignKey(Job, on_delete=models.CASCADE, related_name="files")
    digest = models.CharField(max_length=64)
    name = models.TextField()
    state = models.CharField(max_length=20, choices=State.choices)
    detail = models.CharField(max_length=300, blank=True)
    node = models.UUIDField(null=True, blank=True)
    path = models.TextField(blank=True)
    size = models.BigIntegerField(default=0)
    attempts = models.PositiveSmallIntegerField(default=1)
    at = models.DateTimeField(default=clock.now)

    class Meta:
        ordering = ["pk"]
        constraints = [models.UniqueConstraint(fields=["job", "digest"], name="imported_once")]
        indexes = [models.Index(fields=["job", "state"], name="imported_state")]

    def __str__(self) -> str:
        return f"{self.name} ({self.state})"

"""Bytes: contents, their sealed segments, and the replicas of each on brokers.

The comments here are the specification that `manage.py fsck` checks (replication/fsck.py). Rows change through
the service modules of this package alone.
"""

from __future__ import annotations

import uuid

from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import Q

from brokers import clock
from brokers.models import Broker


class Content(models.Model):
    """An immutable string of bytes.

    OPEN -> SEALED -> CONDEMNED, or OPEN -> CONDEMNED; never back. While OPEN an upload fills it and nobody sees
    it. A SEALED content has segments at positions 0..n-1 without gaps (n >= 1: an empty content has one empty
    segment), whose sizes add up to `size`, and `sha256` is the hash of its plain bytes. A CONDEMNED content is
    referenced by nothing outside this package; the collector removes it after the grace.
    """

    class State(models.TextChoices):
        OPEN = "open", "open"
        SEALED = "sealed", "sealed"
        CONDEMNED = "condemned", "condemned"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    state = models.CharField(max_length=20, choices=State.choices, default=State.OPEN)
    size = models.BigIntegerField(default=0)
    sha256 = models.CharField(max_length=64, blank=True)
    # Own number of copies; None follows the policy.
    copies = models.PositiveSmallIntegerField(null=True, blank=True)
    # The content key, wrapped by this version of the master key and bound to `id`.
    key_version = models.PositiveIntegerField()
    wrapped_key = models.BinaryField()
    created_at = models.DateTimeField(default=clock.now)
    sealed_at = models.DateTimeField(null=True, blank=True)
    condemned_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        indexes = [models.Index(fields=["state", "condemned_at"], name="content_state")]
        constraints = [models.CheckConstraint(condition=Q(size__gte=0), name="content_size_not_negative")]

    def __str__(self) -> str:
        return f"{self.id} ({self.state})"


class Segment(models.Model):
    """A slice of a content, sealed once and stored as one object of `sealed_size` bytes.

    `header` is the object's first bytes and `checksum` the SHA-256 of the whole object; both are filled when
    the segment is sealed, before its content is. `check_at` means "due for the reconciler from then on" (None:
    nothing is known to be due) and is its lease while it works; `blocked` says why the last attempt could not
    finish.
    """

    content = models.ForeignKey(Content, on_delete=models.PROTECT, related_name="segments")
    position = models.PositiveIntegerField()
    offset = models.BigIntegerField()
    size = models.PositiveIntegerField()
    sealed_size = models.PositiveIntegerField()
    checksum = models.CharField(max_length=64, blank=True)
    header = models.BinaryField(default=b"")
    check_at = models.DateTimeField(null=True, blank=True)
    attempts = models.PositiveSmallIntegerField(default=0)
    blocked = models.CharField(max_length=200, blank=True)

    class Meta:
        ordering = ["content", "position"]
        constraints = [models.UniqueConstraint(fields=["content", "position"], name="segment_position")]
        indexes = [
            models.Index(fields=["check_at"], name="segment_due", condition=Q(check_at__isnull=False)),
        ]

    def __str__(self) -> str:
        return f"{self.content_id}/{self.position}"


class Replica(models.Model):
    """One segment on one broker.

    PLANNED: the key is committed, the put may or may not have happened. STORED: a put of these bytes was
    verified. SUSPECT: a read failed in a way that speaks of this object. LOST: proven missing or damaged; kept
    until the copies stand again. DOOMED: to be deleted, then the row goes; its key never comes back.
    Any state may become DOOMED. At most one of PLANNED, STORED, SUSPECT per segment and broker.
    """

    class State(models.TextChoices):
        PLANNED = "planned", "planned"
        STORED = "stored", "stored"
        SUSPECT = "suspect", "suspect"
        LOST = "lost", "lost"
        DOOMED = "doomed", "doomed"

    LIVE = (State.PLANNED, State.STORED, State.SUSPECT)

    segment = models.ForeignKey(Segment, on_delete=models.PROTECT, related_name="replicas")
    broker = models.ForeignKey(Broker, on_delete=models.PROTECT, related_name="replicas")
    key = models.CharField(max_length=100, unique=True)
    locator = models.CharField(max_length=500, blank=True)
    state = models.CharField(max_length=20, choices=State.choices, default=State.PLANNED)
    reason = models.CharField(max_length=50, blank=True)
    created_at = models.DateTimeField(default=clock.now)
    stored_at = models.DateTimeField(null=True, blank=True)
    # When the bytes were last proven: verified at the put, or re-read and hashed.
    verified_at = models.DateTimeField(null=True, blank=True)
    # Not before: the next look at a SUSPECT, the next delete of a DOOMED replica.
    check_at = models.DateTimeField(null=True, blank=True)
    attempts = models.PositiveSmallIntegerField(default=0)
    # Where a rebalance wants this copy instead (replication/rebalance.py); null for nearly all.
    moves_to = models.ForeignKey(
        Broker, null=True, blank=True, on_delete=models.SET_NULL, related_name="+", db_index=False
    )

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["segment", "broker"],
                condition=Q(state__in=("planned", "stored", "suspect")),
                name="replica_one_live_per_broker",
            )
        ]
        indexes = [
            models.Index(fields=["broker", "state", "verified_at"], name="replica_scrub"),
            models.Index(
                fields=["state", "check_at"], name="replica_unsettled", condition=~Q(state="stored")
            ),
            models.Index(fields=["moves_to"], name="replica_moves", condition=Q(moves_to__isnull=False)),
        ]

    def __str__(self) -> str:
        return f"{self.key} ({self.state})"


class Policy(models.Model):
    """The operator's rules for bytes: one row, read at each use, so that a change takes effect at once."""

    copies = models.PositiveSmallIntegerField(
        default=2,
        validators=[MinValueValidator(1), MaxValueValidator(10)],
        help_text="Copies of every segment, on distinct domains.",
    )
    ack_copies = models.PositiveSmallIntegerField(
        default=2,
        validators=[MinValueValidator(1), MaxValueValidator(10)],
        help_text="Verified copies before an upload is acknowledged (at most the copies).",
    )
    allow_degraded = models.BooleanField(
        default=False,
        help_text="Acknowledge uploads with fewer copies while fewer domains are healthy.",
    )
    scrub_days = models.PositiveSmallIntegerField(
        default=14,
        validators=[MinValueValidator(1), MaxValueValidator(365)],
        help_text="Every stored byte is re-read and hashed within so many days.",
    )
    copies_changed_at = models.DateTimeField(default=clock.now, editable=False)
    # What the last full pass of the sweep saw, and when (replication/reconcile.py).
    swept_fingerprint = models.CharField(max_length=64, blank=True, editable=False)
    swept_at = models.DateTimeField(null=True, blank=True, editable=False)
    # Load is being moved in proportion to free space since then; the next moves are planned at `rebalance_at`.
    rebalancing_since = models.DateTimeField(null=True, blank=True, editable=False)
    rebalance_at = models.DateTimeField(null=True, blank=True, editable=False)

    class Meta:
        verbose_name_plural = "policy"
        constraints = [models.CheckConstraint(condition=Q(id=1), name="policy_single_row")]

    def __str__(self) -> str:
        return f"{self.copies} copies, acknowledged after {min(self.copies, self.ack_copies)}"


class Orphan(models.Model):
    """An object under our prefix on a broker that no row knows. Deleted only when seen again, long after."""

    broker = models.ForeignKey(Broker, on_delete=models.CASCADE, related_name="orphans")
    locator = models.CharField(max_length=500)
    size = models.BigIntegerField()
    first_seen = models.DateTimeField(default=clock.now)
    last_seen = models.DateTimeField(default=clock.now)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["broker", "locator"], name="orphan_once")]

    def __str__(self) -> str:
        return self.locator


class Epoch(models.Model):
    """How far this database has come: one row. `number` grows all the time, and each broker is told of it after it
    is committed here; so a broker that knows a higher number proves that this database is an older one, put back.
    Then `locked_at` is set, and nothing is deleted from any broker until an operator confirms (replication/epoch.py).
    """

    number = models.BigIntegerField(default=0)
    raised_at = models.DateTimeField(default=clock.now)
    # The highest number seen on a broker when it was locked.
    seen = models.BigIntegerField(default=0)
    locked_at = models.DateTimeField(null=True, blank=True)
    reason = models.CharField(max_length=300, blank=True)

    class Meta:
        constraints = [models.CheckConstraint(condition=Q(id=1), name="epoch_single_row")]

    def __str__(self) -> str:
        return f"{self.number}{', locked' if self.locked_at else ''}"


class Snapshot(models.Model):
    """A sealed copy of the metadata on brokers (replication/vault.py).

    WRITING: its objects may exist. STANDING: whole and verified on the brokers of its copies that have a
    `verified_at`. DOOMED: its objects are to be deleted, then the row goes. `master_keys` are the versions that
    somebody needs to open it and what its rows wrap.
    """

    class State(models.TextChoices):
        WRITING = "writing", "writing"
        STANDING = "standing", "standing"
        DOOMED = "doomed", "doomed"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    number = models.BigIntegerField(
        help_text="The epoch in which it was made: a later one has a higher number."
    )
    state = models.CharField(max_length=20, choices=State.choices, default=State.WRITING)
    created_at = models.DateTimeField(default=clock.now)
    finished_at = models.DateTimeField(null=True, blank=True)
    parts = models.PositiveIntegerField(default=0)
    size = models.BigIntegerField(default=0)
    rows = models.BigIntegerField(default=0)
    master_keys = models.JSONField(default=list)

    class Meta:
        ordering = ["-number", "-created_at"]

    def __str__(self) -> str:
        return f"{self.number} {self.id} ({self.state})"


class SnapshotCopy(models.Model):
    """A snapshot on one broker: committed before its first object is put, `verified_at` after its last."""

    snapshot = models.ForeignKey(Snapshot, on_delete=models.CASCADE, related_name="copies")
    broker = models.ForeignKey(Broker, on_delete=models.CASCADE, related_name="+")
    verified_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["snapshot", "broker"], name="snapshot_copy_once")]

    def __str__(self) -> str:
        return f"{self.snapshot_id} on {self.broker_id}"


class Event(models.Model):
    """Journal of what was done to bytes: copied, lost, doomed, collected. Written with the change it tells."""

    at = models.DateTimeField(default=clock.now, db_index=True)
    kind = models.CharField(max_length=50)
    content = models.UUIDField(null=True, blank=True, db_index=True)
    broker = models.ForeignKey(Broker, null=True, blank=True, on_delete=models.SET_NULL, related_name="+")
    detail = models.CharField(max_length=300, blank=True)

    class Meta:
        ordering = ["-at", "-id"]

    def __str__(self) -> str:
        return f"{self.at:%Y-%m-%d %H:%M:%S} {self.kind}"

"""Brokers: where sealed objects are stored, and how each is doing."""

from __future__ import annotations

import uuid
from datetime import datetime

from django.core.validators import MinValueValidator
from django.db import models

from brokers import clock


class Health(models.TextChoices):
    UNKNOWN = "unknown", "not polled yet"
    ONLINE = "online", "online"
    READ_ONLY = "read_only", "read-only"
    FULL = "full", "full"
    OFFLINE = "offline", "offline"


class Traffic(models.TextChoices):
    """Which bytes count towards a broker's monthly traffic."""

    DOWN = "down", "bytes read from the broker"
    UP = "up", "bytes sent to the broker"
    BOTH = "both", "bytes in both directions"


# Bytes that are kept free on every broker unless told otherwise.
RESERVE = 64 * 1024 * 1024
# A full broker takes new copies again when so much is free beyond the reserve.
FULL_MARGIN = 64 * 1024 * 1024


class Broker(models.Model):
    """One configured storage provider account or folder.

    `options` are the driver's plain options; its secrets are in `sealed_secrets`, AES-GCM bound to this row.
    `domain` is the failure domain: copies count only on distinct domains. `revision` grows with each change of
    options or secrets, so that open connections are replaced. `marker` is the id that the place itself carries
    in a marker object: a place without it is not this broker.
    """

    name = models.CharField(max_length=100, unique=True)
    driver = models.CharField(max_length=50)
    domain = models.CharField(
        max_length=100, help_text="Failure domain: two brokers that can fail together share one."
    )
    options = models.JSONField(default=dict, blank=True)
    sealed_secrets = models.BinaryField(null=True, editable=False)
    secrets_key_version = models.PositiveIntegerField(null=True, editable=False)
    revision = models.PositiveIntegerField(default=1, editable=False)
    weight = models.FloatField(
        default=1.0,
        validators=[MinValueValidator(0.0)],
        help_text="Share of new copies beside the free space; 0 takes no new copies.",
    )
    enabled = models.BooleanField(default=True)

    # What the operator allows. Rates and calls are shared out among the processes (brokers/layers/throttle.py).
    capacity_limit = models.BigIntegerField(
        null=True,
        blank=True,
        validators=[MinValueValidator(0)],
        help_text="Bytes that our copies may take here at most; empty for all that the provider gives.",
    )
    reserve = models.BigIntegerField(
        default=RESERVE,
        validators=[MinValueValidator(0)],
        help_text="Bytes that are kept free. Below it the broker is full and takes no new copies.",
    )
    max_concurrency = models.PositiveIntegerField(
        null=True,
        blank=True,
        validators=[MinValueValidator(1)],
        help_text="Calls at the same time; empty for what the driver can do.",
    )
    max_rate = models.BigIntegerField(
        null=True,
        blank=True,
        validators=[MinValueValidator(1)],
        help_text="Bytes per second, up and down together; empty for no limit.",
    )
    max_requests = models.FloatField(
        null=True,
        blank=True,
        validators=[MinValueValidator(0.001)],
        help_text="Requests per second; empty for no limit.",
    )
    monthly_traffic = models.BigIntegerField(
        null=True,
        blank=True,
        validators=[MinValueValidator(0)],
        help_text="Bytes in a calendar month (UTC); empty for no limit. When they are used up the broker is read "
        "last and takes no background work.",
    )
    monthly_counts = models.CharField(
        max_length=10,
        choices=Traffic.choices,
        default=Traffic.DOWN,
        help_text="Which bytes count towards the monthly traffic.",
    )
    monthly_hard = models.BooleanField(
        default=False,
        help_text="Refuse all transfers when the monthly traffic is used up, those of users too.",
    )

    # Draining since then: it takes no new copies, is read from, and every copy on it is made elsewhere and then
    # deleted. What there was to move when it began tells the progress.
    draining_since = models.DateTimeField(null=True, blank=True, editable=False)
    draining_objects = models.BigIntegerField(default=0, editable=False)
    draining_bytes = models.BigIntegerField(default=0, editable=False)
    marker = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    marker_locator = models.CharField(max_length=500, blank=True, editable=False)

    health = models.CharField(max_length=20, choices=Health.choices, default=Health.UNKNOWN, editable=False)
    health_reason = models.CharField(max_length=50, blank=True, editable=False)
    health_detail = models.CharField(max_length=500, blank=True, editable=False)
    health_since = models.DateTimeField(default=clock.now, editable=False)
    successes = models.PositiveIntegerField(default=0, editable=False)
    failures = models.PositiveIntegerField(default=0, editable=False)
    check_at = models.DateTimeField(null=True, blank=True, editable=False, db_index=True)
    checked_at = models.DateTimeField(null=True, blank=True, editable=False)
    # Since when the place answers but holds nothing of ours; null when it was not so at the last poll.
    blank_since = models.DateTimeField(null=True, blank=True, editable=False)
    # When a blank place was last taken over again: what was stored before that moment is lost.
    blank_adopted_at = models.DateTimeField(null=True, blank=True, editable=False)
    latency_ms = models.FloatField(null=True, blank=True, editable=False)

    # So many of its objects were missing or refused at once that it counts as an outage: what, since when, when a
    # sample is looked at again. Confirmed: an operator said that what is missing is lost.
    incident = models.CharField(max_length=50, blank=True, editable=False)
    incident_since = models.DateTimeField(null=True, blank=True, editable=False)
    incident_look_at = models.DateTimeField(null=True, blank=True, editable=False)
    incident_confirmed_at = models.DateTimeField(null=True, blank=True, editable=False)

    # Slow, or failing often, while still usable (brokers/degraded.py). `turning_since`: since when the history says
    # the opposite of what stands here.
    degraded_since = models.DateTimeField(null=True, blank=True, editable=False)
    degraded_reason = models.CharField(max_length=50, blank=True, editable=False)
    degraded_detail = models.CharField(max_length=200, blank=True, editable=False)
    turning_since = models.DateTimeField(null=True, blank=True, editable=False)

    # The month's traffic is used up until then.
    traffic_over_until = models.DateTimeField(null=True, blank=True, editable=False)
    # The state that the alerts told last (brokers/alerts.py).
    told_state = models.CharField(max_length=20, blank=True, editable=False)

    total = models.BigIntegerField(null=True, blank=True, editable=False)
    used = models.BigIntegerField(null=True, blank=True, editable=False)
    available = models.BigIntegerField(null=True, blank=True, editable=False)
    measured_at = models.DateTimeField(null=True, blank=True, editable=False)
    # Bytes that our copies take here, as last counted from their rows (replication/capacity.py).
    held = models.BigIntegerField(null=True, blank=True, editable=False)
    held_at = models.DateTimeField(null=True, blank=True, editable=False)
    created_at = models.DateTimeField(default=clock.now, editable=False)

    class Meta:
        ordering = ["name"]
        constraints = [
            models.CheckConstraint(condition=models.Q(weight__gte=0), name="broker_weight_not_negative"),
            models.CheckConstraint(condition=~models.Q(domain=""), name="broker_domain_not_empty"),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def readable(self) -> bool:
        """Worth a read now. Others are asked only when no readable broker has the bytes."""
        return self.enabled and self.health != Health.OFFLINE

    @property
    def writable(self) -> bool:
        """Takes new copies now."""
        return self.enabled and self.weight > 0 and self.health == Health.ONLINE and not self.draining

    @property
    def degraded(self) -> bool:
        """Usable, but slow or failing often: read last, and used for new copies only when no other is left."""
        return self.degraded_since is not None

    @property
    def over_traffic(self) -> bool:
        """This month's traffic is used up: read last, no background work."""
        return self.traffic_over_until is not None and clock.now() < self.traffic_over_until

    @property
    def reluctant(self) -> bool:
        """Used after the others."""
        return self.degraded or self.over_traffic

    @property
    def unused(self) -> int | None:
        """Bytes that are free, the reserve included: what the provider tells or what is left of the operator's cap,
        whichever is less. None when neither is known."""
        left = [] if self.available is None else [self.available]
        if self.capacity_limit is not None:
            # Before the first count what the provider tells is the most that can be ours.
            taken = self.used or 0 if self.held is None else self.held
            left.append(max(0, self.capacity_limit - taken))
        return min(left, default=None)

    @property
    def room(self) -> int | None:
        """Bytes that new copies may take; None when it is not known."""
        unused = self.unused
        return None if unused is None else max(0, unused - self.reserve)

    @property
    def draining(self) -> bool:
        """Its copies are on their way to other brokers."""
        return self.draining_since is not None

    @property
    def offline_since(self) -> datetime | None:
        """Since when the broker's bytes cannot be read; None while they can."""
        return self.health_since if self.health == Health.OFFLINE else None


class BrokerEvent(models.Model):
    """Journal of what happened to a broker: health changes, adoption of a blank place, changes by hand."""

    broker = models.ForeignKey(Broker, on_delete=models.CASCADE, related_name="events")
    at = models.DateTimeField(default=clock.now, db_index=True)
    kind = models.CharField(max_length=50)
    detail = models.CharField(max_length=500, blank=True)

    class Meta:
        ordering = ["-at", "-id"]

    def __str__(self) -> str:
        return f"{self.at:%Y-%m-%d %H:%M:%S} {self.kind}"


class BrokerSample(models.Model):
    """What the calls of one broker came to in one span of time: `span` seconds from `start`.

    Every call is in exactly one row: rows of 5 minutes become rows of an hour, those become rows of a day
    (brokers/history.py). `errors` counts by the error's code; `failures` those that speak against the broker.
    `latency` holds, by operation, a histogram: `{index: calls}`. `revision` grows with each change, so that many
    processes can merge what they counted."""

    broker = models.ForeignKey(Broker, on_delete=models.CASCADE, related_name="samples")
    span = models.PositiveIntegerField()
    start = models.DateTimeField()
    calls = models.BigIntegerField(default=0)
    failures = models.BigIntegerField(default=0)
    bytes_up = models.BigIntegerField(default=0)
    bytes_down = models.BigIntegerField(default=0)
    errors = models.JSONField(default=dict)
    latency = models.JSONField(default=dict)
    used = models.BigIntegerField(null=True)
    available = models.BigIntegerField(null=True)
    revision = models.PositiveIntegerField(default=0)

    class Meta:
        ordering = ["broker", "start"]
        constraints = [models.UniqueConstraint(fields=["broker", "span", "start"], name="broker_sample_once")]

    def __str__(self) -> str:
        return f"{self.broker_id} {self.start:%Y-%m-%d %H:%M} +{self.span} s"


class BrokerAlert(models.Model):
    """A change of a broker's state that is to be told, or was, over one channel (brokers/alerts.py).

    Pending while `sent_at` and `given_up_at` are empty. `due_at` is also the lease of who sends it: `claim` names
    the attempt."""

    channel = models.CharField(max_length=20)
    broker = models.ForeignKey(Broker, null=True, on_delete=models.SET_NULL, related_name="alerts")
    name = models.CharField(max_length=100)
    before = models.CharField(max_length=20, blank=True)
    after = models.CharField(max_length=20)
    reason = models.CharField(max_length=50, blank=True)
    detail = models.CharField(max_length=500, blank=True)
    at = models.DateTimeField(default=clock.now)
    due_at = models.DateTimeField()
    attempts = models.PositiveIntegerField(default=0)
    claim = models.UUIDField(null=True)
    sent_at = models.DateTimeField(null=True)
    given_up_at = models.DateTimeField(null=True)
    failure = models.CharField(max_length=200, blank=True)

    class Meta:
        ordering = ["at", "id"]
        indexes = [
            models.Index(
                fields=["channel", "due_at"],
                name="alert_pending",
                condition=models.Q(sent_at=None, given_up_at=None),
            )
        ]

    def __str__(self) -> str:
        return f"{self.name}: {self.after}"


class MasterKeyCheck(models.Model):
    """Proves that a master key version is the one this database was sealed with."""

    version = models.PositiveIntegerField(primary_key=True)
    check_value = models.CharField(max_length=100)
    created_at = models.DateTimeField(default=clock.now)

    def __str__(self) -> str:
        return f"master key {self.version}"

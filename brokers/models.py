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

    total = models.BigIntegerField(null=True, blank=True, editable=False)
    used = models.BigIntegerField(null=True, blank=True, editable=False)
    available = models.BigIntegerField(null=True, blank=True, editable=False)
    measured_at = models.DateTimeField(null=True, blank=True, editable=False)
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


class MasterKeyCheck(models.Model):
    """Proves that a master key version is the one this database was sealed with."""

    version = models.PositiveIntegerField(primary_key=True)
    check_value = models.CharField(max_length=100)
    created_at = models.DateTimeField(default=clock.now)

    def __str__(self) -> str:
        return f"master key {self.version}"

"""Secrets of brokers at rest: one sealed JSON per row, bound to the row by its marker.

They are opened only to construct a driver (`brokers/open.py`), never shown again and never logged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from django.conf import settings

from brokers.keyring import Keyring, KeyringError, keyring
from brokers.models import Broker

PURPOSE = b"credential"


def _bound_to(broker: Broker) -> bytes:
    # The marker exists before the primary key does, is unique and never changes.
    return f"brokers.Broker:{broker.marker}".encode("ascii")


def seal_secrets(broker: Broker, secrets: Mapping[str, str], ring: Keyring | None = None) -> None:
    """Put `secrets` into the row's fields, sealed with the current master key of `ring` (default: the configured one,
    checked against the database). Does not save the row."""
    if not secrets:
        broker.sealed_secrets, broker.secrets_key_version = None, None
        return
    plain = json.dumps(dict(secrets), sort_keys=True).encode()
    version, sealed = (ring or keyring()).seal(PURPOSE, plain, _bound_to(broker))
    broker.sealed_secrets, broker.secrets_key_version = sealed, version


def open_secrets(broker: Broker) -> dict[str, str]:
    """The row's secrets. Raises KeyringError when they were changed, moved from another row, or sealed with a
    master key that is not configured here."""
    if broker.sealed_secrets is None or broker.secrets_key_version is None:
        return {}
    # Without the check against the database: a wrong key does not open anything, and this runs on threads.
    ring = Keyring(settings.CLOUDSTORE_MASTER_KEYS)
    plain = ring.open(PURPOSE, broker.secrets_key_version, bytes(broker.sealed_secrets), _bound_to(broker))
    found = json.loads(plain)
    if not isinstance(found, dict):
        raise KeyringError("sealed credentials are not a table")
    return {str(k): str(v) for k, v in found.items()}


def reseal_all() -> int:
    """Seal again, with the current master key, what is sealed with an older one: -> how many rows. Idempotent;
    a row that changes meanwhile is left to the next run."""
    current = keyring().current
    done = 0
    for broker in Broker.objects.exclude(sealed_secrets=None).exclude(secrets_key_version=current):
        before = broker.secrets_key_version
        seal_secrets(broker, open_secrets(broker))
        done += Broker.objects.filter(
            pk=broker.pk, revision=broker.revision, secrets_key_version=before
        ).update(sealed_secrets=broker.sealed_secrets, secrets_key_version=broker.secrets_key_version)
    return done

"""The versioned master keys, and what is derived from them.

Master keys come from the environment or a 0600 file (settings.CLOUDSTORE_MASTER_KEYS) and never reach the
database or a broker. Each use derives its own key with HKDF-SHA256 (RFC 5869), so that a sealed credential can
never be opened as a content key. A check value per version, stored at first use, tells a wrong key before
anything is sealed with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings

from brokers import clock, entropy

NONCE_BYTES = 12
TAG_BYTES = 16
KEY_BYTES = 32


class KeyringError(Exception):
    """A sealed value could not be opened; the message never carries key material."""


class UnknownMasterKey(KeyringError):
    """Sealed with a master key version that is not configured here."""


class WrongMasterKey(KeyringError):
    """A configured master key is not the one that this database was sealed with."""


@lru_cache(maxsize=64)
def _derive(master: bytes, purpose: bytes) -> AESGCM:
    key = HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=b"cloudstore " + purpose).derive(master)
    return AESGCM(key)


@dataclass(frozen=True)
class Keyring:
    """Master keys by version; new values are sealed with the highest one."""

    keys: dict[int, bytes]

    @property
    def current(self) -> int:
        return max(self.keys)

    def _aead(self, version: int, purpose: bytes) -> AESGCM:
        key = self.keys.get(version) or _added(version)
        if key is None:
            raise UnknownMasterKey(f"master key version {version} is not configured")
        return _derive(key, purpose)

    def seal(
        self, purpose: bytes, plain: bytes, bound_to: bytes, version: int | None = None
    ) -> tuple[int, bytes]:
        """Encrypt `plain`, bound to `bound_to` (associated data): -> (key version, nonce + ciphertext + tag)."""
        version = self.current if version is None else version
        nonce = entropy.token_bytes(NONCE_BYTES)
        return version, nonce + self._aead(version, purpose).encrypt(nonce, plain, bound_to)

    def open(self, purpose: bytes, version: int, sealed: bytes, bound_to: bytes) -> bytes:
        """The inverse of `seal`. Raises UnknownMasterKey, or KeyringError when it was changed or moved."""
        try:
            return self._aead(version, purpose).decrypt(
                bytes(sealed[:NONCE_BYTES]), bytes(sealed[NONCE_BYTES:]), bound_to
            )
        except (InvalidTag, ValueError):
            raise KeyringError(f"a value sealed with master key {version} does not open") from None

    def check_value(self, version: int) -> str:
        """A fixed string that only this key makes; safe to store beside the data."""
        return self._aead(version, b"check").encrypt(bytes(NONCE_BYTES), b"cloudstore", None).hex()


# Keys that were added to the secrets' file while this process ran, and when the file was last read for one.
_late: dict[int, bytes] = {}
_late_read = float("-inf")
LATE_EVERY = 5.0


def _added(version: int) -> bytes | None:
    """A key of a version that was not there when this process started: another process, started since, has sealed
    with it. Such keys open; what is new is sealed with the ones of the start until the process starts anew."""
    global _late_read
    read = getattr(settings, "CLOUDSTORE_READ_MASTER_KEYS", None)
    if version not in _late and read is not None and clock.monotonic() - _late_read >= LATE_EVERY:
        _late_read = clock.monotonic()
        _late.update({new: key for new, key in read().items() if new not in settings.CLOUDSTORE_MASTER_KEYS})
    return _late.get(version)


_verified: set[tuple[int, bytes, str]] = set()


def keyring() -> Keyring:
    """The configured keyring, checked against the database once per process and database.

    Raises WrongMasterKey when a version's stored check value differs. Records the check value of a version
    that the database has not seen (idempotent, safe under races)."""
    from django.db import connection

    from brokers.models import MasterKeyCheck

    ring = Keyring(settings.CLOUDSTORE_MASTER_KEYS)
    place = str(connection.settings_dict["NAME"])
    for version, key in ring.keys.items():
        if (version, key, place) in _verified:
            continue
        value = ring.check_value(version)
        row, _created = MasterKeyCheck.objects.get_or_create(version=version, defaults={"check_value": value})
        if row.check_value != value:
            raise WrongMasterKey(
                f"master key {version} is not the key that this database was sealed with; "
                "nothing was written. Restore the right key (docs/operations.md)"
            )
        if not connection.in_atomic_block:  # inside a transaction the row may still be rolled back
            _verified.add((version, key, place))
    return ring

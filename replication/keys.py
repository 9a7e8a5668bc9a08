"""Content keys: random, wrapped by the master key, bound to their content."""

from __future__ import annotations

import uuid

from brokers import entropy
from brokers.keyring import keyring
from replication.models import Content
from replication.seal import KEY_SIZE

PURPOSE = b"content key"


def new_wrapped_key(content_id: uuid.UUID) -> tuple[int, bytes]:
    """A fresh content key: -> (master key version, wrapped key)."""
    return keyring().seal(PURPOSE, entropy.token_bytes(KEY_SIZE), bound_to=content_id.bytes)


def content_key(content: Content) -> bytes:
    """The content's own key. Raises KeyringError when the master key is missing or wrong."""
    return keyring().open(PURPOSE, content.key_version, bytes(content.wrapped_key), content.id.bytes)

"""Names of the objects on brokers: random, lowercase ASCII, written once, never reused.

Nothing of a user or a file is in them. Everything of ours stands under `OBJECT_PREFIX`, so that orphans can be
told from what other programs keep in the same place.
"""

from __future__ import annotations

import re

from brokers import entropy

OBJECT_PREFIX = "cs/"
# Snapshots of the metadata, and the epoch: apart from the segments, so that a listing finds them without a database.
META_PREFIX = "cs-meta/"
MARKER_NAME = "cs-marker"
# What the conformance suite (`manage.py broker_check`) stores for a while.
CHECK_PREFIX = "cs-check/"
# What a driver's `probe()` may write to learn whether writes pass.
PROBE_NAME = "cs-probe"
_KEY = re.compile(r"cs/[0-9a-f]{2}/[0-9a-f]{32}\Z")


def new_object_key() -> str:
    """A fresh key, `cs/<2 hex>/<32 hex>`; 128 random bits make a repetition impossible in practice."""
    name = entropy.token_hex(16)
    return f"{OBJECT_PREFIX}{name[:2]}/{name}"


def is_object_key(name: str) -> bool:
    return _KEY.match(name) is not None


def name_in(locator: str, marker_locator: str) -> str:
    """The name under which an object was stored, from its locator. Most places give the name itself; some put a
    handle or a folder before it, and the marker's own locator shows how many parts that are."""
    if not marker_locator.endswith(f"/{MARKER_NAME}"):
        return locator
    parts = marker_locator.count("/")
    return locator.split("/", parts)[-1] if locator.count("/") >= parts else locator

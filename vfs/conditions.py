"""Entity tags, and the preconditions that requests make with them (RFC 9110, section 13)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from django.http import HttpRequest
from django.utils.http import parse_etags

from vfs.errors import PreconditionFailed
from vfs.models import Node, Version


def etag_of(version: Version) -> str:
    """The strong entity tag of a version: the hash of its bytes."""
    return f'"{version.content.sha256}"'


@dataclass(frozen=True, slots=True)
class Conditions:
    """`If-Match` and `If-None-Match` of a request that changes a file; None where there was none."""

    if_match: Sequence[str] | None = None
    if_none_match: Sequence[str] | None = None

    @classmethod
    def of(cls, request: HttpRequest) -> Conditions:
        return cls(_tags(request, "If-Match"), _tags(request, "If-None-Match"))

    def check(self, node: Node | None) -> None:
        """Raises PreconditionFailed when the file (None: there is none) is not in the state asked for."""
        tag = etag_of(node.version) if node is not None and node.version is not None else None
        if self.if_match is not None and not matches(self.if_match, tag):
            raise PreconditionFailed
        if self.if_none_match is not None and matches(self.if_none_match, tag, weak=True):
            raise PreconditionFailed("There is a file of this name already.")


def _tags(request: HttpRequest, header: str) -> Sequence[str] | None:
    """The tags of a header; () when it is there and holds none, which nothing matches."""
    raw = request.headers.get(header)
    return None if raw is None else tuple(parse_etags(raw))


def matches(tags: Sequence[str], tag: str | None, *, weak: bool = False) -> bool:
    """Whether a list of tags names `tag` (None: nothing is there). "*" names anything that is there."""
    if tag is None:
        return False
    if "*" in tags:
        return True
    return any((t.removeprefix("W/") if weak else t) == tag for t in tags)

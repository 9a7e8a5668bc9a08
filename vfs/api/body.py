"""Request bodies of any size, read from the server in pieces.

A client that dies in the middle looks like one that has ended. So a body is taken only when its size was declared
(or its hash), and counts as whole only when it is as declared.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator

from django.http import HttpRequest

from vfs.api.problems import Refused
from vfs.errors import SizeMismatch

CHUNK = 256 * 1024
_LENGTH = re.compile(r"[0-9]{1,19}")
_DIGEST = re.compile(r"(?:^|,)[ \t]*sha-256=:([A-Za-z0-9+/=]*):[ \t]*(?=,|;|$)")


class Body:
    """The body of a request. `length` is the declared size in bytes, None when only `sha256` (hex) was
    declared. Raises Refused: 411 for neither, 400 for senseless headers, 415 for an encoded body."""

    def __init__(self, request: HttpRequest) -> None:
        self._input = request.META["wsgi.input"]
        if request.headers.get("Content-Encoding", "identity").strip().lower() not in {"", "identity"}:
            raise Refused(415, "content_encoding", "Bodies with a Content-Encoding are not taken.")
        if "Content-Range" in request.headers:
            raise Refused(400, "content_range", "Parts of a file cannot be put; send it whole.")
        self.sha256 = _digest(request)
        # What Django takes for no body at all: chunked transfer, or HTTP/2 without a length.
        self._chunked = request.META.get("CONTENT_LENGTH") in {None, ""}
        self.length = _declared_length(request, self._chunked)
        if self.length is None and self.sha256 is None:
            raise Refused(
                411,
                "length_required",
                "Send Content-Length, or X-Expected-Entity-Length with a chunked body: without the size, an "
                "upload that broke off cannot be told from a whole one.",
            )

    def chunks(self) -> Iterator[bytes]:
        """The pieces, of at most CHUNK bytes. Raises SizeMismatch at the end when the body was shorter or longer
        than declared."""
        length, count = self.length, 0
        while length is None or count < length:
            want = CHUNK if length is None else min(CHUNK, length - count)
            data = self._read(want)
            if not data:
                break
            count += len(data)
            yield data
        if length is not None and (count < length or self._longer()):
            raise SizeMismatch(
                f"{length} bytes were declared, {'less' if count < length else 'more'} arrived."
            )

    def _read(self, size: int) -> bytes:
        try:
            data = self._input.read(size)
        except OSError:  # the client is gone
            return b""
        return bytes(data)

    def _longer(self) -> bool:
        """Whether a chunked body goes on after its declared size. One with Content-Length cannot."""
        return self._chunked and bool(self._read(1))


def _declared_length(request: HttpRequest, chunked: bool) -> int | None:
    header = "X-Expected-Entity-Length" if chunked else "Content-Length"
    declared = request.headers.get(header)
    if declared is None:
        return None
    if not _LENGTH.fullmatch(declared):
        too_big = declared.isascii() and declared.isdigit()
        raise Refused(413 if too_big else 400, "bad_length", f"{header} is not a size in bytes.")
    return int(declared)


def _digest(request: HttpRequest) -> str | None:
    """The SHA-256 (hex) that `Repr-Digest` or `Content-Digest` (RFC 9530) declares. Other algorithms are left
    aside, as the RFC says."""
    found: set[bytes] = set()
    for header in ("Repr-Digest", "Content-Digest"):
        for encoded in _DIGEST.findall(request.headers.get(header, "")):
            try:
                digest = base64.b64decode(encoded, validate=True)
            except binascii.Error:
                digest = b""
            if len(digest) != 32:
                raise Refused(400, "bad_digest", f"{header} holds no SHA-256 digest.")
            found.add(digest)
    if len(found) > 1:
        raise Refused(400, "bad_digest", "Repr-Digest and Content-Digest differ.")
    return found.pop().hex() if found else None

"""Answers that carry a file's bytes: ranges, validators, and headers that keep user files inert in our origin."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.utils.http import content_disposition_header, http_date, parse_etags, parse_http_date_safe

from replication.read import open_content
from vfs.api.problems import Refused
from vfs.conditions import etag_of, matches
from vfs.errors import PreconditionFailed
from vfs.listing import UNKNOWN_TYPE, type_of
from vfs.models import Node, Version

# What may be shown in a browser: pictures that are nothing else, and text as plain text.
INLINE = {
    "image/png": "image/png",
    "image/jpeg": "image/jpeg",
    "image/gif": "image/gif",
    "image/webp": "image/webp",
    "text/plain": "text/plain; charset=utf-8",
}
# Nobody's script, style or frame, whatever the bytes are.
SAFE_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "private, no-cache",
    "Referrer-Policy": "no-referrer",
}
_RANGE = re.compile(r"bytes=[ \t]*([0-9]*)-([0-9]*)[ \t]*", re.IGNORECASE)
_UNSAFE_IN_NAME = re.compile("[\x00-\x1f\x7f-\x9f/\\\\\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes `start..end`, end exclusive."""

    start: int
    end: int


def parse_range(header: str, size: int) -> Span | None:
    """The one range asked for; None for the whole (several ranges, or what is no range of bytes). Raises
    Refused (416) for a range outside the file."""
    found = _RANGE.fullmatch(header)
    if found is None:
        return None
    first, last = found.groups()
    if not first and not last:
        return None
    outside = Refused(
        416, "range_not_satisfiable", f"The file has {size} bytes.", {"Content-Range": f"bytes */{size}"}
    )
    if not first:
        count = _number(last)
        if count == 0 or size == 0:
            raise outside
        return Span(max(0, size - count), size)
    start = _number(first)
    if last and _number(last) < start:
        return None  # not a range at all, says RFC 9110
    if start >= size:
        raise outside
    return Span(start, min(size, _number(last) + 1) if last else size)


def _number(digits: str) -> int:
    digits = digits.lstrip("0") or "0"
    return int(digits) if len(digits) <= 19 else 2**63


def answer(request: HttpRequest, node: Node, version: Version) -> HttpResponseBase:
    """The answer to a GET or HEAD of a file. Raises Refused, PreconditionFailed, ContentUnavailable,
    ContentDamaged; what fails later breaks the connection off, so that no client takes a part for the whole."""
    size = version.content.size
    headers = headers_of(request, node, version)
    if _not_modified(request, etag_of(version), version.created_at):
        kept = {k: v for k, v in headers.items() if k in _KEPT_304}
        response = HttpResponse(status=304, headers=kept)
        del response.headers["Content-Type"]
        return response
    span = _span(request, etag_of(version), size)
    start, end = (span.start, span.end) if span else (0, size)
    headers["Content-Length"] = str(end - start)
    if span:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    status = 206 if span else 200
    if request.method == "HEAD":
        return HttpResponse(status=status, headers=headers)
    pieces = open_content(version.content).stream(start, end)
    return StreamingHttpResponse(pieces, status=status, headers=headers)


_KEPT_304 = {"ETag", "Last-Modified", "Cache-Control", "Vary", "Content-Location"}


def headers_of(request: HttpRequest, node: Node, version: Version) -> dict[str, str]:
    """All headers but those of the length."""
    kind = INLINE.get(type_of(node.name), UNKNOWN_TYPE)
    inline = request.GET.get("inline") == "1" and kind != UNKNOWN_TYPE
    name = _UNSAFE_IN_NAME.sub("_", node.name) or "file"
    return {
        "Content-Type": kind,
        "Content-Disposition": content_disposition_header(not inline, name) or "inline",
        "ETag": etag_of(version),
        "Last-Modified": http_date(version.created_at.timestamp()),
        "Accept-Ranges": "bytes",
        "Vary": "Authorization, Cookie",
        **SAFE_HEADERS,
    }


def _not_modified(request: HttpRequest, etag: str, modified: datetime) -> bool:
    """Whether 304 is the answer. Raises PreconditionFailed. In the order of RFC 9110, section 13.2.2."""
    stamp = int(modified.timestamp())
    if_match = request.headers.get("If-Match")
    if if_match is not None:
        if not matches(parse_etags(if_match), etag):
            raise PreconditionFailed
    else:
        since = parse_http_date_safe(request.headers.get("If-Unmodified-Since", ""))
        if since is not None and stamp > since:
            raise PreconditionFailed
    if_none_match = request.headers.get("If-None-Match")
    if if_none_match is not None:
        return matches(parse_etags(if_none_match), etag, weak=True)
    since = parse_http_date_safe(request.headers.get("If-Modified-Since", ""))
    return since is not None and stamp <= since


def _span(request: HttpRequest, etag: str, size: int) -> Span | None:
    header = request.headers.get("Range")
    if header is None:
        return None
    if_range = request.headers.get("If-Range")
    # A date cannot tell two versions of one second apart, so only the entity tag counts.
    if if_range is not None and if_range.strip() != etag:
        return None
    return parse_range(header, size)

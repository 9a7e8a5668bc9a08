"""multipart/form-data as a stream (RFC 7578), taken strictly.

python-multipart cuts the stream; Django's own parser skips parts that it cannot read, tidies their names up, and
does not notice when the closing boundary never came. Here each of these is an error, so what was sent is what is
stored, or nothing is.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, MultipartState

from vfs.api.problems import Refused

HEADER_MOST = 16 * 1024
FIELDS_MOST = 256 * 1024
PARTS_MOST = 1000

_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
_PARAMETER = re.compile(r';\s*([!#$%&\'*+.^_`|~0-9A-Za-z-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^";\s]*))\s*')
_PLAIN_ENCODINGS = {"", "7bit", "8bit", "binary"}


def malformed(detail: str) -> Refused:
    return Refused(400, "bad_multipart", detail)


def boundary_of(content_type: str) -> bytes:
    """The boundary in a Content-Type. Raises Refused: 415 when it is not multipart/form-data."""
    kind, _, rest = content_type.partition(";")
    if kind.strip().lower() != "multipart/form-data":
        raise Refused(415, "not_multipart", "Send the files as multipart/form-data.")
    boundary = _parameters(f";{rest}").get("boundary", "")
    if not _BOUNDARY.fullmatch(boundary):
        raise malformed("The Content-Type has no valid boundary.")
    return boundary.encode("ascii")


@dataclass(slots=True)
class Part:
    """One part. `filename` is None for a plain field. Its `data` is read before the next part is asked for."""

    name: str
    filename: str | None
    data: Iterator[bytes] = field(repr=False)


class Multipart:
    """The parts of a body that arrives as `chunks`. Holds about one chunk. Raises Refused for what is malformed,
    also when the body ends before its closing boundary."""

    def __init__(self, chunks: Iterator[bytes], boundary: bytes) -> None:
        self._chunks = chunks
        # What the parser found and nobody has taken yet: heads of parts, their bytes, and None for their ends.
        self._events: deque[dict[str, str] | bytes | None] = deque()
        self._header: tuple[bytearray, bytearray] = (bytearray(), bytearray())
        self._headers: dict[str, str] = {}
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_part,
                "on_header_begin": self._on_header,
                "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
                "on_header_end": self._on_header_end,
                "on_headers_finished": lambda: self._events.append(self._headers),
                "on_part_data": lambda data, start, end: self._events.append(bytes(data[start:end])),
                "on_part_end": lambda: self._events.append(None),
            },
            max_header_size=HEADER_MOST,
        )

    def __iter__(self) -> Iterator[Part]:
        count = 0
        while self._more():
            head = self._events.popleft()
            assert isinstance(head, dict)  # noqa: S101 - the data of the part before was read to its end
            count += 1
            if count > PARTS_MOST:
                raise Refused(
                    413, "too_many_parts", f"A request takes at most {PARTS_MOST} files and fields."
                )
            name, filename = _disposition(head)
            data = self._data()
            yield Part(name, filename, data)
            for _rest in data:
                pass

    def _data(self) -> Iterator[bytes]:
        """The bytes of the part whose head was taken last."""
        while self._more():
            piece = self._events.popleft()
            if piece is None:
                return
            assert isinstance(piece, bytes)  # noqa: S101
            yield piece

    def _more(self) -> bool:
        """Read until there is an event: -> False at the proper end of the body."""
        while not self._events:
            piece = next(self._chunks, b"")
            if not piece:
                if self._parser.state != MultipartState.END:
                    raise malformed("The body ends before its closing boundary.")
                return False
            try:
                self._parser.write(piece)
            except FormParserError:
                raise malformed("The body is not well-formed multipart/form-data.") from None
        return True

    def _on_part(self) -> None:
        self._headers = {}

    def _on_header(self) -> None:
        self._header = (bytearray(), bytearray())

    def _on_header_end(self) -> None:
        name, value = self._header
        try:
            key, text = name.decode("ascii").lower(), value.decode().strip()
        except UnicodeDecodeError:
            raise malformed("A header of a part is not UTF-8.") from None
        if self._headers.setdefault(key, text) != text:
            raise malformed(f"The header {key[:40]} of a part comes twice.")


def _disposition(headers: dict[str, str]) -> tuple[str, str | None]:
    """Name and file name of a part."""
    if headers.get("content-transfer-encoding", "").lower() not in _PLAIN_ENCODINGS:
        raise malformed("Parts with a Content-Transfer-Encoding are not taken.")
    kind, _, rest = headers.get("content-disposition", "").partition(";")
    if kind.strip().lower() != "form-data":
        raise malformed("A part is not form-data.")
    parameters = _parameters(f";{rest}")
    if "filename*" in parameters:
        raise malformed("Form data has no filename*; send the name as UTF-8.")
    if "name" not in parameters:
        raise malformed("A part has no name.")
    return parameters["name"], parameters.get("filename")


def _parameters(text: str) -> dict[str, str]:
    """The parameters of a header. A backslash escapes a quote or a backslash, else it stands for itself."""
    found: dict[str, str] = {}
    at = 0
    text = text.rstrip("; \t")
    while at < len(text):
        match = _PARAMETER.match(text, at)
        if match is None:
            raise malformed("The parameters of a header cannot be read.")
        name, quoted, plain = match.groups()
        value = plain if quoted is None else re.sub(r'\\(["\\])', r"\1", quoted)
        if name.lower() in found:
            raise malformed(f"The parameter {name[:40]} comes twice.")
        found[name.lower()] = value
        at = match.end()
    return found

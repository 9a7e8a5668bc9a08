"""multipart/form-data as a stream (RFC 7578), taken strictly.

Django's parser skips parts that it cannot read, tidies their names up, and does not notice when the closing boundary
never came. Here each of these is an error, so what was sent is what is stored, or nothing is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from vfs.api.problems import Refused

HEADER_MOST = 16 * 1024
PREAMBLE_MOST = 16 * 1024
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
        self._delimiter = b"\r\n--" + boundary
        self._buffer = bytearray(b"\r\n")  # the first delimiter may stand at the very start

    def __iter__(self) -> Iterator[Part]:
        preamble = sum(len(piece) for piece in self._until_delimiter(PREAMBLE_MOST))
        if preamble > PREAMBLE_MOST:
            raise malformed("There is no boundary at the start of the body.")
        count = 0
        while not self._closing():
            count += 1
            if count > PARTS_MOST:
                raise Refused(
                    413, "too_many_parts", f"A request takes at most {PARTS_MOST} files and fields."
                )
            name, filename = self._head()
            data = self._until_delimiter()
            yield Part(name, filename, data)
            for _rest in data:
                pass
        for _epilogue in self._chunks:
            pass

    def _fill(self) -> bool:
        piece = next(self._chunks, b"")
        self._buffer += piece
        return bool(piece)

    def _need(self, count: int) -> None:
        while len(self._buffer) < count:
            if not self._fill():
                raise malformed("The body ends before its closing boundary.")

    def _until_delimiter(self, most: int | None = None) -> Iterator[bytes]:
        keep = len(self._delimiter) - 1
        count = 0
        while True:
            at = self._buffer.find(self._delimiter)
            end = at if at >= 0 else len(self._buffer) - keep
            if end > 0:
                piece = bytes(memoryview(self._buffer)[:end])
                del self._buffer[:end]
                count += end
                yield piece
                if most is not None and count > most:
                    return
            if at >= 0:
                del self._buffer[: len(self._delimiter)]
                return
            if not self._fill():
                raise malformed("The body ends before its closing boundary.")

    def _closing(self) -> bool:
        """Read the rest of a delimiter's line: -> whether it was the closing one."""
        self._need(2)
        if self._buffer[:2] == b"--":
            return True
        line = self._line(256, "The boundary is followed by something else.")
        if line.strip(b" \t"):
            raise malformed("The boundary is followed by something else.")
        return False

    def _line(self, most: int, trouble: str) -> bytes:
        while (at := self._buffer.find(b"\r\n")) < 0:
            if len(self._buffer) > most:
                raise malformed(trouble)
            self._need(len(self._buffer) + 1)
        if at > most:
            raise malformed(trouble)
        line = bytes(self._buffer[:at])
        del self._buffer[: at + 2]
        return line

    def _head(self) -> tuple[str, str | None]:
        headers: dict[str, str] = {}
        left = HEADER_MOST
        while line := self._line(left, "The headers of a part are too long."):
            left -= len(line)
            try:
                name, colon, value = line.decode().partition(":")
            except UnicodeDecodeError:
                raise malformed("A header of a part is not UTF-8.") from None
            if not colon or not name or name != name.strip():
                raise malformed("A header of a part cannot be read.")
            if headers.setdefault(name.lower(), value.strip()) != value.strip():
                raise malformed(f"The header {name[:40]} of a part comes twice.")
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

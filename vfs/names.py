"""Names and paths: the one place that says which are allowed. Every door goes through here.

Names are kept in Unicode NFC and compared as such: "é" typed in any way is one name, while "File" and "file", or
"a" and "a ", are two. Names that some systems cannot store ("CON", "a:b", "x.") are allowed.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from vfs.errors import InvalidName

MAX_NAME_BYTES = 255
MAX_PATH_BYTES = 4096
MAX_DEPTH = 100
SORT_KEY_LENGTH = 255

_FORBIDDEN = re.compile(
    "[/\\\\"
    "\x00-\x1f\x7f-\x9f"  # C0, DEL, C1
    "\u2028\u2029"  # line and paragraph separators
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # bidi controls
    "\ufffe\uffff]"
)
_DIGITS = re.compile(r"[0-9]+")


def validate_name(name: str) -> str:
    """The name in NFC, as it is stored. Raises InvalidName with the reason."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InvalidName("The name is not valid Unicode.") from None
    name = unicodedata.normalize("NFC", name)
    if not name:
        raise InvalidName("The name is empty.")
    if name in {".", ".."}:
        raise InvalidName(f'"{name}" cannot be a name.')
    found = _FORBIDDEN.search(name)
    if found:
        sign = found[0]
        what = "a slash" if sign == "/" else "a backslash" if sign == "\\" else f"the sign U+{ord(sign):04X}"
        raise InvalidName(f"The name contains {what}.")
    if len(name.encode()) > MAX_NAME_BYTES:
        raise InvalidName(f"The name is longer than {MAX_NAME_BYTES} bytes.")
    return name


def name_key(name: str) -> str:
    """What makes two names one: the NFC form, case counts. Unique among the live nodes of a folder."""
    return unicodedata.normalize("NFC", name)


def sort_key(name: str) -> str:
    """The order for people: case and accents count little, "2" comes before "10". Not unique; may be cut."""
    plain = unicodedata.normalize("NFKD", name.casefold())
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    # A number is led by its number of digits, so that the longer one comes later.
    padded = _DIGITS.sub(lambda found: _countable(found[0]), plain)
    return padded[:SORT_KEY_LENGTH]


def _countable(digits: str) -> str:
    digits = digits.lstrip("0") or "0"
    return f"{len(digits):03d}{digits}"


def check_place(names: Sequence[str]) -> None:
    """Raises InvalidName for a path that is too deep or too long as a whole."""
    if len(names) > MAX_DEPTH:
        raise InvalidName(f"The path is deeper than {MAX_DEPTH} folders.")
    if sum(len(n.encode()) + 1 for n in names) > MAX_PATH_BYTES:
        raise InvalidName(f"The path is longer than {MAX_PATH_BYTES} bytes.")


def split_path(path: str, *, folder: bool = False) -> tuple[str, ...]:
    """The names of a path, from the top folder down; () for the top folder itself. One leading slash may be
    there, one trailing slash when `folder` allows it. Raises InvalidName."""
    if len(path) > MAX_PATH_BYTES + 2:
        raise InvalidName(f"The path is longer than {MAX_PATH_BYTES} bytes.")
    path = path.removeprefix("/")
    if folder:
        path = path.removesuffix("/")
    if not path:
        return ()
    parts = path.split("/")
    if len(parts) > MAX_DEPTH:
        raise InvalidName(f"The path is deeper than {MAX_DEPTH} folders.")
    names = tuple(map(validate_name, parts))
    check_place(names)
    return names


def join_path(names: Sequence[str]) -> str:
    """The path as it is shown: "/" for the top folder, "/a/b" below it."""
    return "/" + "/".join(names)

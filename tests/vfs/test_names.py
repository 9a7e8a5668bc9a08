"""Names and paths: what is taken, what is refused, what is one name."""

from __future__ import annotations

import random
import unicodedata

import pytest

from vfs.errors import InvalidName
from vfs.names import join_path, name_key, sort_key, split_path, validate_name

pytestmark = pytest.mark.only_on("sqlite")

BAD = {
    "empty": "",
    "dot": ".",
    "dot dot": "..",
    "slash": "a/b",
    "backslash": "a\\b",
    "traversal": "../../etc/passwd",
    "windows traversal": "..\\..\\x",
    "NUL": "a\0b",
    "CR": "a\rb",
    "LF": "a\nb",
    "ESC": "a\x1bb",
    "DEL": "a\x7fb",
    "C1": "a\x85b",
    "right-to-left override": "a\u202eb",
    "isolate": "a\u2067b",
    "mark": "a\u200fb",
    "arabic mark": "a\u061cb",
    "line separator": "a\u2028b",
    "paragraph separator": "a\u2029b",
    "noncharacter": "a\uffffb",
    "lone surrogate": "a\ud800b",
    "256 bytes": "x" * 256,
    "256 bytes in few characters": "é" * 128,
}
GOOD = [
    "a",
    " ",
    "a ",
    ".hidden",
    "...",
    "CON",
    "a:b",
    "x.",
    "%2e%2e%2f",
    "100%",
    "'; DROP TABLE",
    "日本語",
    "👩‍👩‍👧",
    "x" * 255,
    "é" * 127,
]


@pytest.mark.parametrize("name", BAD.values(), ids=BAD.keys())
def test_refused_names(name: str) -> None:
    with pytest.raises(InvalidName) as refused:
        validate_name(name)
    assert str(refused.value).endswith(".")


@pytest.mark.parametrize("name", GOOD)
def test_taken_names(name: str) -> None:
    assert validate_name(name) == name


def test_nfd_becomes_nfc_and_case_counts() -> None:
    assert validate_name(unicodedata.normalize("NFD", "é")) == "é"
    assert name_key(unicodedata.normalize("NFD", "é")) == name_key("é")
    assert name_key("File") != name_key("file")
    assert name_key("a ") != name_key("a")


def test_what_grows_when_it_is_composed_is_measured_afterwards() -> None:
    # U+FB2C becomes three code points in NFC, so 127 bytes' worth of it are too many.
    assert len(validate_name("\ufb2c" * 20).encode()) == 120
    with pytest.raises(InvalidName):
        validate_name("\ufb2c" * 60)


@pytest.mark.parametrize(
    ("path", "folder", "names"),
    [
        ("", False, ()),
        ("/", False, ()),
        ("a", False, ("a",)),
        ("/a/b", False, ("a", "b")),
        ("a/b/", True, ("a", "b")),
        ("/".join("x" * 100), False, ("x",) * 100),
    ],
)
def test_paths(path: str, folder: bool, names: tuple[str, ...]) -> None:
    assert split_path(path, folder=folder) == names


@pytest.mark.parametrize(
    "path",
    ["a/", "//a", "a//b", "a/./b", "a/../b", "/".join("x" * 101), "/".join(["x" * 200] * 21), "x" * 4097],
)
def test_refused_paths(path: str) -> None:
    with pytest.raises(InvalidName):
        split_path(path)


def test_join_is_the_way_back() -> None:
    assert join_path(()) == "/"
    assert split_path(join_path(("a", "b c"))) == ("a", "b c")


def test_order_for_people() -> None:
    names = ["a", "B", "c", "Émile", "file2", "File10", "file010b", "zebra"]
    shuffled = random.Random(1).sample(names, len(names))
    assert sorted(shuffled, key=sort_key) == names
    assert len(sort_key("1" * 255)) <= 255

"""The table of failures in docs/reliability.md is complete, and every test that it names exists."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from cloudstore.config import BASE_DIR

pytestmark = pytest.mark.only_on("sqlite")

NUMBERS = [f"A{n}" for n in range(1, 22)] + [f"B{n}" for n in range(1, 26)] + [f"D{n}" for n in range(1, 14)]
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def section() -> str:
    text = (BASE_DIR / "docs/reliability.md").read_text()
    return text.partition("\n## Failures and their tests\n")[2].partition("\n## ")[0]


def rows() -> dict[str, list[str]]:
    """The cells of each line, by its number. A number twice fails."""
    found: dict[str, list[str]] = {}
    for line in section().splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if re.fullmatch(r"[ABD]\d+", cells[0]):
            assert cells[0] not in found, f"{cells[0]} stands there twice"
            found[cells[0]] = cells[1:]
    return found


@cache
def names_in(path: str) -> frozenset[str]:
    tree = ast.parse((BASE_DIR / path).read_text())
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def test_every_failure_has_its_line() -> None:
    assert sorted(rows()) == sorted(NUMBERS)


@pytest.mark.parametrize("number", NUMBERS)
def test_every_line_names_tests_that_exist_or_a_reason(number: str) -> None:
    failure, answer, proof = rows()[number]
    assert failure and answer
    named = _TEST.findall(proof)
    assert "::" not in _TEST.sub("", proof), "in the form `path::name`"
    assert named or answer.startswith("reason: ")
    for path, name in named:
        assert name.startswith("test_")
        assert name in names_in(path), f"{path} has no {name}"


def test_every_test_with_a_number_is_in_its_line() -> None:
    """`test_a7_...` of this folder is named in the line A7."""
    for path in (BASE_DIR / "tests/reliability").glob("test_*.py"):
        where = path.relative_to(BASE_DIR).as_posix()
        for name in names_in(where):
            number = re.match(r"test_([abd]\d+)_", name)
            if number and number[1].upper() in NUMBERS:
                assert (where, name) in _TEST.findall(rows()[number[1].upper()][2]), f"{where}::{name}"

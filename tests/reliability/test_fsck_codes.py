"""Every code that fsck can report is proven by a planted violation, and every invariant has a code."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from cloudstore.config import BASE_DIR
from replication.models import Replica
from tests.replication.test_fsck import PLANTED as OF_BYTES
from tests.vfs.test_commands import PLANTED as OF_NAMES

SOURCES = ("replication/fsck.py", "vfs/fsck.py")

# The invariants of docs/reliability.md, and the codes that name their violations. What happens in time (that no
# response carried wrong bytes, that copies never fell by our own hand) leaves its traces in the rows and objects.
INVARIANTS = {
    "I1": {
        "no_copy",
        "segments_do_not_add_up",
        "wrong_offset",
        "bad_header",
        "no_checksum",
        "wrong_sealed_size",
        "key_does_not_open",
        "object_missing",
        "object_unreadable",
        "does_not_read_back",
        "unreadable_file",
        "version_without_bytes",
        "broker_not_readable",
    },
    "I2": {"replica_doomed", "overdue", "expired_upload"},
    "I3": {"object_damaged", "does_not_read_back"},
    "I4": {"copies_missing", "no_copy"},
    "I5": {
        "condemned_but_referenced",
        "version_without_bytes",
        "upload_of_closed_content",
        "deletion_locked",
    },
    "I6": {"wrong_quota"},
    "I7": {
        "cycle",
        "parent_is_a_file",
        "parent_of_another_owner",
        "wrong_name_key",
        "wrong_current_version",
        "folder_with_versions",
    },
    "I8": {"replica_planned", "replica_suspect", "replica_lost", "copies_too_many", "copies_missing"},
    "I9": {"unknown_object", "unknown_snapshot", "unreferenced"},
}


def _strings(tree: ast.AST, name: str) -> set[str]:
    """Every literal that is assigned to `name` anywhere in a tree."""
    found = {
        node.value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and any(isinstance(t, ast.Name) and t.id == name for t in node.targets)
        and isinstance(node.value, ast.Constant)
    }
    assert found, f"{name}: no literal is assigned to it"
    return {str(value) for value in found}


def _codes_of(path: str) -> Iterator[str]:
    """The first argument of every `Finding(...)`: a literal, a name that literals are assigned to, or the one
    form that follows the states of replicas. Anything else fails here, so that no code escapes."""
    tree = ast.parse((BASE_DIR / path).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Finding":
            code = node.args[0]
            if isinstance(code, ast.Constant):
                yield str(code.value)
            elif isinstance(code, ast.Name):
                yield from _strings(tree, code.id)
            else:
                assert ast.unparse(code) == "f'replica_{replica.state}'", ast.unparse(code)
                yield from (f"replica_{state}" for state in Replica.State.values if state != "stored")


CODES = {path: set(_codes_of(path)) for path in SOURCES}


@pytest.mark.parametrize("path", SOURCES)
def test_the_codes_are_found_in_the_source(path: str) -> None:
    """Not vacuous: what a reader sees there is what the parser found."""
    text = (BASE_DIR / path).read_text()
    assert text.count("Finding(") - text.count("class Finding") >= len(CODES[path]) / 2
    assert CODES[path] & {"no_copy", "object_damaged", "replica_lost", "broker_not_readable", "cycle"}


@pytest.mark.parametrize("code", sorted(CODES["replication/fsck.py"] | CODES["vfs/fsck.py"]))
def test_every_code_has_a_planted_violation(code: str) -> None:
    """The plants themselves are in tests/replication/test_fsck.py and tests/vfs/test_commands.py."""
    assert code in OF_BYTES or code in OF_NAMES


def test_no_plant_is_for_a_code_that_is_gone() -> None:
    assert set(OF_BYTES) | set(OF_NAMES) == CODES["replication/fsck.py"] | CODES["vfs/fsck.py"]


@pytest.mark.parametrize("invariant", INVARIANTS)
def test_every_invariant_has_codes(invariant: str) -> None:
    known = CODES["replication/fsck.py"] | CODES["vfs/fsck.py"]
    assert INVARIANTS[invariant] and INVARIANTS[invariant] <= known


def test_every_code_belongs_to_an_invariant() -> None:
    assert set.union(*INVARIANTS.values()) == CODES["replication/fsck.py"] | CODES["vfs/fsck.py"]

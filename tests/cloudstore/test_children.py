"""Supervised processes one by one: output, ends, back-off, and the guard."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from cloudstore.children import Child, kill_group
from cloudstore.config import BASE_DIR

pytestmark = pytest.mark.only_on("sqlite")


def ended(child: Child) -> str:
    deadline = time.monotonic() + 10
    while (how := child.reap()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return how


def shell(script: str, **options: str) -> Child:
    return Child("shell", ["sh", "-c", script], patience=1, **options)  # type: ignore[arg-type]


def test_output_comes_in_whole_lines_and_the_last_one_without_its_end() -> None:
    child = shell("printf 'one\\ntwo\\r\\nmuted words\\nhalf'; printf '\\377' >&2", mute="muted")
    child.start()
    assert ended(child) == "exit code 0"
    assert child.last_lines() == ["one", "two", "half\ufffd"]
    child.close()


def test_a_half_line_waits_for_its_end() -> None:
    child = shell("printf 'half'; read x; echo ' whole'")
    child.start()
    assert ended(child).startswith("exit code"), "no standard input"
    child.close()


def test_back_off_grows_and_ends_are_told() -> None:
    child = shell("kill -9 $$")
    waits = []
    for _ in range(3):
        child.start()
        assert ended(child) == "signal 9"
        waits.append(round(child.start_at - time.monotonic(), 1))
        child.close()
    assert waits == [0.5, 1.0, 2.0]


def test_what_a_process_leaves_in_its_group_is_killed() -> None:
    child = shell("sleep 300 & echo $!")
    child.start()
    group = child.pid
    ended(child)
    deadline = time.monotonic() + 5
    while kill_group(group, 0) and not zombies_only(group):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.close()


def zombies_only(group: int) -> bool:
    listed = subprocess.run(["ps", "-eo", "pgid,stat"], capture_output=True, text=True, check=True).stdout
    return all(
        line.split()[1].startswith("Z") for line in listed.splitlines() if line.split()[0] == str(group)
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_guard_ends_children_that_ignore_sigterm(number: int) -> None:
    script = textwrap.dedent("""
        import os, sys, time
        from cloudstore.children import Child, Guard
        guard = Guard(keep=os.open(os.devnull, os.O_RDONLY), patience=0.3)
        guard.start()
        child = Child("stubborn", ["sh", "-c", "trap '' TERM; echo up; sleep 300 & wait; sleep 300"], patience=1)
        child.start()
        guard.tell("+", child.pid)
        print(child.pid, flush=True)
        time.sleep(300)
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=BASE_DIR
    )
    assert process.stdout is not None
    group = int(process.stdout.readline())
    os.kill(process.pid, number)
    process.wait(10)
    deadline = time.monotonic() + 10
    while kill_group(group, 0) and not zombies_only(group):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.stdout.close()

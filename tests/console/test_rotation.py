"""A new master key: everything is wrapped anew, in the database alone, whatever interrupts it."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from django.core.management.base import CommandError

from accounts.models import AuditEvent, User
from brokers import credentials, keyring
from brokers.models import Broker
from replication import reconcile, snapshots
from replication.models import Content
from replication.seal import parse_header
from tests.brokers.conftest import faulty
from tests.console.kit import Crash, crash_at, drop_database, places, run, tree, unread
from tests.kit.clock import VirtualClock
from tests.kit.threads import race
from tests.replication.kit import Objects
from tests.vfs.conftest import Put
from vfs.upload import FileUpload, target_at

pytestmark = pytest.mark.django_db(transaction=True)
NEW = b"2" * 32


@pytest.fixture
def both(settings: Any) -> dict[int, bytes]:
    """The configuration with a new key beside the old one, and the old one alone in `settings` until it is set."""
    return {**settings.CLOUDSTORE_MASTER_KEYS, 2: NEW}


def versions() -> set[int]:
    return set(Content.objects.values_list("key_version", flat=True))


def test_everything_is_wrapped_anew_and_no_object_touched(
    put: Put, two: list[Broker], alice: User, both: dict[int, bytes], settings: Any
) -> None:
    for number in range(5):
        put(alice, f"{number}", b"x" * number)
    credentials.seal_secrets(two[0], {"password": "canary"})
    two[0].save()
    before = {broker.pk: dict(Objects(broker)) for broker in two}
    old = settings.CLOUDSTORE_MASTER_KEYS
    settings.CLOUDSTORE_MASTER_KEYS = both
    dry = run("rotate_master_key", "--dry-run")
    assert (dry["current"], dry["in_use"], dry["contents"]) == (2, [1], 0) and versions() == {1}
    with ExitStack() as stack:
        drivers = [stack.enter_context(faulty(broker)) for broker in two]
        report = run("rotate_master_key")
        assert not any(driver.calls for driver in drivers)
    assert (report["contents"], report["brokers"], report["in_use"]) == (5, 1, [2])
    assert (report["waiting"], report["retirable"]) == ([1], [])
    assert versions() == {2}
    assert {broker.pk: dict(Objects(broker)) for broker in two} == before
    assert AuditEvent.objects.filter(action="master_key.rotated").count() == 1
    assert unread() == [] and credentials.open_secrets(Broker.objects.get(name="a")) == {"password": "canary"}
    # Nothing to do a second time.
    again = run("rotate_master_key")
    assert (again["contents"], again["brokers"]) == (0, 0)
    # The old key is not needed to read.
    settings.CLOUDSTORE_MASTER_KEYS = {2: NEW}
    assert unread() == []
    assert run("fsck", "--full") == {"findings": []}
    settings.CLOUDSTORE_MASTER_KEYS = old
    with pytest.raises(keyring.UnknownMasterKey, match="version 2 is not configured"):
        unread()


def test_the_old_key_is_kept_until_a_snapshot_made_since_stands(
    put: Put, two: list[Broker], alice: User, both: dict[int, bytes], settings: Any, clock: VirtualClock
) -> None:
    put(alice, "f", b"data")
    run("snapshot")
    settings.CLOUDSTORE_MASTER_KEYS = both
    report = run("rotate_master_key")
    assert (report["waiting"], report["retirable"], report["older_snapshots"]) == ([1], [], {"1": 1})
    with FileUpload(alice, target_at(alice, ["x"]), size=3) as upload:
        upload.write(b"abc")
        upload.complete()
        run("snapshot")
        upload.commit()
    report = run("rotate_master_key")
    assert (report["waiting"], report["retirable"]) == ([], [1])
    # With the new key alone the drive can be rebuilt from that snapshot, and what is newer comes back too.
    settings.CLOUDSTORE_MASTER_KEYS = {2: NEW}
    arguments = places(*two)
    drop_database()
    found = run("rebuild", *arguments)
    assert found["snapshot"]["master_keys"] == [2] and found["objects"]["contents"] == 1
    assert unread() == [] and len(tree()) == 2
    settings.CLOUDSTORE_SNAPSHOT_KEEP = 1
    run("epoch_confirm")
    clock.advance(days=40)
    run("snapshot")
    snapshots.retain()
    assert run("rotate_master_key")["older_snapshots"] == {}


def test_an_upload_in_progress_keeps_its_key_until_it_is_done(
    two: list[Broker], alice: User, both: dict[int, bytes], settings: Any
) -> None:
    """Its headers carry the old key: so does its row, and the snapshot says that the old one is needed."""
    with FileUpload(alice, target_at(alice, ["x"]), size=3) as upload:
        settings.CLOUDSTORE_MASTER_KEYS = both
        report = run("rotate_master_key")
        assert (report["contents"], report["uploading"], report["in_use"]) == (0, 1, [1])
        upload.write(b"abc")
        upload.complete()
        assert run("snapshot")["master_keys"] == [1, 2]
        upload.commit()
    objects = [data for name, data in Objects(two[0]).items() if name.startswith("cs/")]
    assert [parse_header(data).key_version for data in objects] == [1]
    report = run("rotate_master_key")
    assert (report["contents"], report["waiting"]) == (1, [1])
    run("snapshot")
    assert run("rotate_master_key", "--dry-run")["retirable"] == [1]


@pytest.mark.parametrize("time", [1, 2, 3, 7])
def test_a_crash_at_any_row_is_gone_on_with(
    put: Put, two: list[Broker], alice: User, both: dict[int, bytes], settings: Any, time: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from console import rotation

    monkeypatch.setattr(rotation, "BATCH", 2)
    for number in range(7):
        put(alice, f"{number}", b"x" * number)
    settings.CLOUDSTORE_MASTER_KEYS = both
    with crash_at("rotation.content_wrapped", time), pytest.raises(Crash):
        run("rotate_master_key")
    assert unread() == []
    done = Content.objects.filter(key_version=2).count()
    assert done == (time - 1) // 2 * 2
    assert run("rotate_master_key")["contents"] == 7 - done
    assert versions() == {2} and unread() == []


def test_a_missing_old_key_stops_it_with_words(
    put: Put, two: list[Broker], alice: User, settings: Any
) -> None:
    put(alice, "f", b"data")
    settings.CLOUDSTORE_MASTER_KEYS = {2: NEW}
    with pytest.raises(CommandError, match="version 1 is not configured"):
        run("rotate_master_key")
    assert versions() == {1}


def test_uploads_and_downloads_go_on(
    put: Put, two: list[Broker], alice: User, both: dict[int, bytes], settings: Any
) -> None:
    for number in range(10):
        put(alice, f"{number}", os.urandom(100))
    settings.CLOUDSTORE_MASTER_KEYS = both

    def work(i: int) -> Any:
        if i == 0:
            return run("rotate_master_key")["in_use"]
        for number in range(8):
            put(alice, f"{i}-{number}", os.urandom(50))
            assert unread() == []
        return None

    results = race(3, work)
    assert not [result for result in results if isinstance(result, Exception)], results
    assert run("rotate_master_key")["in_use"] == [2]
    reconcile.run_to_rest()
    assert unread() == [] and run("fsck", "--full") == {"findings": []}


def test_a_process_that_started_before_opens_what_is_wrapped_anew(
    put: Put, two: list[Broker], alice: User, both: dict[int, bytes], settings: Any, clock: VirtualClock,
    monkeypatch: pytest.MonkeyPatch, expect_log: Callable[..., None],
) -> None:  # fmt: skip
    """The secrets' file has the key by then. The process goes on sealing with its own until it starts anew, and a
    further run wraps that."""
    old = settings.CLOUDSTORE_MASTER_KEYS
    put(alice, "f", b"data")
    settings.CLOUDSTORE_MASTER_KEYS = both
    run("rotate_master_key")
    settings.CLOUDSTORE_MASTER_KEYS = old
    monkeypatch.setattr(keyring, "_late", {})
    monkeypatch.setattr(keyring, "_late_read", float("-inf"))
    reads = []
    settings.CLOUDSTORE_READ_MASTER_KEYS = lambda: reads.append(1) or {}
    for _ in range(3):
        with pytest.raises(keyring.UnknownMasterKey):
            unread()
    assert len(reads) == 1, "the file is not read for every request"
    clock.advance(seconds=keyring.LATE_EVERY)
    settings.CLOUDSTORE_READ_MASTER_KEYS = lambda: both
    assert unread() == []
    put(alice, "later", b"more")
    assert versions() == {1, 2}


def test_the_secrets_file_gets_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess
    import sys

    from cloudstore.config import BASE_DIR, keys_in_file

    env = {
        name: value
        for name, value in os.environ.items()
        if name not in ("SECRET_KEY", "CLOUDSTORE_MASTER_KEYS")
    }
    env |= {
        "CLOUDSTORE_DATA": str(tmp_path),
        "CLOUDSTORE_SECRETS": str(tmp_path / "s.env"),
        "ENV_FILE": "/nonexistent",
    }

    def call(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cloudstore.secretfile", *arguments]
        return subprocess.run(
            command, env={**env, **more}, cwd=BASE_DIR, capture_output=True, text=True, timeout=60
        )

    assert "they come from the environment" in call("--add-master-key").stderr
    assert call().returncode == 0
    first = keys_in_file(tmp_path / "s.env")
    text = (tmp_path / "s.env").read_text()
    done = call("--add-master-key")
    assert (done.returncode, "Added master key 2" in done.stderr) == (0, True)
    second = keys_in_file(tmp_path / "s.env")
    assert set(second) == {1, 2} and second[1] == first[1] and len(second[2]) == 32 and second[2] != first[1]
    assert (tmp_path / "s.env").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "s.env").read_text().startswith(text.rstrip("\n"))
    assert [path.name for path in tmp_path.iterdir()] == ["s.env"]
    other = call(
        "--add-master-key", CLOUDSTORE_MASTER_KEYS="1:" + "a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s="
    )
    assert other.returncode == 1 and "gives other master keys" in other.stderr
    assert keys_in_file(tmp_path / "s.env") == second
    assert call("--nonsense").returncode == 2

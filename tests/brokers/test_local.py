"""The local driver: what is on the disk when, what an outage looks like, and what is never followed."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from brokers.drivers import local as local_module
from brokers.drivers.local import LocalBroker, mount_point_of
from brokers.errors import (
    InvalidKey,
    Misconfigured,
    NotFound,
    OutOfSpace,
    ReadOnly,
    Unauthorized,
    Unavailable,
)
from brokers.models import Health
from brokers.services import InvalidOptions, add_broker, check_options

pytestmark = pytest.mark.only_on("sqlite")

KEY = "cs/ab/" + "ab" * 16


@pytest.fixture
def root(roots) -> Path:
    return roots / "disk"


@pytest.fixture
def broker(root) -> LocalBroker:
    options, _secrets = check_options("local", {"root": str(root)})
    made = LocalBroker(options)
    made.prepare()
    return made


class Calls:
    """Records the calls that decide what is on the disk, and fails those that a test names."""

    def __init__(self, monkeypatch) -> None:
        self.seen: list[tuple[str, str]] = []
        self.failing: dict[str, int] = {}
        self.paths: dict[int, str] = {}
        for name in ("open", "write", "fdatasync", "fsync", "replace", "mkdir", "unlink"):
            monkeypatch.setattr(local_module.os, name, self._wrapped(name, getattr(os, name)))

    def _wrapped(self, name, original):
        def call(first, *rest, **named):
            if isinstance(first, int):
                about = os.readlink(f"/proc/self/fd/{first}")
            else:
                about = str(first)
            if name == "replace":
                about = os.readlink(f"/proc/self/fd/{named['dst_dir_fd']}") + f"/{rest[0]}"
            if name != "open":
                self.seen.append((name, about))
            number = self.failing.get(name)
            if number:
                raise OSError(number, os.strerror(number))
            return original(first, *rest, **named)

        return call


# -- durable, whole ----------------------------------------------------------------------------------------


def test_b16_written_synced_renamed_and_the_folder_synced(monkeypatch, broker, root):
    broker.upload_file(b"first", "cs/ab/first")  # the folders are there and known from now on
    calls = Calls(monkeypatch)
    broker.upload_file(b"bytes", KEY)
    steps = [(name, about) for name, about in calls.seen if name != "mkdir"]
    temporary = steps[0][1]
    assert steps == [
        ("write", temporary),
        ("fdatasync", temporary),
        ("replace", str(root / KEY)),
        ("fsync", str(root / "cs/ab")),
    ]
    assert Path(temporary).parent == root / ".tmp" and not os.listdir(root / ".tmp")


def test_b16_the_names_of_new_folders_are_synced_before_success(monkeypatch, broker, root):
    calls = Calls(monkeypatch)
    broker.upload_file(b"bytes", KEY)
    synced = [about for name, about in calls.seen if name == "fsync"]
    assert synced.index(str(root)) < synced.index(str(root / "cs")) < synced.index(str(root / "cs/ab"))
    assert calls.seen[-1] == ("fsync", str(root / "cs/ab"))


def test_another_process_syncs_the_folders_that_it_did_not_make(monkeypatch, broker, root):
    broker.upload_file(b"bytes", KEY)
    other = LocalBroker(broker.options)
    calls = Calls(monkeypatch)
    other.upload_file(b"bytes", KEY + "0")
    assert {str(root), str(root / "cs")} <= {about for name, about in calls.seen if name == "fsync"}


def test_without_sync_nothing_waits_for_the_disk(monkeypatch, broker):
    fast = LocalBroker({**broker.options, "sync": False})
    calls = Calls(monkeypatch)
    fast.upload_file(b"bytes", KEY)
    fast.delete_file(KEY)
    assert not {"fsync", "fdatasync"} & {name for name, _about in calls.seen}


def test_files_are_the_owners_alone(broker, root):
    broker.upload_file(b"bytes", KEY)
    assert stat.S_IMODE((root / KEY).stat().st_mode) == 0o600
    assert stat.S_IMODE((root / "cs").stat().st_mode) == 0o700


@pytest.mark.parametrize("step", ["write", "fdatasync", "replace"])
@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, OutOfSpace),
        (errno.EDQUOT, OutOfSpace),
        (errno.EROFS, ReadOnly),
        (errno.EIO, Unavailable),
    ],
)
def test_a_failed_step_leaves_nothing(monkeypatch, broker, root, step, number, kind):
    broker.upload_file(b"first", "cs/ab/first")
    with monkeypatch.context() as patch:
        calls = Calls(patch)
        calls.failing[step] = number
        with pytest.raises(kind):
            broker.upload_file(b"bytes", KEY)
        assert [name for name, _about in calls.seen].count("fdatasync") <= 1, (
            "a failed sync is not tried again"
        )
    with pytest.raises(NotFound):
        broker.download_file(KEY)
    assert not os.listdir(root / ".tmp") and os.listdir(root / "cs/ab") == ["first"]
    assert broker.upload_file(b"bytes", KEY) == KEY and broker.download_file(KEY) == b"bytes"


def test_short_writes_are_continued(monkeypatch, broker):
    original = os.write
    with monkeypatch.context() as patch:
        patch.setattr(local_module.os, "write", lambda file, data: original(file, bytes(data[:3])))
        broker.upload_file(b"more than three bytes", KEY)
    assert broker.download_file(KEY) == b"more than three bytes"


def test_a_reader_never_sees_a_part(broker):
    """Two contents, written over and over: every read is one of them, whole."""
    contents = (b"a" * 300_000, b"b" * 300_000)
    broker.upload_file(contents[0], KEY)
    stop, wrong = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            if broker.download_file(KEY) not in contents:
                wrong.append(1)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(60):
        broker.upload_file(contents[number % 2], KEY)
    stop.set()
    for reader in readers:
        reader.join()
    assert not wrong


def test_what_a_dead_process_left_is_removed_when_it_is_old(broker, root):
    old, new = root / ".tmp/old", root / ".tmp/new"
    old.write_bytes(b"x")
    new.write_bytes(b"x")
    os.utime(old, (1, 1))
    broker.probe()
    assert not old.exists() and new.exists()
    assert [f.path for f in broker.list_files()] == []


# -- outages and refusals ----------------------------------------------------------------------------------


def test_a_vanished_root_is_an_outage_for_everything(broker, root):
    broker.upload_file(b"bytes", KEY)
    root.rename(root.with_name("elsewhere"))
    for call in (
        lambda: broker.download_file(KEY),
        lambda: broker.stat_file(KEY),
        lambda: broker.delete_file(KEY),
        lambda: broker.upload_file(b"x", KEY),
        lambda: list(broker.list_files("cs/")),
        broker.get_storage_info,
        broker.probe,
    ):
        with pytest.raises(Unavailable, match="is not there"):
            call()
    assert not root.exists()
    root.with_name("elsewhere").rename(root)
    assert broker.download_file(KEY) == b"bytes"


def test_an_unmounted_disk_is_an_outage(broker, root, roots):
    """The mount that was there when the broker was added is gone; its empty folder has stayed."""
    unmounted = LocalBroker({**broker.options, "mount_point": str(roots)})
    for call in (
        lambda: unmounted.download_file(KEY),
        lambda: list(unmounted.list_files()),
        unmounted.prepare,
    ):
        with pytest.raises(Unavailable, match="is not mounted"):
            call()


def test_the_mount_is_remembered(root, broker):
    assert broker.options["mount_point"] == str(mount_point_of(root))
    assert mount_point_of(Path("/proc/self")) == Path("/proc")
    kept, _secrets = check_options("local", {"root": str(root), "mount_point": str(root.parent)})
    assert kept["mount_point"] == str(root.parent)
    found, _secrets = check_options("local", {"root": str(root), "mount_point": "/elsewhere"})
    assert found["mount_point"] == str(mount_point_of(root))


def test_a_root_that_is_no_folder_any_more(broker, root):
    root.rename(root.with_name("elsewhere"))
    root.symlink_to(root.with_name("elsewhere"))
    with pytest.raises(Misconfigured, match="is not a folder"):
        broker.stat_file(KEY)
    root.unlink()
    root.write_bytes(b"")
    with pytest.raises(Misconfigured, match="is not a folder"):
        broker.stat_file(KEY)


def _refusing(monkeypatch, name: str, number: int) -> None:
    def refuse(*arguments, **named):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(local_module.os, name, refuse)


def test_refused_writes_and_refused_reads_differ(monkeypatch, broker):
    broker.upload_file(b"x", KEY)
    for name, number, call, kind in [
        ("unlink", errno.EACCES, lambda: broker.delete_file(KEY), ReadOnly),
        ("unlink", errno.EROFS, lambda: broker.delete_file(KEY), ReadOnly),
        ("unlink", errno.EPERM, lambda: broker.delete_file(KEY), ReadOnly),
        ("pread", errno.EACCES, lambda: broker.download_file(KEY), Unauthorized),
        ("pread", errno.EIO, lambda: broker.download_file(KEY), Unavailable),
        ("scandir", errno.EIO, lambda: list(broker.list_files()), Unavailable),
        ("fstatvfs", errno.ESTALE, broker.get_storage_info, Unavailable),
        ("write", errno.ENOSPC, broker.probe, OutOfSpace),
        ("write", errno.EROFS, broker.probe, ReadOnly),
    ]:
        with monkeypatch.context() as patch:
            _refusing(patch, name, number)
            with pytest.raises(kind):
                call()


@pytest.mark.django_db
def test_a_broker_whose_root_vanishes_is_offline_and_nothing_is_made_in_its_place(clock, roots):
    from brokers import health

    broker = add_broker("Disk", "local", "here", {"root": str(roots / "a")})
    (roots / "a").rename(roots / "gone")
    for _ in range(3):
        clock.advance(hours=1)
        row = health.poll(broker.pk)
        assert (row.health, row.health_reason) == (Health.OFFLINE, "unavailable")
    assert not (roots / "a").exists()
    (roots / "gone").rename(roots / "a")
    health.poll(broker.pk)
    assert health.poll(broker.pk).health == Health.ONLINE


@pytest.mark.django_db
def test_an_emptied_folder_is_blank_and_is_taken_over(clock, roots):
    from brokers import health

    broker = add_broker("Disk", "local", "here", {"root": str(roots / "a")})
    (roots / "a" / "cs-marker").unlink()
    assert health.poll(broker.pk).health_reason == "blank"
    clock.advance(seconds=120)
    row = health.poll(broker.pk)
    assert row.health == Health.ONLINE and row.blank_adopted_at == clock.now()


# -- where it may go ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/etc/passwd",
        "../x",
        "cs/../../x",
        "cs//x",
        "cs/./x",
        ".hidden",
        "cs/.tmp/x",
        "a\0b",
        "a\\b",
        "x" * 256,
    ],
)
def test_names_that_could_leave_the_root_are_refused(broker, name):
    for call in (
        lambda: broker.upload_file(b"x", name),
        lambda: broker.download_file(name),
        lambda: broker.stat_file(name),
        lambda: broker.delete_file(name),
    ):
        with pytest.raises(InvalidKey):
            call()


def test_links_are_never_followed(broker, root, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (root / "cs").mkdir(exist_ok=True)
    (root / "cs/link").symlink_to(outside)
    (root / "cs/file").symlink_to(outside / "secret")
    for call in (
        lambda: broker.download_file("cs/file"),
        lambda: broker.download_file("cs/link/secret"),
        lambda: broker.upload_file(b"x", "cs/link/new"),
        lambda: broker.delete_file("cs/link/secret"),
    ):
        with pytest.raises(InvalidKey):
            call()
    assert list(broker.list_files()) == []
    broker.upload_file(b"mine", "cs/file")  # replaces the link, not what it points to
    assert (outside / "secret").read_bytes() == b"secret" and os.listdir(outside) == ["secret"]


def test_what_is_no_file_is_not_read(broker, root):
    os.mkfifo(root / "pipe")
    (root / "folder").mkdir()
    with pytest.raises(NotFound):
        broker.download_file("pipe")
    with pytest.raises((NotFound, InvalidKey)):
        broker.download_file("folder")


@pytest.mark.parametrize("given", ["relative/path", "/etc", "/"])
def test_a_root_lies_under_the_permitted_folders(roots, given):
    with pytest.raises(InvalidOptions, match="root"):
        check_options("local", {"root": given})


def test_a_link_does_not_lead_out_of_the_permitted_folders(roots, tmp_path):
    (tmp_path / "outside").mkdir()
    (roots / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(InvalidOptions, match="CLOUDSTORE_LOCAL_ROOTS"):
        check_options("local", {"root": str(roots / "link" / "disk")})
    with pytest.raises(InvalidOptions, match="CLOUDSTORE_LOCAL_ROOTS"):
        check_options("local", {"root": str(roots / ".." / "outside")})
    (roots / "file").write_bytes(b"")
    with pytest.raises(InvalidOptions, match="is not a folder"):
        check_options("local", {"root": str(roots / "file")})


def test_capacity_is_the_file_systems(broker, root):
    info = broker.get_storage_info()
    found = os.statvfs(root)
    assert info["total"] == found.f_blocks * found.f_frsize
    assert info["available"] <= info["total"] and info["used"] <= info["total"]

"""The Dropbox driver: the contract, and what it does beside it, through the SDK against a server of the protocol."""

from __future__ import annotations

import json

import pytest

from brokers import entropy, health
from brokers.driver import MAX_OBJECT_SIZE
from brokers.errors import (
    Corrupt,
    InvalidKey,
    Misconfigured,
    RangeError,
    Unavailable,
)
from brokers.models import Health
from brokers.names import MARKER_NAME, new_object_key
from brokers.open import OpenBroker
from brokers.services import add_broker
from brokers.testing import conformance
from brokers.testing.conformance import Conformance
from tests.brokers.dropbox_place import broker_fixture, dropbox_fixture, made, one_dropbox_fixture  # noqa: F401
from tests.servers.fake_dropbox import (
    BLOCK,
    SECRETS,
    DropboxCall,
    content_hash,
    error,
    told,
)
from tests.servers.faults import Answer

pytestmark = pytest.mark.only_on("sqlite")


@pytest.mark.parametrize("name", conformance.names())
@pytest.mark.parametrize("folder", ["", "Cloud/Store"])
def test_the_contract(dropbox, folder, name):
    made(dropbox, folder=folder).prepare()
    check = Conformance(
        lambda: OpenBroker(made(dropbox, folder=folder)),
        secrets=SECRETS,
        vanished=lambda: OpenBroker(made(dropbox, folder="never made")),
    ).run_one(name)
    assert check.ok, check.detail
    assert not check.skipped, check.detail
    left = {path.rpartition("/")[2] for path in dropbox.files()}
    assert left <= {"cs-probe"}, "something is left"
    assert not [path for path in dropbox.entries if path.endswith("/cs-check")], "a folder is left"


# -- bytes and names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, MAX_OBJECT_SIZE])
def test_every_size_has_dropboxs_hash(dropbox, broker, size):
    """The server refuses bytes whose hash is another; it computes the hash by itself."""
    data = entropy.token_bytes(size)
    name = broker.upload_file(data, new_object_key())
    assert dropbox.calls[-1].argument["content_hash"] == content_hash(data)
    assert broker.download_file(name) == data


def test_an_upload_is_one_request_that_renames_and_replaces_nothing(dropbox, broker):
    name = new_object_key()
    broker.upload_file(b"bytes", name)
    broker.upload_file(b"bytes", name)
    assert dropbox.routes() == ["files/upload"] * 2
    assert dropbox.calls[0].argument["path"] == f"/{name}"
    with pytest.raises(Corrupt, match="stay"):
        broker.upload_file(b"other", name)
    assert dropbox.files() == {f"/{name}": b"bytes"}
    for data in (b"one", b"two"):
        broker.upload_file(data, MARKER_NAME)
    assert dropbox.files() == {f"/{name}": b"bytes", f"/{MARKER_NAME}": b"two"}


def test_an_upload_whose_answer_was_lost_can_be_repeated(dropbox, broker):
    name = new_object_key()
    dropbox.rules.append(lambda call: "drop" if call.number == 1 else None)
    with pytest.raises(Unavailable):
        broker.upload_file(b"bytes", name)
    assert broker.upload_file(b"bytes", name) == name
    assert dropbox.files() == {f"/{name}": b"bytes"}


def test_a_conflict_of_the_same_bytes_is_success(dropbox, broker):
    """Two uploads at the same moment."""
    name = new_object_key()
    dropbox.put(f"/{name}", b"bytes")
    dropbox.rules.append(lambda call: error(409, "path", "conflict") if "upload" in call.route else None)
    assert broker.upload_file(b"bytes", name) == name
    dropbox.remove(f"/{name}")
    with pytest.raises(Unavailable, match="holds no file"):
        broker.upload_file(b"bytes", name)


@pytest.mark.parametrize(
    "change", [{"content_hash": "0" * 64}, {"size": 4}, {"path_lower": "/cs/x (1)", "name": "x (1)"}]
)
def test_what_was_stored_otherwise_than_sent_goes_again(dropbox, broker, change):
    name = new_object_key()

    def lie(call: DropboxCall) -> Answer | None:
        if call.route != "files/upload":
            return None
        dropbox.put(f"/{name}", b"bytes")
        dropbox.put("/cs/x (1)", b"bytes")
        about = dropbox.about(change.get("path_lower", f"/{name}"))
        return told({**about, **change})

    dropbox.rules.append(lie)
    with pytest.raises(Unavailable, match="something else"):
        broker.upload_file(b"bytes", name)
    assert change.get("path_lower", f"/{name}") not in dropbox.files() and len(dropbox.files()) == 1


def test_bytes_that_changed_on_the_way_in(dropbox, broker):
    dropbox.rules.append(lambda call: error(409, "content_hash_mismatch"))
    with pytest.raises(Unavailable, match="changed on the way"):
        broker.upload_file(b"bytes", new_object_key())


def test_bytes_that_changed_on_the_way_out(dropbox, broker):
    dropbox.put("/x", b"right")
    result = {"Dropbox-API-Result": json.dumps(dropbox.about("/x"))}
    for body in (b"wrong", b"righ", b""):
        dropbox.rules[:] = [lambda call, body=body: Answer(200, body, result)]
        with pytest.raises(Unavailable, match="hash"):
            broker.download_file("x")
    dropbox.rules[:] = [lambda call: Answer(200, b"righ", result, special="short")]
    with pytest.raises(Unavailable):
        broker.download_file("x")


def test_more_than_was_asked_for_is_not_read(dropbox, broker):
    dropbox.put("/x", bytes(100))
    result = {"Dropbox-API-Result": json.dumps(dropbox.about("/x"))}
    part = {**result, "Content-Range": "bytes 5-14/100"}
    dropbox.rules[:] = [lambda call: Answer(206, bytes(100_000), part)]
    with pytest.raises(Corrupt):
        broker.download_file("x", 5, 10)
    dropbox.rules[:] = [lambda call: Answer(200, b"", result, special="endless")]
    with pytest.raises(Corrupt):
        broker.download_file("x")
    assert dropbox.sent_endlessly < 10 * MAX_OBJECT_SIZE


@pytest.mark.parametrize(
    ("body", "told_range"),
    [(b"0123456789", "bytes 0-9/100"), (b"0123456789", None), (b"01234", "bytes 5-9/100")],
)
def test_another_range_than_was_asked_for_is_no_range(dropbox, broker, body, told_range):
    dropbox.put("/x", bytes(100))
    headers = {"Dropbox-API-Result": json.dumps(dropbox.about("/x"))}
    if told_range:
        headers["Content-Range"] = told_range
    dropbox.rules[:] = [lambda call: Answer(206, body, headers)]
    with pytest.raises(Unavailable, match="range"):
        broker.download_file("x", 5, 10)


def test_a_whole_object_in_place_of_a_range_is_cut(dropbox, broker):
    data = bytes(range(100))
    dropbox.put("/x", data)
    headers = {"Dropbox-API-Result": json.dumps(dropbox.about("/x"))}
    dropbox.rules[:] = [lambda call: Answer(200, data, headers)]
    assert broker.download_file("x", 5, 10) == data[5:15]
    assert broker.download_file("x", 95) == data[95:]
    with pytest.raises(RangeError):
        broker.download_file("x", 100, 1)


def test_names_that_dropbox_does_not_take(dropbox, broker):
    for name in ("", "/x", "x/", "a//b", "../x", "a/./b", "a\nb", "x" * 256, "a\\b", "\ud800"):
        with pytest.raises(InvalidKey):
            broker.upload_file(b"", name)
    assert not dropbox.calls


def test_other_peoples_files_keep_their_names(dropbox):
    broker = made(dropbox, folder="My Drive")
    broker.prepare()
    dropbox.put("/My Drive/Photos/Summer Été.JPG", b"jpeg")
    dropbox.put("/My Drive/CS/ab/" + "0" * 32, b"ours, in a folder that somebody renamed")
    found = {entry.path: entry.size for entry in broker.list_files()}
    assert found == {"Photos/Summer Été.JPG": 4, "cs/ab/" + "0" * 32: 39}
    for name, size in found.items():
        assert len(broker.download_file(name)) == broker.stat_file(name).size == size
    broker.close()


# -- listing, deleting, room -----------------------------------------------------------------------------------


def test_a_listing_follows_the_cursor(dropbox, broker):
    names = {broker.upload_file(b"x", new_object_key()) for _ in range(9)}
    dropbox.most_entries = 2
    dropbox.calls.clear()
    assert {entry.path for entry in broker.list_files("cs/")} == names
    assert dropbox.count("files/list_folder") == 1 and dropbox.count("files/list_folder/continue") > 4


def test_a_listing_that_lost_its_place_says_so(dropbox, broker):
    for _ in range(5):
        broker.upload_file(b"x", new_object_key())
    broker.list_page = 2
    listing = broker.list_files("cs/")
    next(listing)
    dropbox.forget_cursors()
    with pytest.raises(Unavailable, match="begin anew"):
        list(listing)


def test_a_listing_that_breaks_off_or_turns_in_circles_is_not_complete(dropbox, broker):
    for _ in range(5):
        broker.upload_file(b"x", new_object_key())
    broker.list_page = 2
    same = {"entries": [], "cursor": "2-1", "has_more": True}
    for answer in (error(500), Answer(special="reset"), told({}), told(same)):
        dropbox.rules[:] = [
            lambda call, answer=answer: (
                answer
                if call.route.endswith("continue")
                else (told(same) if answer.body == told(same).body else None)
            )
        ]
        with pytest.raises(Unavailable):
            list(broker.list_files("cs/"))


def test_what_goes_while_a_listing_runs_is_not_listed(dropbox, broker):
    names = sorted(broker.upload_file(b"x", new_object_key()) for _ in range(6))
    broker.list_page = 2
    listing = broker.list_files("cs/")
    first = next(listing).path
    gone = next(name for name in reversed(names) if name != first)
    dropbox.remove(f"/{gone}")
    assert {first, *(entry.path for entry in listing)} == {*names} - {gone}


def test_what_changes_while_a_listing_runs_is_listed_once(dropbox, broker):
    for name in (MARKER_NAME, "cs-probe", "cs-x"):
        broker.upload_file(b"x", name)
    changed = {".tag": "file", **dropbox.about(f"/{MARKER_NAME}")}
    last = told({"entries": [changed], "cursor": "2-1", "has_more": False})
    broker.list_page = 3
    dropbox.most_entries = 2
    dropbox.rules.append(lambda call: last if call.route.endswith("continue") else None)
    assert [entry.path for entry in broker.list_files("")] == [MARKER_NAME, "cs-probe"]


def test_a_prefix_asks_for_its_folder_alone(dropbox, broker):
    broker.upload_file(b"x", "cs-meta/1")
    dropbox.calls.clear()
    assert [entry.path for entry in broker.list_files("cs-meta/")] == ["cs-meta/1"]
    assert dropbox.calls[0].argument["path"] == "/cs-meta"
    assert list(broker.list_files("cs-other/")) == []
    assert list(broker.list_files("cs-meta/1/")) == [], "a file is no folder"


def test_a_delete_never_takes_a_folder(dropbox, broker):
    name = broker.upload_file(b"bytes", new_object_key())
    for folder in ("cs", name.rpartition("/")[0]):
        broker.delete_file(folder)
    assert dropbox.files() == {f"/{name}": b"bytes"}
    broker.upload_file(b"new", MARKER_NAME)
    about = dropbox.about(f"/{MARKER_NAME}")

    def changed_meanwhile(call: DropboxCall) -> Answer | None:
        if call.route != "files/get_metadata":
            return None
        dropbox.put(f"/{MARKER_NAME}", b"newer")
        return told({".tag": "file", **about})

    dropbox.rules.append(changed_meanwhile)
    with pytest.raises(Unavailable):
        broker.delete_file(MARKER_NAME)
    assert dropbox.files()[f"/{MARKER_NAME}"] == b"newer"
    dropbox.rules.clear()
    dropbox.calls.clear()
    broker.delete_file(name)
    assert dropbox.routes() == ["files/delete_v2"]


def test_tidying_leaves_what_holds_files(dropbox, broker):
    dropbox.put("/cs-check/one/a/x", b"of another run")
    dropbox.put("/cs-check/two/a/b/x", b"of this run")
    dropbox.remove("/cs-check/two/a/b/x")
    broker.tidy("cs-check")
    assert set(dropbox.entries) == {"/cs-check", "/cs-check/one", "/cs-check/one/a", "/cs-check/one/a/x"}
    dropbox.remove("/cs-check/one/a/x")
    for _ in range(2):
        broker.tidy("cs-check")
        assert not dropbox.entries


def test_the_room_is_the_accounts(dropbox, broker):
    dropbox.total = 10_000
    broker.upload_file(bytes(500), new_object_key())
    assert broker.get_storage_info() == {"total": 10_000, "used": 1500, "available": 8500}
    dropbox.total = 1400
    assert broker.get_storage_info() == {"total": 1400, "used": 1500, "available": 0}


@pytest.mark.parametrize(
    ("limit", "kind", "expected"),
    [
        (0, "off", (50_000, 40_000, 10_000)),
        (30_000, "off", (50_000, 40_000, 10_000)),
        (3000, "stop_sync", (3000, 1000, 2000)),
        (30_000, "stop_sync", (30_000, 1000, 10_000)),
    ],
)
def test_the_room_of_a_member_of_a_team(dropbox, broker, limit, kind, expected):
    dropbox.team = {
        "used": 40_000,
        "allocated": 50_000,
        "user_within_team_space_allocated": limit,
        "user_within_team_space_limit_type": {".tag": kind},
        "user_within_team_space_used_cached": 1000,
    }
    assert tuple(broker.get_storage_info().values()) == expected


def test_a_kind_of_room_that_is_not_known(dropbox, broker):
    dropbox.rules.append(lambda call: told({"used": 7, "allocation": {".tag": "galaxy"}}))
    assert broker.get_storage_info() == {"total": None, "used": 7, "available": None}


@pytest.mark.django_db
def test_a_place_from_adding_to_losing_it(dropbox, clock):
    broker = add_broker("Dropbox", "dropbox", "dropbox", dropbox.options(folder="Store"))
    assert broker.health == Health.ONLINE and broker.available == dropbox.total - dropbox.used
    assert set(dropbox.files()) == {"/Store/cs-marker", "/Store/cs-probe"}
    assert not set(SECRETS) & {*map(str, broker.options.values())}
    with pytest.raises(Misconfigured, match="already the broker"):
        add_broker("Again", "dropbox", "dropbox", dropbox.options(folder="/store"))
    dropbox.remove("/store")
    row = health.poll(broker.pk)
    assert (row.health, row.health_reason) == (Health.OFFLINE, "misconfigured")
    dropbox.linked = False
    row = health.poll(broker.pk)
    assert (row.health, row.health_reason) == (Health.OFFLINE, "unauthorized")
    assert "dropbox_connect" in row.health_detail

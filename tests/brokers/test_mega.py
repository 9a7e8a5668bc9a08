"""The MEGA driver: the contract, and what it does beside it, through mega.py against a server of the protocol."""

from __future__ import annotations

import logging
import os
import threading

import pytest

from brokers import entropy, health, marker
from brokers import open as open_module
from brokers.driver import MAX_OBJECT_SIZE
from brokers.drivers import mega_client
from brokers.drivers.mega import FOLDER_SECONDS, MegaBroker
from brokers.drivers.mega_library import Mega
from brokers.errors import Corrupt, InvalidKey, Misconfigured, NotFound, OutOfSpace, Unauthorized
from brokers.models import Health
from brokers.names import MARKER_NAME, PROBE_NAME, new_object_key
from brokers.open import OpenBroker
from brokers.services import InvalidOptions, add_broker, check_options
from brokers.testing import conformance
from brokers.testing.conformance import Conformance
from tests.brokers.mega_place import logged_out_fixture, mega_fixture, one_mega_fixture  # noqa: F401
from tests.servers.fake_mega import BIN, EMAIL, PASSWORD, ROOT, FakeMega

pytestmark = pytest.mark.only_on("sqlite")

OPTIONS = {"email": EMAIL, "password": PASSWORD, "folder": "Cloud/Store"}
# Around the ends of blocks and chunks; mega.py itself fails with 0 and with a last chunk of 16 bytes or fewer.
SIZES = [0, 1, 15, 16, 17, 131_071, 131_072, 131_073, 131_088, 131_089, 393_216, 393_217, 2_000_000]
HARD = {0, 131_073, 131_088, 393_217}


@pytest.fixture
def broker(mega) -> MegaBroker:
    made = MegaBroker(OPTIONS)
    made.prepare()
    return made


def place(mega: FakeMega) -> str:
    return mega.folder("Store", mega.folder("Cloud"))


def handle_of(locator: str) -> str:
    return locator.partition(".")[0]


@pytest.fixture
def plain(mega) -> Mega:
    """mega.py as it is."""
    library = Mega()
    library.schema, library.domain = "http", "x@" + mega.url.removeprefix("http://")
    return library.login(EMAIL, PASSWORD)


@pytest.mark.parametrize("name", conformance.names())
def test_contract(mega, name):
    MegaBroker(OPTIONS).prepare()
    check = Conformance(
        lambda: OpenBroker(MegaBroker(OPTIONS)),
        secrets=(PASSWORD,),
        vanished=lambda: OpenBroker(MegaBroker({**OPTIONS, "folder": "never made"})),
    ).run_one(name)
    assert check.ok, check.detail
    assert check.skipped == (name == "list_pages"), check.detail  # listings come whole


# -- bytes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [*SIZES, MAX_OBJECT_SIZE])
def test_every_size_is_right(mega, broker, size):
    """The server refuses a file whose MAC does not fit its bytes."""
    data = entropy.token_bytes(size)
    locator = broker.upload_file(data, new_object_key())
    assert mega.plain(handle_of(locator)) == data
    assert broker.download_file(locator) == data
    if size > 20:
        for start, length in [(1, 1), (15, 2), (16, 17), (size - 3, None), (size - 17, 400), (0, size)]:
            end = None if length is None else start + length
            assert broker.download_file(locator, start, length) == data[start:end]


@pytest.mark.parametrize("size", sorted(set(SIZES) - HARD))
def test_the_library_reads_what_the_driver_stores(mega, broker, plain, tmp_path, size):
    data = entropy.token_bytes(size)
    handle = handle_of(broker.upload_file(data, new_object_key()))
    node = plain.get_files()[handle]
    plain.download((handle, node), str(tmp_path), "read")
    assert (tmp_path / "read").read_bytes() == data


@pytest.mark.parametrize("size", sorted(set(SIZES) - HARD))
def test_the_driver_reads_what_the_library_stores(mega, broker, plain, tmp_path, size):
    data, name = entropy.token_bytes(size), new_object_key()
    (tmp_path / "given").write_bytes(data)
    plain.upload(str(tmp_path / "given"), place(mega), name)
    (found,) = broker.list_files(name)
    assert found.size == size
    assert broker.download_file(found.path) == data
    assert broker.download_file(name) == data
    if size > 5:
        assert broker.download_file(found.path, 5, 100) == data[5:105]


@pytest.mark.parametrize("size", sorted(HARD - {0}))
def test_these_sizes_are_still_what_the_library_cannot_do(broker, plain, mega, tmp_path, size):
    """Else the driver's own way could go."""
    (tmp_path / "given").write_bytes(bytes(size))
    with pytest.raises(Exception):  # noqa: B017 - whatever comes
        plain.upload(str(tmp_path / "given"), place(mega), "cs/aa/x")
    assert not list(broker.list_files())


def test_tokens_of_uploads_as_bytes(mega, broker):
    mega.raw_tokens = True
    for _ in range(5):
        assert broker.download_file(broker.upload_file(b"bytes", new_object_key())) == b"bytes"


def test_a_damaged_file_is_corrupt_as_a_whole(mega, broker):
    locator = broker.upload_file(bytes(200_000), new_object_key())
    mega.flip(handle_of(locator), 150_000)
    with pytest.raises(Corrupt, match="MAC"):
        broker.download_file(locator)
    with pytest.raises(Corrupt):
        broker.download_file(locator, 0, 200_000)
    assert broker.download_file(locator, 149_999, 3) == b"\0\1\0", "of a part nobody but the seal can tell"


def test_keys_are_from_the_one_source_of_randomness(mega, broker, monkeypatch):
    drawn: list[int] = []

    class Source:
        def token_bytes(self, count: int) -> bytes:
            drawn.append(count)
            return os.urandom(count)

        def random(self) -> float:
            return 0.5

    before = entropy.install(Source())
    try:
        broker.upload_file(b"x", "cs/aa/x")
    finally:
        entropy.install(before)
    assert drawn == [16, 8]


def test_any_buffer_is_taken(broker):
    data = entropy.token_bytes(150_000)
    for given in (bytearray(data), memoryview(data), memoryview(b"x" + data)[1:]):
        assert broker.download_file(broker.upload_file(given, new_object_key())) == data


# -- names and locators ---------------------------------------------------------------------------------------


def test_a_locator_ends_with_the_name_and_needs_no_listing(mega, broker):
    name = new_object_key()
    locator = broker.upload_file(b"bytes", name)
    assert locator.endswith(f"/{name}") and len(locator) < 100
    other, listings = MegaBroker(OPTIONS), mega.count("f")
    assert other.download_file(locator, 1, 3) == b"yte"
    assert other.stat_file(locator).size == 5
    other.delete_file(locator)
    assert mega.count("f") == listings
    assert not list(broker.list_files(name))


def test_a_bare_name_is_looked_up_anew(mega, broker):
    name = new_object_key()
    with pytest.raises(NotFound):
        broker.download_file(name)
    MegaBroker(OPTIONS).upload_file(b"by another", name)
    assert broker.download_file(name) == b"by another"
    assert broker.stat_file(name).size == 10
    broker.delete_file(name)
    assert mega.children(place(mega)) == {}
    broker.delete_file(name)


def test_a_fresh_name_costs_no_listing(mega, broker):
    broker.upload_file(b"first", new_object_key())
    listings = mega.count("f")
    for _ in range(3):
        broker.upload_file(b"more", new_object_key())
    assert mega.count("f") == listings


def test_the_same_again_stores_nothing(mega, broker):
    name = new_object_key()
    first = broker.upload_file(b"bytes", name)
    uploads = mega.count("upload")
    assert broker.upload_file(b"bytes", name) == first
    assert mega.count("upload") == uploads


def test_other_bytes_replace_those_of_a_name(mega, broker):
    name = new_object_key()
    first = broker.upload_file(b"bytes", name)
    second = broker.upload_file(b"other", name)
    assert broker.download_file(second) == b"other"
    with pytest.raises(NotFound):
        broker.download_file(first)
    assert [f.path for f in broker.list_files(name)] == [second]


def test_an_upload_whose_answer_was_lost_is_found_again(mega, broker, clock):
    """The retry's second attempt."""
    name = new_object_key()
    mega.rules.append(lambda call: "drop" if call.command == "p" and call.number == 3 else None)
    opened = OpenBroker(broker)
    locator = opened.put(name, b"bytes")
    opened.retire()
    assert mega.count("p") == 3, "two folders, one file"
    assert [f.path for f in broker.list_files()] == [locator]


def test_names_stored_twice_are_listed_twice_and_told_apart(mega, broker):
    """Two processes that write one name at the same time: MEGA keeps both."""
    name = new_object_key()
    other = MegaBroker(OPTIONS)
    locators = {broker.upload_file(b"one", name), other.upload_file(b"two", name)}
    assert len(locators) == 2
    assert {f.path for f in broker.list_files(name)} == locators
    first, second = sorted(locators)
    broker.delete_file(first)
    assert [f.path for f in other.list_files(name)] == [second]
    other.upload_file(b"two", name)
    broker.upload_file(b"two", name)
    broker.delete_file(name)
    assert not list(broker.list_files(name)), "a bare name stands for all of them"


def test_what_others_keep_in_the_folder_is_left_alone(mega, broker):
    folder = place(mega)
    mega.plant("cs", folder)
    mega.plant("a broken one", folder, kind=0)
    mega.nodes["ODDhandl"] = {
        "h": "ODDhandl",
        "t": 0,
        "p": folder,
        "u": "someone",
        "a": "?",
        "k": "x:y",
        "s": 1,
    }
    locator = broker.upload_file(b"ours", new_object_key())
    assert [f.path for f in broker.list_files()] == [locator]


def test_names_that_are_none(broker):
    for name in ("", "x" * 401):
        with pytest.raises(InvalidKey):
            broker.upload_file(b"x", name)


# -- the folder -----------------------------------------------------------------------------------------------


def test_prepare_makes_the_folders_once(mega, broker):
    MegaBroker(OPTIONS).prepare()
    broker.prepare()
    assert list(mega.children(ROOT).values()) == ["Cloud"]
    assert list(mega.children(mega.folder("Cloud")).values()) == ["Store"]


def test_of_two_folders_with_one_name_the_oldest_is_meant(mega):
    old, _new = mega.plant("Cloud", stamp=5), mega.plant("Cloud", stamp=9)
    broker = MegaBroker({**OPTIONS, "folder": "Cloud"})
    broker.upload_file(b"x", new_object_key())
    assert len(mega.children(old)) == 1


def test_a_folder_that_is_gone_is_no_empty_place(mega, broker):
    locator = broker.upload_file(b"x", new_object_key())
    folder = place(mega)
    mega._d({"n": folder})
    for call in (
        lambda: list(broker.list_files()),
        lambda: broker.download_file("cs/aa/x"),
        lambda: broker.upload_file(b"x", new_object_key()),
        lambda: MegaBroker(OPTIONS).upload_file(b"x", new_object_key()),
        broker.probe,
    ):
        with pytest.raises(Misconfigured, match="folder"):
            call()
    with pytest.raises(NotFound):
        broker.download_file(locator)
    MegaBroker(OPTIONS).prepare()
    OpenBroker(broker).put(new_object_key(), b"goes to the new one")
    assert len(mega.children(place(mega))) == 1


def test_a_probe_notices_that_the_folder_was_thrown_away(mega, clock, broker):
    """The rubbish bin takes files like any folder, and is emptied some day."""
    broker.probe()
    mega.nodes[mega.folder("Cloud")]["p"] = BIN
    broker.probe()
    clock.advance(seconds=FOLDER_SECONDS)
    with pytest.raises(Misconfigured):
        broker.probe()


def test_a_probe_leaves_nothing_and_removes_what_a_dead_one_left(mega, clock, broker):
    broker.upload_file(b"CloudStore probe\n", PROBE_NAME)
    clock.advance(days=1)
    broker.probe()
    assert mega.children(place(mega)) == {}
    assert mega.count("d") == 2


def test_a_delete_is_final(mega, broker):
    locator = broker.upload_file(b"x", new_object_key())
    broker.delete_file(locator)
    assert mega.children(BIN) == {} and mega.used == 0
    broker.delete_file(locator)


def test_the_room(mega, broker):
    broker.upload_file(bytes(1000), new_object_key())
    assert broker.get_storage_info() == {"total": mega.total, "used": 1000, "available": mega.total - 1000}
    mega.total = 500
    assert broker.get_storage_info()["available"] == 0
    mega.total = -1
    assert broker.get_storage_info() == {"total": None, "used": 1000, "available": None}
    mega.total = 1001
    with pytest.raises(OutOfSpace):
        broker.upload_file(bytes(1000), new_object_key())


# -- the session ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "zeros"), [(1, False), (2, False), (2, True)])
def test_accounts_old_and_new(mega, logged_out, version, zeros):
    mega.version, mega.leading_zero = version, zeros
    MegaBroker(OPTIONS).prepare()
    assert place(mega)


def test_one_login_for_all_threads_and_drivers(mega, broker, logged_out):
    logins, together = mega.count("us"), threading.Barrier(8)
    locators: list[str] = []

    def work() -> None:
        together.wait()
        locators.append(MegaBroker(OPTIONS).upload_file(b"x", new_object_key()))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert mega.count("us") == logins + 1
    assert len(set(locators)) == 8


def test_numbers_are_not_used_twice(mega, broker):
    for _ in range(3):
        broker.upload_file(b"x", new_object_key())
    assert len(mega.ids) == len(set(mega.ids)) and mega.replayed == 0


def test_a_session_that_has_ended_is_renewed_once(mega, logged_out, broker):
    locator = broker.upload_file(b"bytes", new_object_key())
    mega.sessions.clear()
    assert broker.download_file(locator) == b"bytes"
    assert mega.count("us") == 2
    mega.rules.append(lambda call: -15 if call.command == "g" else None)
    with pytest.raises(Unauthorized, match="session"):
        broker.download_file(locator)
    assert mega.count("us") == 3


def test_another_password_is_another_session(mega, logged_out, broker):
    with pytest.raises(Unauthorized, match="password"):
        MegaBroker({**OPTIONS, "password": "wrong"}).prepare()
    broker.probe()
    assert mega.count("us") == 2


def test_a_refused_login_is_not_tried_again_at_once(mega, logged_out, clock):
    broker = MegaBroker({**OPTIONS, "password": "wrong"})
    for _ in range(3):
        with pytest.raises(Unauthorized):
            broker.get_storage_info()
    assert mega.count("us") == 1
    clock.advance(seconds=61)
    with pytest.raises(Unauthorized):
        broker.get_storage_info()
    assert mega.count("us") == 2


def test_a_forked_child_logs_in_for_itself(mega, logged_out, broker):
    locator = broker.upload_file(b"bytes", new_object_key())
    child = os.fork()
    if child == 0:
        done = 1
        try:
            done = 0 if MegaBroker(OPTIONS).download_file(locator) == b"bytes" else 2
        finally:
            os._exit(done)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert mega.count("us") == 2
    assert broker.download_file(locator) == b"bytes"
    assert mega.count("us") == 2


def test_the_library_is_mended_only_while_it_is_imported():
    import asyncio

    assert not hasattr(asyncio, "coroutine")


# -- in the product -------------------------------------------------------------------------------------------


def test_options():
    plain, secrets = check_options(
        "mega", {"email": "Drive@Example.com", "password": " p ", "folder": "/a/b/"}
    )
    assert plain == {"email": "drive@example.com", "folder": "a/b"} and secrets == {"password": " p "}
    assert check_options("mega", {"email": "a@b.de", "password": "p"})[0]["folder"] == "CloudStore"
    for wrong in ({"email": "nobody"}, {"folder": "a//b"}, {"folder": "../x"}, {"password": ""}):
        with pytest.raises(InvalidOptions):
            check_options("mega", {"email": "a@b.de", "password": "p", **wrong})


@pytest.mark.django_db
def test_a_broker_of_the_product(mega):
    row = add_broker("Extra", "mega", "mega", OPTIONS)
    assert row.health == Health.ONLINE and row.marker_locator.endswith(MARKER_NAME)
    opened = open_module.open_broker(row)
    found = marker.find(opened)
    assert found is not None and marker.parse(found[1]) == row.marker
    with pytest.raises(Misconfigured):
        add_broker("Twice", "mega", "elsewhere", OPTIONS)
    opened.delete(row.marker_locator)
    assert health.poll(row.pk).health_reason == "blank"
    opened.put(new_object_key(), b"x")
    assert health.poll(row.pk).health_reason == "marker_missing"
    mega._d({"n": mega.folder("Cloud")})
    assert health.poll(row.pk).health_reason == "misconfigured"


def test_no_secret_in_what_is_printed_or_logged(mega, logged_out, broker, caplog):
    # By name, for it is quiet otherwise.
    caplog.set_level(logging.DEBUG, logger="urllib3.connectionpool")
    with caplog.at_level(logging.DEBUG):
        broker.probe()
        with pytest.raises(NotFound) as caught:
            broker.download_file("cs/aa/x")
    session = next(iter(mega.sessions))
    account = mega_client.account(EMAIL, PASSWORD)
    assert "POST /cs?id=" in caplog.text
    for text in (caplog.text, repr(broker), repr(account), str(caught.value), str(vars(broker)["_client"])):
        assert PASSWORD not in text and session not in text

"""The driver for Django's storage classes: the contract on Azure's and SFTP's, and what odd classes do."""

from __future__ import annotations

import json
import shutil

import pytest

from brokers import health
from brokers.drivers.storage import StorageBroker
from brokers.errors import (
    BrokerError,
    Corrupt,
    Misconfigured,
    OutOfSpace,
    RateLimited,
    Timeout,
    TooLarge,
    Unauthorized,
    Unavailable,
)
from brokers.models import Health
from brokers.names import new_object_key
from brokers.open import OpenBroker
from brokers.services import add_broker, check_options
from brokers.testing import conformance
from brokers.testing.conformance import Conformance
from tests.servers.azurite_server import ACCOUNT_KEY, AzureServer, azurite  # noqa: F401
from tests.servers.faults import Answer, FaultServer
from tests.servers.s3proxy import S3Proxy
from tests.servers.sftp import PASSWORD, sftp  # noqa: F401

pytestmark = pytest.mark.only_on("sqlite")

AZURE = "storages.backends.azure_storage.AzureStorage"


def azure_options(server: AzureServer, container: str, url: str = "", key: str = ACCOUNT_KEY, **more):
    secret = {"connection_string": server.connection_string(url, key)}
    return {
        "class_path": AZURE,
        "class_options": json.dumps({"azure_container": container, **more}),
        "class_secrets": json.dumps(secret),
    }


def construct(options) -> StorageBroker:
    plain, secrets = check_options("storage", options)
    assert set(secrets) <= {"class_secrets"}
    return StorageBroker({**plain, **secrets})


# -- real servers ------------------------------------------------------------------------------------------


@pytest.fixture
def azure_place(azurite):  # noqa: F811
    if not azurite.client().get_container_client("drive").exists():
        azurite.new_container("drive")
    return lambda: OpenBroker(construct(azure_options(azurite, "drive")))


@pytest.fixture
def azure_below(azurite):  # noqa: F811
    """In a folder, and with a location of the class's own."""
    if not azurite.client().get_container_client("below").exists():
        azurite.new_container("below")
    options = azure_options(azurite, "below", location="top", overwrite_files=True)
    return lambda: OpenBroker(construct({**options, "folder": "some/where"}))


@pytest.fixture
def sftp_place(sftp):  # noqa: F811
    (sftp.folder / "drive").mkdir(exist_ok=True)
    return lambda: OpenBroker(construct(sftp.options("drive")))


@pytest.fixture
def sftp_below(sftp):  # noqa: F811
    (sftp.folder / "below").mkdir(exist_ok=True)
    return lambda: OpenBroker(construct({**sftp.options("below"), "folder": "some/where"}))


@pytest.mark.slow
@pytest.mark.parametrize("name", conformance.names())
@pytest.mark.parametrize("place", ["azure_place", "azure_below", "sftp_place", "sftp_below"])
def test_the_contract(request, place, name):
    secrets = (ACCOUNT_KEY, PASSWORD)
    connect = request.getfixturevalue(place)
    check = Conformance(connect, secrets=secrets, vanished=lambda: gone(request, place)).run_one(name)
    assert check.ok, check.detail
    # Django's interface has no pages, and sizes and times only one by one.
    assert check.skipped == (name in ("list_pages", "clock")), check.detail


def gone(request, place) -> OpenBroker:
    """The same kind of place where there is none."""
    if place.startswith("azure"):
        return OpenBroker(construct(azure_options(request.getfixturevalue("azurite"), "never-made")))
    return OpenBroker(construct(request.getfixturevalue("sftp").options("never-made")))


@pytest.mark.slow
@pytest.mark.django_db
def test_a_container_from_adding_to_losing_it(azurite):  # noqa: F811
    with pytest.raises(Misconfigured):
        add_broker("Azure", "storage", "azure", azure_options(azurite, "not-there"))
    azurite.new_container("life")
    with pytest.raises(Unauthorized):
        add_broker("Azure", "storage", "azure", azure_options(azurite, "life", key="d3Jvbmc="))
    broker = add_broker("Azure", "storage", "azure", azure_options(azurite, "life"))
    assert broker.health == Health.ONLINE and "class_secrets" not in broker.options
    opened = OpenBroker(construct(azure_options(azurite, "life")))
    assert [b.name for b in azurite.client().get_container_client("life").list_blobs()] == ["cs-marker"]
    azurite.client().delete_container("life")
    row = health.poll(broker.pk)
    assert (row.health, row.health_reason) == (Health.OFFLINE, "misconfigured")
    for call in (lambda: opened.get("x"), lambda: opened.stat("x"), lambda: list(opened.list())):
        with pytest.raises(Misconfigured):
            call()
    opened.retire()


@pytest.mark.slow
def test_a_blob_that_is_there_stays_but_a_marker_is_written_anew(azure_place):
    opened = azure_place()
    name = opened.put(new_object_key(), b"bytes")
    with pytest.raises(Corrupt):
        opened.put(name, b"other")
    assert opened.get(name) == b"bytes"
    opened.delete(name)
    opened.put("cs-marker", b"one")
    opened.put("cs-marker", b"two")
    assert opened.get("cs-marker") == b"two"
    opened.delete("cs-marker")
    opened.retire()


def refused(status: int, **headers: str) -> Answer:
    """As Azure says no: with a body in XML, which its SDK warns of when it is lacking."""
    body = b"<?xml version='1.0' encoding='utf-8'?><Error><Code>Whatever</Code><Message>no</Message></Error>"
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, body, {"Content-Type": "application/xml", **names})


AZURE_FAILURES = [
    (refused(400), Misconfigured),
    (refused(401), Unauthorized),
    (refused(403), Unauthorized),
    (refused(413), TooLarge),
    (refused(429, Retry_After="7"), RateLimited),
    (refused(500), Unavailable),
    (refused(503), Unavailable),
    (refused(504), Timeout),
    (refused(507), OutOfSpace),
    (Answer(special="reset"), Unavailable),
    (Answer(special="garbage"), Unavailable),
    (refused(404, x_ms_error_code="ContainerNotFound"), Misconfigured),
    (refused(404), Misconfigured),
]
CALLS = {
    "get": lambda b: b.download_file("x"),
    "put": lambda b: b.upload_file(b"bytes", "x"),
    "stat": lambda b: b.stat_file("x"),
    "delete": lambda b: b.delete_file("x"),
    "list": lambda b: list(b.list_files("cs/")),
    "prepare": lambda b: b.prepare(),
}


@pytest.mark.parametrize("operation", CALLS)
@pytest.mark.parametrize(("answer", "kind"), AZURE_FAILURES)
def test_every_failure_of_azure_has_a_name(expect_log, operation, answer, kind):
    expect_log("azure.storage.blob")  # answers to HEAD have no body to decode
    with FaultServer().running() as server:
        server.answers = [answer]
        broker = construct(azure_options(AzureServer(server.url), "drive"))
        with pytest.raises(BrokerError) as caught:
            CALLS[operation](broker)
        broker.close()
    assert type(caught.value) is kind
    assert ACCOUNT_KEY not in str(caught.value)
    if isinstance(caught.value, RateLimited):
        assert caught.value.retry_after == 7
    if answer.status != 404:
        assert len(server.requests) == 1, "tries again only in its own layer"


@pytest.mark.slow
def test_an_upload_to_azure_whose_answer_was_lost_can_be_repeated(azurite, azure_place):  # noqa: F811
    name = new_object_key()
    with S3Proxy(azurite.url).running() as proxy:
        broker = construct(azure_options(azurite, "drive", proxy.url))
        proxy.rules.append(lambda call: "drop" if call.method == "PUT" else None)
        with pytest.raises(Unavailable):
            broker.upload_file(b"bytes", name)
        proxy.rules.clear()
        assert broker.upload_file(b"bytes", name) == name
        assert broker.download_file(name, 1, 2) == b"yt"
        broker.delete_file(name)
        broker.close()


@pytest.mark.slow
@pytest.mark.django_db
def test_an_sftp_folder_from_adding_to_losing_it(sftp):  # noqa: F811
    options = sftp.options("life")
    with pytest.raises(Misconfigured):
        add_broker("SFTP", "storage", "sftp", options)
    (sftp.folder / "life").mkdir()
    wrong = {**options, "class_secrets": json.dumps({"params": {"password": "wrong"}})}
    with pytest.raises(Unauthorized):
        add_broker("SFTP", "storage", "sftp", wrong)
    broker = add_broker("SFTP", "storage", "sftp", options)
    assert broker.health == Health.ONLINE and PASSWORD not in str(broker.options)
    files = [p for p in (sftp.folder / "life").rglob("*") if p.is_file()]
    assert [p.name for p in files] == ["cs-marker"], "no temporary file is left"
    opened = OpenBroker(construct(options))
    name = opened.put(new_object_key(), b"bytes")
    shutil.rmtree(sftp.folder / "life")
    for call in (lambda: opened.get(name), lambda: opened.stat(name), lambda: list(opened.list())):
        with pytest.raises(Misconfigured):
            call()
    row = health.poll(broker.pk)
    assert (row.health, row.health_reason) == (Health.OFFLINE, "misconfigured")
    opened.retire()


@pytest.mark.slow
def test_stale_temporary_files_go(sftp):  # noqa: F811
    import os

    folder = sftp.folder / "stale/cs-tmp"
    folder.mkdir(parents=True)
    broker = construct(sftp.options("stale"))
    broker.prepare()
    for name, age in (("old", 7200), ("young", 0)):
        (folder / name).write_bytes(b"part")
        changed = (folder / name).stat().st_mtime - age
        os.utime(folder / name, (changed, changed))
    assert not [f for f in broker.list_files() if "cs-tmp" in f.path]
    broker.probe()
    assert [p.name for p in folder.iterdir()] == ["young"]
    (folder / "young").unlink()
    broker.close()


def sftp_storage(plain, **secret):
    return construct(
        {
            "class_path": "storages.backends.sftpstorage.SFTPStorage",
            "class_options": json.dumps(plain),
            "class_secrets": json.dumps(secret or {"params": {"password": PASSWORD}}),
        }
    )


def plain_options(sftp, **more):  # noqa: F811
    return {**json.loads(sftp.options("drive")["class_options"]), **more}


@pytest.mark.slow
def test_only_a_server_whose_key_is_known_is_trusted(sftp, tmp_path):  # noqa: F811
    (sftp.folder / "drive").mkdir(exist_ok=True)
    hosts = tmp_path / "known_hosts"
    for text, why in [
        ("", "not in the file of known hosts"),
        (sftp.known_hosts.read_text().replace(f":{sftp.port} ", ":1 "), "not in the file of known hosts"),
        (other_key(sftp), "refused the connection"),
    ]:
        hosts.write_text(text)
        broker = sftp_storage(plain_options(sftp, known_host_file=str(hosts)))
        with pytest.raises(Misconfigured, match=why):
            broker.prepare()
        broker.close()
        assert hosts.read_text() == text, "nothing is added to it"
    with pytest.raises(Misconfigured, match="known_host_file"):
        sftp_storage(plain_options(sftp, known_host_file=str(tmp_path / "none"))).prepare()


def other_key(sftp) -> str:  # noqa: F811
    import paramiko

    key = paramiko.ECDSAKey.generate()
    return f"[127.0.0.1]:{sftp.port} {key.get_name()} {key.get_base64()}\n"


@pytest.mark.slow
def test_sign_in_by_a_key(sftp):  # noqa: F811
    (sftp.folder / "drive").mkdir(exist_ok=True)
    params = {"port": sftp.port, "username": "drive", "key_filename": str(sftp.key_file)}
    broker = sftp_storage(plain_options(sftp, params=params), root_path="drive")
    name = broker.upload_file(b"bytes", new_object_key())
    assert broker.download_file(name) == b"bytes"
    broker.delete_file(name)
    broker.close()


def test_nobody_speaks_sftp_there(tmp_path):
    (tmp_path / "known_hosts").touch()
    with FaultServer().running() as server:
        port = int(server.url.rpartition(":")[2])
        params = {"port": port, "username": "u"}
        hosts = str(tmp_path / "known_hosts")
        broker = sftp_storage({"host": "127.0.0.1", "known_host_file": hosts, "params": params})
    for call in CALLS.values():
        with pytest.raises(Unavailable):
            call(broker)

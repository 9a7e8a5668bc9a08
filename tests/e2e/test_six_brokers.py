"""Six brokers of six kinds under one drive: one is drained and removed while users work, an empty one comes, and load
is moved. Every provider is a real server, or a fake that speaks its protocol to the provider's own library.

    SIX_BROKERS_MB=2000 make test ARGS="tests/e2e/test_six_brokers.py" DB=sqlite    # with two gigabytes
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median
from typing import Any

import pytest

from tests.e2e.ledger import MIB, Client, Ledger, at_rest, findings, noise, until
from tests.servers.azurite_server import ACCOUNT_KEY, AzureServer, azurite
from tests.servers.fake_dropbox import FakeDropbox
from tests.servers.fake_gcs import GcsServer, fake_gcs
from tests.servers.fake_mega import EMAIL, GIBIBYTE, PASSWORD, FakeMega
from tests.servers.product import Product
from tests.servers.seaweedfs import S3Server, seaweedfs

__all__ = ["azurite", "fake_gcs", "seaweedfs"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600), pytest.mark.only_on("sqlite")]

TOTAL = int(os.environ.get("SIX_BROKERS_MB", "100")) * 1_000_000
FILES = 100
COPIES = 3
# How many files each of two users uploads meanwhile, at most.
UPLOADS = 30
# What each broker with a known size has; the local one by the operator's cap.
SPACE = 20 * GIBIBYTE
NEAR = 0.10
AZURE = "storages.backends.azure_storage.AzureStorage"


@dataclass
class Providers:
    s3: S3Server
    gcs: GcsServer
    azure: AzureServer
    mega: FakeMega
    dropbox: FakeDropbox

    def arguments(self, kind: str, place: str) -> list[str]:
        """What `broker_add` needs for a new and empty place of this kind."""
        options: dict[str, str] = {}
        secrets: dict[str, str] = {}
        driver = kind
        if kind == "s3":
            options = self.s3.options(self.s3.new_bucket(place))
            secrets = {"secret_key": options.pop("secret_key")}
        elif kind == "gcs":
            options = self.gcs.options(self.gcs.new_bucket(place))
        elif kind == "azure":
            driver = "storage"
            container = {"azure_container": self.azure.new_container(place)}
            options = {"class_path": AZURE, "class_options": json.dumps(container)}
            connection = self.azure.connection_string(key=ACCOUNT_KEY)
            secrets = {"class_secrets": json.dumps({"connection_string": connection})}
        elif kind == "dropbox":
            options = self.dropbox.options(folder=place)
            secrets = {name: options.pop(name) for name in ("app_secret", "refresh_token")}
        elif kind == "mega":
            options, secrets = {"email": EMAIL, "folder": place}, {"password": PASSWORD}
        told = [f"--option={name}={value}" for name, value in options.items()]
        return [
            f"--driver={driver}",
            f"--domain={place}",
            *told,
            *(f"--secret={n}={v}" for n, v in secrets.items()),
        ]


@pytest.fixture
def providers(seaweedfs: S3Server, fake_gcs: GcsServer, azurite: AzureServer) -> Iterator[Providers]:
    with FakeMega(total=SPACE).running() as mega, FakeDropbox().running() as dropbox:
        dropbox.total = SPACE
        yield Providers(seaweedfs, fake_gcs, azurite, mega, dropbox)


@pytest.fixture
def running(providers: Providers) -> Iterator[Product]:
    product = Product(
        DJANGO_SETTINGS_MODULE="tests.e2e.six_settings",
        TEST_MEGA_ENDPOINT=providers.mega.endpoint,
        TEST_DROPBOX_URL=providers.dropbox.url,
        CLOUDSTORE_SWEEP_INTERVAL="1",
        CLOUDSTORE_REBALANCE_RATE="1000000000",
    )
    try:
        yield product.start()
    finally:
        product.close()


def place_of(kind: str) -> str:
    return f"six-{kind}-{os.getpid()}-{time.monotonic_ns()}"


def replicate_everywhere(product: Product, providers: Providers) -> None:
    """Six brokers, each with a domain of its own; one of the two that `make run` makes goes."""
    product.manage("broker_remove", "Local B")
    for kind in ("s3", "gcs", "azure", "mega", "dropbox"):
        product.manage("broker_add", kind, *providers.arguments(kind, place_of(kind)))
    product.manage("broker_set", "Local A", f"--capacity-limit={SPACE}")
    product.manage("policy", "--copies", str(COPIES))


class Users:
    """They upload and download all the time. Any answer but the right one is an error."""

    def __init__(self, client: Client, seed: int) -> None:
        self.ledger = Ledger(client)
        self.errors: list[str] = []
        self.requests = 0
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._seed = seed

    def upload_all(self, size: int, count: int) -> None:
        """The files that are there before: all alike in size."""

        def one(number: int) -> None:
            data = noise(random.Random(self._seed + number), size // count)
            assert self.ledger.put(f"first/{number:04d}.bin", data, tries=0)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(one, range(count)))

    def __enter__(self) -> Users:
        for number in range(2):
            self._start(lambda n=number: self._upload(n))
            self._start(lambda n=number: self._download(n))
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _start(self, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                work()
            except BaseException as error:  # the test looks at them
                self.errors.append(repr(error))

        self._threads.append(threading.Thread(target=run))
        self._threads[-1].start()

    def _upload(self, number: int) -> None:
        rng = random.Random(f"upload {self._seed} {number}")
        for turn in range(UPLOADS):
            if self._stop.wait(0.5):
                return
            assert self.ledger.put(
                f"meanwhile/{number}-{turn}.bin", noise(rng, rng.randrange(3 * MIB)), tries=0
            )
            self.requests += 1

    def _download(self, number: int) -> None:
        rng = random.Random(f"download {self._seed} {number}")
        while not self._stop.is_set():
            names = [n for n, e in list(self.ledger.entries.items()) if e.acknowledged and not e.maybe]
            self.ledger.get(rng.choice(names), final=True)
            self.requests += 1
            self._stop.wait(0.1)


def brokers(product: Product) -> dict[str, dict[str, Any]]:
    return {broker["name"]: broker for broker in product.manage_json("broker_list")}


def parts(product: Product) -> dict[str, tuple[float, float]]:
    """Name -> the part of all bytes that a broker holds, and the part that its free space (times its weight) is of
    all; worked out here from what the providers tell, not from what the product plans."""
    shares = {
        share["broker"]: share["held"] for share in product.manage_json("rebalance", "--status")["shares"]
    }
    known = brokers(product)
    room = {
        name: known[name]["room"] + held if known[name]["room"] is not None else None
        for name, held in shares.items()
    }
    typical = median(value for value in room.values() if value is not None)
    weighed = {
        name: known[name]["weight"] * (typical if value is None else value) for name, value in room.items()
    }
    held_all, room_all = sum(shares.values()), sum(weighed.values())
    return {name: (shares[name] / held_all, weighed[name] / room_all) for name in shares}


def test_a_broker_is_replaced_while_users_work(running: Product, providers: Providers) -> None:
    replicate_everywhere(running, providers)
    client = Client(running.port, running.token())
    users = Users(client, seed=4)
    users.upload_all(TOTAL, FILES)
    with users:
        drained = running.manage_json("broker_drain", "s3")
        assert drained["draining"]
        assert drained["bytes"] > TOTAL * COPIES / 12, "it holds its part"
        until(
            lambda: running.manage_json("broker_drain", "s3", "--status")["objects"] == 0,
            "s3 is empty",
            1800,
            1,
        )
        removed = running.manage_json("broker_remove", "s3")
        assert removed["removed"] and removed["left_there"] == 0
        assert "s3" not in brokers(running)

        running.manage("broker_add", "new", *providers.arguments("gcs", place_of("new")))
        running.manage("rebalance")
        until(lambda: not running.manage_json("rebalance", "--status")["running"], "load is even", 1800, 1)
    assert users.errors == []
    assert users.requests > 20
    assert users.ledger.statuses == set(), "no request was refused"

    until(lambda: at_rest(running), "at rest", 300, 1)
    # What was uploaded after the last batch moves now, with nobody at work.
    running.manage("rebalance")
    until(lambda: not running.manage_json("rebalance", "--status")["running"], "load is even", 600, 1)
    until(lambda: at_rest(running), "at rest", 300, 1)
    for name, (held, room) in parts(running).items():
        assert abs(held - room) <= NEAR * room, (name, held, room)
    users.ledger.read_all_back()
    assert findings(running, "--full") == []

"""The Dropbox driver: the contract, and what it does beside it, through the SDK against a server of the protocol."""

from __future__ import annotations

import pytest

from brokers.drivers.dropbox import DropboxBroker
from brokers.open import OpenBroker
from brokers.services import check_options
from brokers.testing import conformance
from brokers.testing.conformance import Conformance
from tests.brokers.dropbox_place import dropbox_fixture, one_dropbox_fixture  # noqa: F401
from tests.servers.fake_dropbox import SECRETS, FakeDropbox

pytestmark = pytest.mark.only_on("sqlite")


def made(dropbox: FakeDropbox, **more: str) -> DropboxBroker:
    plain, secrets = check_options("dropbox", dropbox.options(**more))
    return DropboxBroker({**plain, **secrets})


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

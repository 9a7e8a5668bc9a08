"""The innermost layer: what a driver returns and raises is checked, and five methods are made eight."""

from __future__ import annotations

import pytest

from brokers.driver import MAX_OBJECT_SIZE, StoredFile
from brokers.drivers.memory import MemoryBroker
from brokers.errors import (
    Corrupt,
    InvalidKey,
    Misconfigured,
    NotFound,
    OutOfSpace,
    RangeError,
    RateLimited,
    ReadOnly,
    Timeout,
    TooLarge,
    Unauthorized,
    Unavailable,
)
from brokers.layers.adapt import Adapt, FiveMethods, as_broker_error, as_stored_file
from brokers.layers.call import Call

pytestmark = pytest.mark.only_on("sqlite")


def adapt(**methods: object) -> Adapt:
    driver = MemoryBroker({"space": "adapt"})
    for name, value in methods.items():
        setattr(driver, name, lambda *args, _value=value: _value)
    return Adapt(driver)


@pytest.mark.parametrize(
    ("methods", "call", "text"),
    [
        ({"download_file": b"xxx"}, ("get", "a", 0, 2), "3 bytes came where at most 2"),
        ({"download_file": bytearray(MAX_OBJECT_SIZE + 1)}, ("get", "a", 0, None), "came where at most"),
        ({"download_file": "text"}, ("get", "a", 0, None), "returned str"),
        ({"download_file": None}, ("get", "a", 0, None), "returned NoneType"),
        ({"upload_file": None}, ("put", "a", b""), "not a locator"),
        ({"upload_file": ""}, ("put", "a", b""), "not a locator"),
        ({"upload_file": "x" * 501}, ("put", "a", b""), "501 characters"),
        ({"list_files": 7}, ("list", ""), "not something to iterate"),
        ({"list_files": [7]}, ("list", ""), "type int"),
        ({"get_storage_info": None}, ("info",), "not a mapping"),
        ({"stat_file": "name"}, ("stat", "name"), "no size"),
    ],
)
def test_what_a_driver_returns_is_checked(methods, call, text):
    operation, *arguments = call
    with pytest.raises(Corrupt, match=text):
        adapt(**methods)(Call(operation, tuple(arguments), 1))


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (("put", "", b""), InvalidKey),
        (("put", "x" * 501, b""), InvalidKey),
        (("put", "a", b"x" * (MAX_OBJECT_SIZE + 1)), TooLarge),
        (("get", "a", -1, None), RangeError),
        (("get", "a", 0, -1), RangeError),
        (("get", "absent", 0, 0), NotFound),
    ],
)
def test_what_a_caller_asks_for_is_checked(call, kind):
    operation, *arguments = call
    with pytest.raises(kind):
        adapt()(Call(operation, tuple(arguments), 1))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (FileNotFoundError(2, "x"), NotFound),
        (PermissionError(13, "x"), Unauthorized),
        (TimeoutError("x"), Timeout),
        (ConnectionResetError(104, "x"), Unavailable),
        (OSError(28, "x"), OutOfSpace),
        (OSError(122, "x"), OutOfSpace),
        (OSError(30, "x"), ReadOnly),
        (OSError(5, "x"), Unavailable),
        (TypeError("x"), Misconfigured),
        (NotImplementedError(), Misconfigured),
        (RuntimeError("secret"), Unavailable),
        (RateLimited("x", 3), RateLimited),
    ],
)
def test_what_a_driver_lets_through_gets_a_name(error, kind):
    named = as_broker_error(error)
    assert type(named) is kind and "secret" not in str(named)


def test_entries_of_listings_have_many_forms():
    assert as_stored_file("a") == StoredFile("a", -1)
    assert as_stored_file(("a", 3)) == StoredFile("a", 3)
    assert as_stored_file({"name": "a", "size": 3}) == StoredFile("a", 3)
    assert as_stored_file({"storage_path": "a"}) == StoredFile("a", -1)
    assert as_stored_file(StoredFile("a", 3)) == StoredFile("a", 3)
    for wrong in (None, 3, {}, {"size": 3}, b"a"):
        with pytest.raises(Corrupt):
            as_stored_file(wrong)


@pytest.mark.parametrize(
    ("told", "understood"),
    [
        ({"total": 10, "used": 3, "available": 7}, (10, 3, 7)),
        ({"total": 10.0, "free": 7}, (10, None, 7)),
        ({"total": -1, "used": "3", "available": True}, (None, None, None)),
        ({"available": 2**63}, (None, None, None)),
        ({}, (None, None, None)),
    ],
)
def test_capacity_is_a_number_or_unknown(told, understood):
    info = adapt(get_storage_info=told)(Call("info", (), 1))
    assert (info["total"], info["used"], info["available"]) == understood


def test_a_probe_of_five_methods_writes_and_removes():
    class Folder:
        def __init__(self):
            self.objects = {}

        def upload_file(self, file_data, filename):
            self.objects[filename] = file_data

        def download_file(self, storage_path):
            return self.objects[storage_path]

        def delete_file(self, storage_path):
            del self.objects[storage_path]

        def list_files(self, path=""):
            return list(self.objects)

        def get_storage_info(self):
            return {}

    folder = Folder()
    FiveMethods(folder).probe()
    assert not folder.objects
    folder.upload_file = lambda file_data, filename: folder.objects.update({filename: b"other"})
    with pytest.raises(Corrupt):
        FiveMethods(folder).probe()

from __future__ import annotations

import pytest
from django.test import RequestFactory

from accounts.address import client_address

PROXIES = ["10.0.0.0/8", "2001:db8::/32"]
CASES = [
    ("203.0.113.5", None, "203.0.113.5"),
    ("203.0.113.5", "198.51.100.1", "203.0.113.5"),  # not a proxy of ours: what it says is not believed
    ("10.1.1.1", None, "10.1.1.1"),
    ("10.1.1.1", "198.51.100.1", "198.51.100.1"),
    ("10.1.1.1", "6.6.6.6, 198.51.100.1", "198.51.100.1"),  # the client wrote the left one itself
    ("10.1.1.1", "198.51.100.1, 10.2.2.2", "198.51.100.1"),
    ("10.1.1.1", "6.6.6.6, nonsense, 10.2.2.2", "10.2.2.2"),
    ("10.1.1.1", "", "10.1.1.1"),
    ("2001:db8::1", "2a00::1", "2a00::1"),
    ("::ffff:10.1.1.1", "::ffff:198.51.100.1", "198.51.100.1"),
    ("", "198.51.100.1", ""),
]


@pytest.mark.parametrize(("remote", "forwarded", "client"), CASES)
def test_client_address(
    rf: RequestFactory, settings: object, remote: str, forwarded: str | None, client: str
) -> None:
    settings.CLOUDSTORE_TRUSTED_PROXIES = PROXIES  # type: ignore[attr-defined]
    headers = {} if forwarded is None else {"X-Forwarded-For": forwarded}
    assert client_address(rf.get("/", headers=headers, REMOTE_ADDR=remote)) == client


def test_nobody_is_trusted_by_default(rf: RequestFactory) -> None:
    request = rf.get("/", headers={"X-Forwarded-For": "198.51.100.1"}, REMOTE_ADDR="127.0.0.1")
    assert client_address(request) == "127.0.0.1"

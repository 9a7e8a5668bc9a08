"""Addresses of providers: what the server alone can reach is never asked, not even when a name changes its mind."""

from __future__ import annotations

import json
import socket
from ipaddress import ip_address

import pytest
import requests
from django import forms

from brokers import endpoint
from brokers.drivers.dropbox import DropboxBroker
from brokers.drivers.gcs import GoogleCloudBroker
from brokers.drivers.s3 import S3Broker
from brokers.drivers.storage import StorageBroker
from brokers.errors import BrokerError, Misconfigured, NotFound, Unavailable
from tests.brokers.fault_table import CALLS
from tests.servers.azurite_server import AzureServer
from tests.servers.faults import Answer, FaultServer

pytestmark = pytest.mark.only_on("sqlite")

ALWAYS = [
    "169.254.169.254",
    "fe80::1",
    "fd00:ec2::254",
    "100.100.100.200",
    "0.0.0.0",
    "::",
    "224.0.0.1",
    "ff02::1",
    "255.255.255.255",
    "::ffff:169.254.169.254",
    "2002:a9fe:a9fe::1",
    "64:ff9b::a9fe:a9fe",
]
PRIVATE = [
    "127.0.0.1",
    "::1",
    "10.0.0.1",
    "192.168.1.1",
    "172.16.0.1",
    "fd12::1",
    "::ffff:10.0.0.1",
    "100.64.0.1",
]
PUBLIC = ["93.184.216.34", "2606:2800:220:1::1", "64:ff9b::5db8:d822"]


def names(monkeypatch, *answers: list[str]) -> list[str]:
    """The name service says these in turn, the last for ever: -> the names it was asked for."""
    real, left, asked = socket.getaddrinfo, list(answers), []

    def lookup(host, port, *more, **named):
        if host != "provider.example":
            return real(host, port, *more, **named)
        asked.append(host)
        found = left.pop(0) if len(left) > 1 else left[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port or 0)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    return asked


@pytest.mark.parametrize("allowed", [True, False])
@pytest.mark.parametrize("address", [*ALWAYS, *PRIVATE, *PUBLIC])
def test_which_addresses_are_refused(settings, monkeypatch, address, allowed):
    settings.CLOUDSTORE_PRIVATE_ENDPOINTS = allowed
    refused = address in ALWAYS or (address in PRIVATE and not allowed)
    assert endpoint.never_a_provider(address) is refused
    names(monkeypatch, [PUBLIC[0], address])
    if refused:
        with pytest.raises(Misconfigured):
            endpoint.permitted_addresses("provider.example")
        with pytest.raises(forms.ValidationError):
            endpoint.clean_endpoint("https://provider.example", "x")
    else:
        found = endpoint.permitted_addresses("provider.example")
        assert set(map(ip_address, found)) == {ip_address(PUBLIC[0]), ip_address(address)}


def s3(url: str) -> S3Broker:
    return S3Broker(
        {"bucket": "b", "endpoint_url": url, "access_key": "k", "secret_key": "s", "addressing_style": "path"}
    )


def gcs(url: str) -> GoogleCloudBroker:
    return GoogleCloudBroker({"bucket": "b", "endpoint_url": url, "credentials": "none"})


def azure(url: str) -> StorageBroker:
    plain = {"azure_container": "drive"}
    secret = {"connection_string": AzureServer(url).connection_string()}
    path = "storages.backends.azure_storage.AzureStorage"
    texts = {"class_options": json.dumps(plain), "class_secrets": json.dumps(secret)}
    return StorageBroker({"class_path": path, **texts})


BROKERS = {"s3": s3, "gcs": gcs, "azure": azure}
each_broker = pytest.mark.parametrize("made", BROKERS.values(), ids=BROKERS)


@each_broker
def test_a_name_that_changes_its_mind_is_refused_at_the_connection(monkeypatch, made, expect_log):
    expect_log("azure")
    with FaultServer().running() as server:
        server.answers = [Answer(500, b"")]
        url = server.url.replace("127.0.0.1", "provider.example")
        asked = names(monkeypatch, ["127.0.0.1"], ["127.0.0.1"], ["169.254.169.254"])
        assert endpoint.clean_endpoint(url, "x") == url
        with pytest.raises(Unavailable):
            made(url).download_file("x")
        assert len(asked) == 2 and len(server.requests) == 1
        with pytest.raises(Misconfigured, match="no provider lives"):
            made(url).download_file("x")
        assert len(server.requests) == 1


@each_broker
def test_private_addresses_are_refused_at_the_connection_when_the_deployment_says_so(settings, made):
    with FaultServer().running() as server:
        broker = made(server.url)
        settings.CLOUDSTORE_PRIVATE_ENDPOINTS = False
        for call in CALLS.values():
            with pytest.raises(Misconfigured, match="no provider lives"):
                call(broker)
        assert not server.requests


@each_broker
def test_no_redirect_is_followed(made, expect_log):
    expect_log("azure")
    with FaultServer().running() as server, FaultServer().running() as elsewhere:
        for status in (301, 302, 307, 308):
            server.answers = [Answer(status, b"", {"Location": elsewhere.url + "/b/x"})]
            for call in ("get", "put", "list"):
                with pytest.raises(BrokerError) as caught:
                    CALLS[call](made(server.url))
                assert not isinstance(caught.value, NotFound)
        assert server.requests and not elsewhere.requests


def test_requests_are_guarded(monkeypatch):
    with FaultServer().running() as server, FaultServer().running() as elsewhere:
        server.answers = [Answer(307, b"", {"Location": elsewhere.url + "/b/x"})]
        session = requests.Session()
        endpoint.guard_requests(session)
        with pytest.raises(requests.TooManyRedirects):
            session.get(server.url)
        names(monkeypatch, ["169.254.169.254"])
        with pytest.raises(Misconfigured):
            session.get(server.url.replace("127.0.0.1", "provider.example"))
        assert len(server.requests) == 1 and not elsewhere.requests


def test_the_hosts_of_dropbox_are_checked_too(monkeypatch):
    """Its addresses are no option, but a name service may lie."""
    real = socket.getaddrinfo
    asked = []

    def lookup(host, *more, **named):
        asked.append(host)
        return real("169.254.169.254", *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    with pytest.raises(Misconfigured, match="no provider lives"):
        DropboxBroker({"access_token": "t"}).download_file("x")
    assert asked == ["content.dropboxapi.com"]


def test_an_sftp_server_is_checked_too(monkeypatch, settings, tmp_path):
    (tmp_path / "hosts").touch()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        params = {"port": listening.getsockname()[1]}

        def sftp(host: str) -> StorageBroker:
            plain = {"host": host, "known_host_file": str(tmp_path / "hosts"), "params": params}
            path = "storages.backends.sftpstorage.SFTPStorage"
            return StorageBroker({"class_path": path, "class_options": json.dumps(plain)})

        names(monkeypatch, ["127.0.0.1", "169.254.169.254"])
        with pytest.raises(Misconfigured, match="no provider lives"):
            sftp("provider.example").download_file("x")
        settings.CLOUDSTORE_PRIVATE_ENDPOINTS = False
        with pytest.raises(Misconfigured, match="no provider lives"):
            sftp("127.0.0.1").download_file("x")
        with pytest.raises(BlockingIOError):
            listening.accept()  # nobody came

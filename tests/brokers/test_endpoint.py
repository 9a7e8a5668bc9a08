"""Addresses of providers: what the server alone can reach is never asked, not even when a name changes its mind."""

from __future__ import annotations

import socket
from ipaddress import ip_address

import pytest
import requests
from django import forms

from brokers import endpoint
from brokers.drivers.s3 import S3Broker
from brokers.errors import Misconfigured
from tests.servers.faults import Answer, FaultServer

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


def test_a_name_that_changes_its_mind_is_refused_at_the_connection(monkeypatch):
    with FaultServer().running() as server:
        server.answers = [Answer(200, b"bytes")]
        url = server.url.replace("127.0.0.1", "provider.example")
        asked = names(monkeypatch, ["127.0.0.1"], ["127.0.0.1"], ["169.254.169.254"])
        assert endpoint.clean_endpoint(url, "x") == url
        assert s3(url).download_file("x") == b"bytes" and len(asked) == 2
        with pytest.raises(Misconfigured, match="no provider lives"):
            s3(url).download_file("x")
        session = requests.Session()
        endpoint.guard_requests(session)
        with pytest.raises(Misconfigured):
            session.get(url)
        assert len(server.requests) == 1


def test_private_addresses_are_refused_at_the_connection_when_the_deployment_says_so(settings):
    with FaultServer().running() as server:
        broker = s3(server.url)
        settings.CLOUDSTORE_PRIVATE_ENDPOINTS = False
        with pytest.raises(Misconfigured):
            broker.download_file("x")
        assert not server.requests


def test_no_redirect_is_followed():
    with FaultServer().running() as server, FaultServer().running() as elsewhere:
        server.answers = [Answer(307, b"", {"Location": elsewhere.url + "/b/x"})]
        with pytest.raises(Misconfigured):
            s3(server.url).download_file("x")
        session = requests.Session()
        endpoint.guard_requests(session)
        with pytest.raises(requests.TooManyRedirects):
            session.get(server.url)
        assert not elsewhere.requests

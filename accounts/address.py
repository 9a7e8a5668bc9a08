"""Where a request comes from."""

from __future__ import annotations

import functools
import ipaddress

from django.conf import settings
from django.http import HttpRequest

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def client_address(request: HttpRequest) -> str:
    """The client's IP address, "" when unknown (a unix socket).

    `X-Forwarded-For` is believed only as far as it was written by proxies in settings.CLOUDSTORE_TRUSTED_PROXIES:
    from the right, the first address that is not such a proxy is the client.
    """
    address = _parse(request.META.get("REMOTE_ADDR", ""))
    proxies = _networks(tuple(settings.CLOUDSTORE_TRUSTED_PROXIES))
    hops = request.META.get("HTTP_X_FORWARDED_FOR", "").split(",")
    while address is not None and hops and any(address in network for network in proxies):
        before = _parse(hops.pop())
        if before is None:
            break
        address = before
    return str(address or "")


def _parse(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text.strip())
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


@functools.lru_cache(maxsize=8)
def _networks(texts: tuple[str, ...]) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)

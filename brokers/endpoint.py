"""What drivers that speak to a provider have in common: checks of its address and of a folder inside a place, and how
long a provider asks to wait.

An operator's address must not make the server ask what only the server can reach. Every address that a name leads to
is checked: link-local (a cloud's metadata service), unspecified, multicast and reserved ones are always refused;
loopback and private ones when the setting CLOUDSTORE_PRIVATE_ENDPOINTS is off. The check is made again for each
connection, which then goes to the very address that was checked: an answer of the DNS that changes in between
(rebinding) gains nothing."""

from __future__ import annotations

import socket
from email.utils import parsedate_to_datetime
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any
from urllib.parse import urlsplit

from django import forms
from django.conf import settings

from brokers import clock
from brokers.errors import Misconfigured

METADATA = frozenset(
    {ip_address("fd00:ec2::254"), ip_address("100.100.100.200"), ip_address("168.63.129.16")}
)


def clean_endpoint(url: str, example: str) -> str:
    """An http(s) address of a provider without its last slash; "" stays "". Raises forms.ValidationError for what
    is none, for addresses where no provider lives (a cloud's metadata service), and for credentials in it."""
    url = url.strip().rstrip("/")
    if not url:
        return ""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise forms.ValidationError(f"Give an address like {example}.")
    host = parts.hostname or ""
    try:
        addresses = addresses_of(host)
    except OSError:
        addresses = []  # no name service at this moment: each connection is checked
    if never_a_provider(host) or any(map(_refused, addresses)):
        raise forms.ValidationError("No provider lives at this address.")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise forms.ValidationError("Credentials and parameters do not belong into the address.")
    return url


def clean_prefix(prefix: str) -> str:
    """A folder inside a place without slashes around it; "" for the whole. Raises forms.ValidationError."""
    prefix = prefix.strip("/")
    if any(part in ("", ".", "..") for part in prefix.split("/")) and prefix:
        raise forms.ValidationError("A prefix has no empty parts and no dots alone.")
    return prefix


def never_a_provider(host: str) -> bool:
    """Whether a literal address is one that may not be connected to. False for names: see `addresses_of`."""
    try:
        return _refused(ip_address(host.partition("%")[0]))
    except ValueError:
        return False


Address = IPv4Address | IPv6Address


def addresses_of(host: str) -> list[Address]:
    """Every address that a host's name leads to, without repeats. Raises OSError when none is known."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError("no name of a host") from error
    return list(dict.fromkeys(ip_address(str(entry[4][0]).partition("%")[0]) for entry in found))


def permitted_addresses(host: str) -> list[str]:
    """The addresses of a host to connect to. Raises Misconfigured when any of them is refused, OSError when the
    name is not known."""
    found = addresses_of(host)
    if any(map(_refused, found)):
        raise Misconfigured("no provider lives at this address")
    return [str(address) for address in found]


def _refused(address: Address) -> bool:
    for form in _forms(address):
        if form in METADATA or form.is_link_local or form.is_unspecified or form.is_multicast:
            return True
        if form.version == 4 and form.is_reserved:
            return True
        if not settings.CLOUDSTORE_PRIVATE_ENDPOINTS and not form.is_global:
            return True
    return False


def _forms(address: Address) -> list[Address]:
    """The address, and the IPv4 address inside it (mapped, 6to4, NAT64)."""
    if isinstance(address, IPv4Address):
        return [address]
    inner = address.ipv4_mapped or address.sixtofour
    if inner is None and address.packed.startswith(b"\0\x64\xff\x9b" + bytes(8)):
        inner = IPv4Address(address.packed[12:])
    if inner is None:
        return [address]
    return [inner] if address.ipv4_mapped else [address, inner]


def guarded(pool: Any) -> Any:
    """A class of urllib3 connection pools like `pool`, whose connections go to checked addresses only. An address
    that is refused raises Misconfigured out of the request, which an SDK may wrap."""
    from urllib3.exceptions import NameResolutionError, NewConnectionError

    class Connection(pool.ConnectionCls):
        _dns_host: str

        def _new_conn(self) -> Any:
            name = self._dns_host
            try:
                addresses = permitted_addresses(name.strip("[]"))
            except OSError as error:
                raise NameResolutionError(name, self, error) from error  # type: ignore[arg-type]
            try:
                for address in addresses[:-1]:
                    self._dns_host = address
                    try:
                        return super()._new_conn()
                    except NewConnectionError:
                        continue
                self._dns_host = addresses[-1]
                return super()._new_conn()
            finally:
                self._dns_host = name  # TLS proves the name, not the address

    return type(f"Guarded{pool.__name__}", (pool,), {"ConnectionCls": Connection})


def open_socket(host: str, port: int, seconds: float) -> socket.socket:
    """A connection to one of a host's addresses, all of them checked. Raises Misconfigured when one is refused, OSError
    when none answers within `seconds` each."""
    *others, last = permitted_addresses(host)
    for address in others:
        try:
            return socket.create_connection((address, port), seconds)
        except OSError:
            continue
    return socket.create_connection((last, port), seconds)


def guard_botocore(client: Any) -> None:
    """Check every connection that a botocore client opens from now on."""
    pools = client._endpoint.http_session._pool_classes_by_scheme
    for scheme, pool in list(pools.items()):
        pools[scheme] = guarded(pool)


def guard_requests(session: Any) -> None:
    """Check every connection that a requests session opens from now on, and let it follow no redirect."""
    for adapter in session.adapters.values():
        manager = adapter.poolmanager
        manager.pool_classes_by_scheme = {s: guarded(p) for s, p in manager.pool_classes_by_scheme.items()}
    session.max_redirects = 0


def refusal(error: BaseException | None) -> Misconfigured | None:
    """The refusal of an address inside of what an SDK made of it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, Misconfigured):
            return error
        seen.add(id(error))
        error = getattr(error, "kwargs", {}).get("error") or error.__cause__ or error.__context__
    return None


def is_this_machine(host: str) -> bool:
    """Whether a host's name or address is the loopback's."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def retry_after(value: str | None) -> float | None:
    """Seconds, from the header Retry-After: a number or a date (RFC 9110, 10.2.3). None where it is neither."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - clock.now()).total_seconds())
    except (ValueError, TypeError):
        return None

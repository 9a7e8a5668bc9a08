"""What drivers that speak HTTP have in common: checks of a provider's address and of a folder inside a place, and
how long a provider asks to wait."""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from urllib.parse import urlsplit

from django import forms

from brokers import clock


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
    if never_a_provider(parts.hostname or ""):
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
    """Addresses that reach something else than storage, such as a cloud's metadata service. Private addresses
    are fine: many operators run their own server."""
    try:
        address = ip_address(host)
    except ValueError:
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_link_local or address.is_unspecified or address.is_multicast


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

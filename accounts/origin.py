"""Cross-site request forgery without tokens: a browser says itself from where a request was started.

The byte doors take bodies of any size, so nothing may read the body in search of a CSRF token. Every current
browser sends `Sec-Fetch-Site` (on https and localhost) or `Origin` (with every unsafe method); a script can
forge neither. A client that sends neither is no browser and holds its cookies of its own will (curl).
"""

from __future__ import annotations

from urllib.parse import urlsplit

from django.conf import settings
from django.http import HttpRequest
from django.utils.http import is_same_domain

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})


def is_cross_site(request: HttpRequest) -> bool:
    """Whether a browser sends this request on behalf of another site and its method may change something."""
    if request.method in SAFE_METHODS:
        return False
    fetch_site = request.headers.get("Sec-Fetch-Site")
    if fetch_site is not None:
        return fetch_site not in {"same-origin", "none"}
    origin = request.headers.get("Origin")
    return origin is not None and not _is_ours(request, origin)


def _is_ours(request: HttpRequest, origin: str) -> bool:
    if origin == f"{request.scheme}://{request.get_host()}":
        return True
    try:
        given = urlsplit(origin)
    except ValueError:
        return False
    return any(
        given.scheme == trusted.scheme and is_same_domain(given.netloc, trusted.netloc.lstrip("*"))
        for trusted in map(urlsplit, settings.CSRF_TRUSTED_ORIGINS)
        if given.netloc
    )

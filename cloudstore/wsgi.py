"""The WSGI entry point; the byte paths need WSGI with threads (docs/decisions/)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from django.core.wsgi import get_wsgi_application

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cloudstore.settings")
_django = get_wsgi_application()


def application(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """Django, with the path kept as it came: Django mends what is not UTF-8 in it, and the doors refuse that."""
    environ["cloudstore.path"] = environ.get("PATH_INFO", "")
    return _django(environ, start_response)

"""The WSGI entry point; the byte paths need WSGI with threads (docs/decisions/)."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from django.core.wsgi import get_wsgi_application

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cloudstore.settings")
_django = get_wsgi_application()

from django.db import DatabaseError  # noqa: E402 - Django is set up now

from brokers import history  # noqa: E402
from cloudstore import schema  # noqa: E402
from vfs.api.problems import CONTENT_TYPE, problem  # noqa: E402

log = logging.getLogger(__name__)


def application(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """Django, with the path kept as it came: Django mends what is not UTF-8 in it, and the doors refuse that."""
    history.start()
    environ["cloudstore.path"] = environ.get("PATH_INFO", "")
    if environ["cloudstore.path"] != "/healthz" and (reason := _refusal()):
        return _refuse(environ, start_response, reason)
    return _django(environ, start_response)


def _refusal() -> str:
    """Why this process must not touch the database. When the database does not answer, Django says so."""
    try:
        return schema.refusal()
    except DatabaseError:
        return ""


def _refuse(environ: dict[str, Any], start_response: StartResponse, reason: str) -> Iterable[bytes]:
    log.error("%s is refused: %s", environ["cloudstore.path"], reason)
    words = "CloudStore is being upgraded. Try again later."
    body = json.dumps(problem(503, "schema_mismatch", words)).encode()
    headers = [("Content-Type", CONTENT_TYPE), ("Content-Length", str(len(body))), ("Retry-After", "30")]
    start_response("503 Service Unavailable", headers)
    return [body]

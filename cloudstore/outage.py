"""What is answered when an error reaches nobody else: 503 while the database fails, else 500.

`server_error` is Django's handler500, so one place serves views, middleware and templates alike; the API's own
handler asks `vfs.api.problems.describe`, which tells the same errors with the same words.
"""

from __future__ import annotations

import sys

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.template import loader

from vfs.api.problems import CONTENT_TYPE, describe, problem


def server_error(request: HttpRequest) -> HttpResponse:
    """The answer to an uncaught error: a problem below /api/, a page elsewhere. An outage is logged in one line;
    everything else with its traceback, by Django."""
    error = sys.exc_info()[1]
    known = describe(error) if isinstance(error, Exception) else None
    body, headers = known or (
        problem(500, "server_error", "The fault is on our side and has been logged."),
        {},
    )
    response: HttpResponse
    if request.path.startswith("/api/"):
        response = JsonResponse(body, status=body["status"], content_type=CONTENT_TYPE)
    elif known is None:
        response = HttpResponse(loader.render_to_string("500.html"), status=500)
    else:
        # Without the request: its context processors would ask the database again.
        page = loader.render_to_string("503.html", {"detail": body["detail"], "status": body["status"]})
        response = HttpResponse(page, status=body["status"])
    for name, value in headers.items():
        response[name] = value
    response["Cache-Control"] = "private, no-store"
    if known is not None:
        setattr(response, "_has_been_logged", True)  # noqa: B010 - `describe` did; Django's own mark
    return response

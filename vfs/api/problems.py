"""Errors as problem details (RFC 9457): `type`, `title`, `status`, `detail` and a stable `code`."""

from __future__ import annotations

import http
import logging
from typing import Any

from django.core.exceptions import BadRequest, PermissionDenied, SuspiciousOperation
from django.db import InterfaceError, InternalError, OperationalError
from django.http import Http404
from django.http.multipartparser import MultiPartParserError
from rest_framework import exceptions
from rest_framework.response import Response
from rest_framework.views import set_rollback

from accounts.quota import QuotaExceeded
from brokers.keyring import KeyringError
from replication.errors import ContentDamaged, ContentUnavailable, StateConflict, WriteRefused
from vfs.amounts import amount
from vfs.errors import VfsError

log = logging.getLogger(__name__)

CONTENT_TYPE = "application/problem+json"
RETRY_AFTER = 30  # seconds, where waiting can help


class Refused(Exception):
    """A request that is wrong in itself: `status`, `code` and words."""

    def __init__(self, status: int, code: str, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail = status, code, detail
        self.headers = headers or {}


# Everything that is not 400.
_VFS_STATUS = {
    "not_found": 404,
    "name_taken": 409,
    "not_a_folder": 409,
    "is_a_folder": 409,
    "is_root": 409,
    "folder_deleted": 409,
    "account_closed": 403,
    "precondition_failed": 412,
}


def problem(status: int, code: str, detail: str, **more: Any) -> dict[str, Any]:
    """The body of a problem."""
    title = http.HTTPStatus(status).phrase
    return {"type": "about:blank", "title": title, "status": status, "code": code, "detail": detail, **more}


def describe(error: Exception) -> tuple[dict[str, Any], dict[str, str]] | None:
    """An error that the services raise as (problem, headers); None when it is none of them."""
    wait = {"Retry-After": str(RETRY_AFTER)}
    match error:
        case Refused():
            return problem(error.status, error.code, error.detail), error.headers
        case VfsError():
            return problem(_VFS_STATUS.get(error.code, 400), error.code, str(error)), {}
        case QuotaExceeded():
            numbers = {n: getattr(error, n) for n in ("limit", "used", "reserved", "needed")}
            free = max(0, error.limit - error.used - error.reserved)
            detail = f"There is not enough space: {amount(error.needed)} needed, {amount(free)} free."
            return problem(413, "quota_exceeded", detail, **numbers), {}
        case WriteRefused():
            detail = "Not enough brokers take uploads at the moment. Nothing was stored; try again later."
            return problem(503, error.code, detail), wait
        case ContentUnavailable():
            detail = "No broker that holds this file answers at the moment. Try again later."
            return problem(503, error.code, detail), wait
        case ContentDamaged():
            return problem(502, error.code, "No undamaged copy of this file could be read."), {}
        case StateConflict():
            return problem(409, error.code, "The upload expired or was cancelled. Nothing was stored."), {}
        case OperationalError() | InterfaceError() | InternalError():
            return _database(error, wait)
        case KeyringError():
            log.error("the master key does not open what was asked for: %s", error)
            detail = (
                "The server's master key does not fit. Nothing was stored; the operator has to put it right."
            )
            return problem(503, "wrong_master_key", detail), wait
    return None


# What SQLite calls operational and is a fault in the code or in the schema.
_FAULTS = ("no such table", "no such column", "no such function", "has no column", "syntax error")
_FULL = ("is full", "no space left", "could not extend", "disk full")
_READ_ONLY = ("readonly", "read-only")


def _database(error: Exception, wait: dict[str, str]) -> tuple[dict[str, Any], dict[str, str]] | None:
    """Down, locked, full, read-only, a deadlock, a serialization failure: what was asked for is not done, or (an
    answer that was lost) not known to be. None for an error that waiting does not mend."""
    words = str(error).lower()
    if any(part in words for part in _FAULTS):
        return None
    log.error("the database failed: %s: %s", type(error).__name__, str(error).strip())
    detail = "The database does not take this at the moment. Try again later."
    if any(part in words for part in _FULL):
        detail = "The database has no space left. Nothing was changed."
    elif any(part in words for part in _READ_ONLY):
        detail = "The database takes no changes at the moment. Nothing was changed; try again later."
    return problem(503, "database_unavailable", detail), wait


def exception_handler(error: Exception, context: dict[str, Any]) -> Response | None:
    """DRF's exception handler. None (an unknown error) ends in a 500 without any detail."""
    known = describe(error)
    if known is None:
        known = _framework(error)
    if known is None:
        return None
    set_rollback()
    body, headers = known
    return Response(body, status=body["status"], headers=headers, content_type=CONTENT_TYPE)


def _framework(error: Exception) -> tuple[dict[str, Any], dict[str, str]] | None:
    if isinstance(error, Http404):
        return problem(404, "not_found", "There is nothing here."), {}
    if isinstance(error, PermissionDenied):
        return problem(403, "permission_denied", "This is not allowed."), {}
    if isinstance(error, SuspiciousOperation | BadRequest | MultiPartParserError):
        return problem(400, "bad_request", "The request cannot be read."), {}
    if not isinstance(error, exceptions.APIException):
        return None
    headers = {}
    if auth_header := getattr(error, "auth_header", None):
        headers["WWW-Authenticate"] = auth_header
    if wait := getattr(error, "wait", None):
        headers["Retry-After"] = str(int(wait))
    if isinstance(error, exceptions.ValidationError):
        fields = error.get_full_details()
        return problem(400, "invalid", "Some values are not valid.", errors=fields), headers
    codes = error.get_codes()
    code = codes if isinstance(codes, str) else error.default_code
    return problem(error.status_code, code, str(error.detail)), headers

"""From a request's body to files: what the byte doors of the API and of the pages share."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from django.http import HttpRequest

from accounts import quota
from accounts.models import User
from vfs.api.body import Body
from vfs.api.multipart import FIELDS_MOST, Multipart, boundary_of
from vfs.api.problems import Refused
from vfs.conditions import Conditions
from vfs.models import Node
from vfs.upload import FileUpload, Outcome, commit_all, target_at, target_in

# What boundaries, headers and fields of a multipart body may add to its files.
OVERHEAD = 2 * 1024 * 1024


def receive_file(actor: User, names: Sequence[str], request: HttpRequest) -> Outcome:
    """The body is the file at this path. Raises what `FileUpload` raises, and Refused."""
    body = Body(request)
    target = target_at(actor, names)
    with FileUpload(
        actor, target, size=body.length, conditions=Conditions.of(request), request=request
    ) as upload:
        for chunk in body.chunks():
            upload.write(chunk)
        upload.complete(sha256=body.sha256)
        return upload.commit()


def receive_form(actor: User, folder: Node, request: HttpRequest) -> list[Outcome]:
    """The body is a form with any number of files for this folder: all become visible, or none. Raises what
    `FileUpload` raises, and Refused."""
    body = Body(request)
    boundary = boundary_of(request.META.get("CONTENT_TYPE", ""))
    if body.sha256 is not None:
        raise Refused(400, "bad_digest", "A digest cannot be checked for a form.")
    if body.length is not None:
        _fits(actor, body.length - OVERHEAD)
    fields = 0
    uploads: list[FileUpload] = []
    with ExitStack() as stack:
        for part in Multipart(body.chunks(), boundary):
            if not part.filename:
                size = sum(map(len, part.data)) if part.filename is None else _empty(next(part.data, b""))
                fields += size
                if fields > FIELDS_MOST:
                    raise Refused(413, "too_large", "The fields of the form are too large.")
                continue
            target = target_in(actor, folder, part.filename)
            upload = FileUpload(actor, target, most=body.length, request=request)
            uploads.append(stack.enter_context(upload))
            for piece in part.data:
                upload.write(piece)
            upload.complete()
        if not uploads:
            raise Refused(400, "no_file", "The form holds no file.")
        return commit_all(uploads)


def _empty(first: bytes) -> int:
    """A form whose file input was left empty sends a part without a file name and without bytes."""
    if first:
        raise Refused(400, "invalid_name", "The name is empty.")
    return 0


def _fits(user: User, least: int) -> None:
    """Raises QuotaExceeded for a body that can surely not fit, before any of it is read."""
    now = quota.usage(user)
    if least > now.free:
        raise quota.QuotaExceeded(limit=now.limit, used=now.used, reserved=now.reserved, needed=least)

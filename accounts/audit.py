"""The audit trail's only pen."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.models import AnonymousUser
from django.http import HttpRequest

from accounts.address import client_address
from accounts.models import AuditEvent, User
from prepared.change import insert


def record(
    actor: User | AnonymousUser | None,
    action: str,
    target: object = "",
    request: HttpRequest | None = None,
    **detail: Any,
) -> AuditEvent:
    """Adds one row in the caller's transaction, so that it stands exactly when what it tells of stands.

    `action` is `noun.verb` in the past ("token.created"), `target` what it was done to (cut at 255
    characters), `detail` JSON values and never a secret. `request` gives the address; a DRF request will do.
    """
    known = actor if isinstance(actor, User) else None
    event = AuditEvent(
        actor=known,
        actor_name=known.get_username() if known else "",
        action=action,
        target=str(target)[:255],
        address=client_address(request) if request is not None else "",
        detail=detail,
    )
    return insert(event)

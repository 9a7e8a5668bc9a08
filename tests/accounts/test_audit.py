"""The audit trail only grows."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import AnonymousUser
from django.db import transaction
from django.test import RequestFactory

from accounts import audit
from accounts.models import AppendOnly, AuditEvent, User


def test_record(alice: User, rf: RequestFactory) -> None:
    event = audit.record(alice, "file.purged", "x" * 300, rf.get("/"), size=5)
    event.refresh_from_db()
    assert (event.actor, event.actor_name, event.action) == (alice, "alice", "file.purged")
    assert (len(event.target), event.address, event.detail) == (255, "127.0.0.1", {"size": 5})
    assert "alice file.purged" in str(event)
    assert audit.record(None, "x").actor_name == audit.record(AnonymousUser(), "x").actor_name == ""


def test_rows_stay_as_they_are(alice: User) -> None:
    event = audit.record(alice, "file.purged")
    event.action = "nothing"
    for act in (
        event.save,
        event.delete,
        AuditEvent.objects.all().delete,
        lambda: AuditEvent.objects.update(action="nothing"),
        lambda: AuditEvent.objects.bulk_update([event], ["action"]),
    ):
        with pytest.raises(AppendOnly):
            act()
    assert AuditEvent.objects.get().action == "file.purged"


def test_the_trail_outlives_its_actor(alice: User) -> None:
    audit.record(alice, "file.purged")
    alice.delete()
    event = AuditEvent.objects.get()
    assert (event.actor, event.actor_name) == (None, "alice")


def test_the_row_goes_with_its_transaction(alice: User) -> None:
    with pytest.raises(RuntimeError), transaction.atomic():
        audit.record(alice, "file.purged")
        raise RuntimeError
    assert not AuditEvent.objects.exists()

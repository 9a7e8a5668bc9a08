"""Changes that are compiled once do what the ORM does, on both databases."""

from __future__ import annotations

import uuid

import pytest
from django.db import IntegrityError, transaction
from django.db.models import F

from accounts.models import AuditEvent, Plan, User
from prepared.change import Delete, Update, insert
from prepared.query import Slot
from replication.models import Content, Replica, Segment

pytestmark = pytest.mark.django_db

USER = Slot("user", User, "id")
RAISE = Update(
    lambda: (
        User.objects.filter(pk=USER, used__lte=Slot("most", User, "used")),
        {"used": F("used") + Slot("more", User, "used"), "first_name": "raised"},
    )
)
RENAME = Update(
    lambda: (Plan.objects.filter(pk=Slot("id", Plan, "id")), {"name": Slot("name", Plan, "name")})
)
DROP = Delete(lambda: Plan.objects.filter(pk=Slot("id", Plan, "id")))


def test_an_update_changes_what_its_condition_meets(alice: User, bob: User) -> None:
    assert RAISE(user=alice.pk, most=0, more=7) == 1
    assert RAISE(user=alice.pk, most=0, more=7) == 0
    assert RAISE(user=alice.pk, most=7, more=3) == 1
    alice.refresh_from_db()
    bob.refresh_from_db()
    assert (alice.used, alice.first_name, bob.used, bob.first_name) == (10, "raised", 0, "")
    with pytest.raises(KeyError):
        RAISE(user=alice.pk, most=0)


def test_an_update_of_each_row() -> None:
    plans = [Plan.objects.create(name=name) for name in "ab"]
    RENAME.each({"id": plan.pk, "name": plan.name * 3} for plan in plans)
    assert {plan.name for plan in Plan.objects.filter(pk__in=[p.pk for p in plans])} == {"aaa", "bbb"}
    RENAME.each([])


def test_a_delete_takes_nothing_along(alice: User) -> None:
    gone, used = Plan.objects.create(name="gone"), Plan.objects.create(name="used")
    assert DROP(id=gone.pk) == 1
    assert DROP(id=gone.pk) == 0
    content = Content.objects.create(key_version=1, wrapped_key=b"w")
    Segment.objects.create(content=content, position=0, offset=0, size=1, sealed_size=2)
    drop = Delete(lambda: Content.objects.filter(pk=Slot("id", Content, "id")))
    with pytest.raises(IntegrityError), transaction.atomic():
        drop(id=content.pk)
        _check_now()
    assert Plan.objects.filter(pk=used.pk).exists()
    assert Segment.objects.filter(content=content).exists()


def _check_now() -> None:
    """Foreign keys are checked at the commit otherwise."""
    from django.db import connection

    connection.check_constraints()


def test_an_insert_is_that_of_the_orm(alice: User) -> None:
    content = insert(Content(id=uuid.uuid4(), key_version=1, wrapped_key=b"\0wrapped"))
    segment = insert(Segment(content=content, position=0, offset=0, size=1, sealed_size=2))
    event = insert(AuditEvent(actor=alice, actor_name="alice", action="a", target="t", detail={"n": [1]}))
    for made in (content, segment, event):
        found = type(made).objects.get(pk=made.pk)
        assert not made._state.adding
        for field in made._meta.concrete_fields:
            mine, theirs = getattr(made, field.attname), getattr(found, field.attname)
            assert (bytes(mine) if isinstance(mine, bytes) else mine) == (
                bytes(theirs) if isinstance(theirs, memoryview) else theirs
            )
    segment.size = 5
    segment.save()
    assert Segment.objects.get(pk=segment.pk).size == 5, "an instance like any other"
    assert Segment.objects.count() == 1


def test_an_insert_keeps_the_rules() -> None:
    content = insert(Content(id=uuid.uuid4(), key_version=1, wrapped_key=b"w"))
    with pytest.raises(IntegrityError), transaction.atomic():
        insert(Content(id=content.pk, key_version=1, wrapped_key=b"w"))
    with pytest.raises(IntegrityError), transaction.atomic():
        insert(Replica(segment_id=10**9, broker_id=10**9, key="cs/00/0", state="nonsense"))
        _check_now()

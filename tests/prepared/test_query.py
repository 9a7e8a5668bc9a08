"""Queries that are compiled once answer as their querysets do, on both databases."""

from __future__ import annotations

import threading
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection
from django.db.models import Q

from accounts.models import Plan, Token, User
from accounts.tokens import create
from prepared.query import Query, Slot, columns, instances

pytestmark = pytest.mark.django_db

BY_NAME = Query(
    lambda: (
        User.objects.order_by()
        .filter(username=Slot("name", User, "username"))
        .values_list(*columns(User), *columns(Plan, "plan__"))
    )
)


def test_instances_are_those_of_the_orm(alice: User) -> None:
    User.objects.filter(pk=alice.pk).update(plan=Plan.objects.create(name="Studio", copies=3))
    (row,) = BY_NAME(name="alice")
    user, plan = instances(row, User, Plan)
    known = User.objects.select_related("plan").get(pk=alice.pk)
    for found, expected in ((user, known), (plan, known.plan)):
        assert found == expected
        for field in expected._meta.concrete_fields:
            assert getattr(found, field.attname) == getattr(expected, field.attname)
    user.first_name = "Alice"
    user.save()
    assert User.objects.get(pk=alice.pk).first_name == "Alice", "an instance like any other"


def test_a_left_join_that_finds_nothing_gives_none(alice: User) -> None:
    (row,) = BY_NAME(name="alice")
    assert list(instances(row, User, Plan)) == [alice, None]


def test_values_come_with_each_call(alice: User, bob: User) -> None:
    for user in (alice, bob, alice):
        assert [row[0] for row in BY_NAME(name=user.username)] == [user.pk]
    assert BY_NAME(name="' OR 1=1 --") == []
    with pytest.raises(KeyError):
        BY_NAME(wrong="alice")


def test_dates_json_and_ids_are_converted_both_ways(alice: User) -> None:
    at = datetime(2026, 2, 3, 4, 5, 6, 789, tzinfo=UTC)
    token, _plain = create(alice, "t", ["files:read"], expires_at=at)
    query = Query(
        lambda: (
            Token.objects.order_by()
            .filter(Q(expires_at__gt=Slot("now", Token, "expires_at")))
            .values_list("id", "scopes", "expires_at")
        )
    )
    assert query(now=at - timedelta(microseconds=1)) == [(token.pk, ["files:read"], at)]
    assert query(now=at) == []


def test_ids_that_are_uuids() -> None:
    from replication.models import Content

    content = Content.objects.create(key_version=1, wrapped_key=b"w")
    query = Query(
        lambda: Content.objects.filter(pk=Slot("pk", Content, "id")).values_list(
            "id", "wrapped_key", "created_at"
        )
    )
    ((found, wrapped, at),) = query(pk=content.pk)
    assert (found, bytes(wrapped), at) == (content.pk, b"w", content.created_at)
    assert query(pk=uuid.uuid4()) == []


@pytest.mark.django_db(transaction=True)
def test_every_thread_asks_on_its_own_connection(alice: User) -> None:
    assert BY_NAME(name="alice")
    seen: list[tuple[object, bool]] = []

    def ask() -> None:
        try:
            seen.append((BY_NAME(name="alice")[0][0], connection.connection is not None))
        finally:
            connection.close()

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert seen == [(alice.pk, True)]

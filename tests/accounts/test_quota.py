"""Quota numbers: exact under races, on every database."""

from __future__ import annotations

import threading

import pytest
from django.db import connection, connections, transaction
from django.test.utils import CaptureQueriesContext

from accounts import quota
from accounts.models import DEFAULT_QUOTA, Plan, User
from accounts.quota import QuotaExceeded


@pytest.fixture
def user(db: None) -> User:
    return User.objects.create(username="alice", quota=100)


def numbers(user: User) -> tuple[int, int]:
    now = quota.usage(user)
    return now.used, now.reserved


def test_limit_is_own_then_plan_then_default(user: User) -> None:
    plan = Plan.objects.create(name="Small", quota=50)
    assert quota.limit_of(user) == 100
    User.objects.filter(pk=user.pk).update(plan=plan)
    assert quota.limit_of(user) == 100
    User.objects.filter(pk=user.pk).update(quota=None)
    assert quota.limit_of(user.pk) == 50
    quota.reserve(user.pk, 50)
    with pytest.raises(QuotaExceeded):
        quota.reserve(user.pk, 1)
    User.objects.filter(pk=user.pk).update(plan=None)
    assert quota.limit_of(user) == DEFAULT_QUOTA
    User.objects.filter(pk=user.pk).update(quota=0)
    assert quota.limit_of(user) == 0


def test_standard_plan_stands_ready(db: None) -> None:
    assert Plan.objects.get(name="Standard").quota == DEFAULT_QUOTA


def test_reserve_settle_release_refund(user: User) -> None:
    quota.reserve(user.pk, 60)
    quota.reserve(user.pk, 40)
    with pytest.raises(QuotaExceeded) as caught:
        quota.reserve(user.pk, 1)
    refused = caught.value
    assert (refused.limit, refused.used, refused.reserved, refused.needed) == (100, 0, 100, 1)
    quota.settle(user.pk, reserved=60, used=50)
    assert numbers(user) == (50, 40)
    quota.release(user.pk, 40)
    assert numbers(user) == (50, 0)
    assert quota.usage(user).free == 50
    quota.refund(user.pk, 50)
    assert numbers(user) == (0, 0)


def test_settle_goes_with_its_transaction(user: User) -> None:
    quota.reserve(user.pk, 10)
    with pytest.raises(RuntimeError), transaction.atomic():
        quota.settle(user.pk, reserved=10, used=10)
        raise RuntimeError
    assert numbers(user) == (0, 10)


@pytest.mark.django_db(transaction=True)
def test_settle_and_hold_need_a_transaction() -> None:
    user = User.objects.create(username="alice")
    with pytest.raises(transaction.TransactionManagementError):
        quota.settle(user.pk, reserved=0, used=0)
    with pytest.raises(transaction.TransactionManagementError):
        quota.hold(user.pk)


def test_bad_numbers_change_nothing(user: User) -> None:
    quota.reserve(user.pk, 10)
    with pytest.raises(ValueError, match="negative"):
        quota.reserve(user.pk, -1)
    with pytest.raises(ValueError, match="negative"):
        quota.release(user.pk, -1)
    with pytest.raises(ValueError, match="negative"):
        quota.refund(user.pk, -1)
    with pytest.raises(ValueError, match="negative"):
        quota.settle(user.pk, reserved=5, used=-5)
    with pytest.raises(ValueError, match="of 5 reserved"):
        quota.settle(user.pk, reserved=5, used=6)
    assert numbers(user) == (0, 10)


@pytest.mark.parametrize("n", [2**62, 2**63 - 1, 2**63, 10**30])
def test_absurd_sizes_are_refused(user: User, n: int) -> None:
    quota.reserve(user.pk, 10)
    with pytest.raises(QuotaExceeded):
        quota.reserve(user.pk, n)
    assert numbers(user) == (0, 10)


def test_above_the_limit_nothing_but_zero_fits(user: User) -> None:
    User.objects.filter(pk=user.pk).update(used=200)
    quota.reserve(user.pk, 0)
    with pytest.raises(QuotaExceeded):
        quota.reserve(user.pk, 1)
    assert quota.usage(user).free == 0


def test_unknown_user(db: None) -> None:
    with pytest.raises(User.DoesNotExist):
        quota.reserve(12345, 1)
    with pytest.raises(User.DoesNotExist):
        quota.settle(12345, reserved=1, used=1)
    quota.release(12345, 1)
    quota.refund(12345, 1)


def test_wrong_numbers_never_go_negative_and_are_named(user: User, expect_log: object) -> None:
    expect_log("quota numbers of user")  # type: ignore[operator]
    quota.reserve(user.pk, 10)
    quota.release(user.pk, 11)
    assert numbers(user) == (0, 0)
    quota.refund(user.pk, 1)
    assert numbers(user) == (0, 0)
    quota.settle(user.pk, reserved=7, used=5)
    assert numbers(user) == (5, 0)


def test_recount(user: User) -> None:
    quota.hold(user.pk)
    assert quota.set_recounted(user.pk, 7, 3) is True
    assert quota.set_recounted(user.pk, 7, 3) is False
    assert numbers(user) == (7, 3)
    assert quota.set_recounted(12345, 7, 3) is False


def test_reserve_is_one_statement_on_the_row_itself(user: User) -> None:
    with CaptureQueriesContext(
        connection,
    ) as queries:
        quota.reserve(user.pk, 1)
    (statement,) = [q["sql"] for q in queries if not q["sql"].startswith(("SAVEPOINT", "RELEASE"))]
    assert statement.startswith("UPDATE")
    assert statement.count('"accounts_user" ') == 1, "a sub-select on the user would not be checked anew"
    assert " IN (" not in statement


@pytest.mark.django_db(transaction=True)
def test_twenty_racing_uploads_never_exceed_the_limit() -> None:
    user = User.objects.create(username="alice", plan=Plan.objects.create(name="Small", quota=70))
    start = threading.Barrier(20)
    results: list[str] = []

    def upload(number: int) -> None:
        try:
            start.wait()
            quota.reserve(user.pk, 10)
            if number % 2:
                with transaction.atomic():
                    quota.settle(user.pk, reserved=10, used=10)
                results.append("settled")
            else:
                results.append("reserved")
        except QuotaExceeded as refused:
            assert refused.used + refused.reserved + refused.needed > refused.limit
            results.append("refused")
        finally:
            connections.close_all()

    threads = [threading.Thread(target=upload, args=(n,)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 20
    assert results.count("refused") == 13
    assert numbers(user) == (10 * results.count("settled"), 10 * results.count("reserved"))

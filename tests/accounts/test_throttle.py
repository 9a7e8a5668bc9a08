"""The brake on guessing passwords."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from django.db import connections
from django.db.models import F
from django.utils import timezone

from accounts import throttle
from accounts.models import SignInAttempts
from accounts.throttle import Throttled

HERE, THERE = "192.0.2.1", "192.0.2.2"
pytestmark = pytest.mark.django_db


def later(**duration: float) -> None:
    """The rows grow older, as if time had passed."""
    by = timedelta(**duration)
    SignInAttempts.objects.update(last_at=F("last_at") - by, blocked_until=F("blocked_until") - by)


def fail(account: str = "alice", address: str = HERE, times: int = 1) -> None:
    for _ in range(times):
        throttle.claim(account, address)


def wait_of(account: str = "alice", address: str = HERE) -> int:
    with pytest.raises(Throttled) as caught:
        throttle.claim(account, address)
    return caught.value.retry_after


def test_five_failures_then_growing_waits() -> None:
    fail(times=5)
    for wait in (30, 60, 120, 240, 480, 480):
        assert wait - 2 <= wait_of() <= wait
        later(seconds=wait)
        fail()


def test_refused_attempts_cost_nothing() -> None:
    fail(times=5)
    before = list(SignInAttempts.objects.order_by("key").values())
    for _ in range(10):
        wait_of()
    assert list(SignInAttempts.objects.order_by("key").values()) == before


def test_failures_are_forgotten_after_the_window() -> None:
    fail(times=4)
    later(minutes=15, seconds=1)
    fail(times=5)
    wait_of()


def test_others_are_not_locked_out() -> None:
    fail(times=5)
    wait_of()
    fail("alice", THERE)
    fail("bob", HERE)


def test_spelling_does_not_help_and_is_not_kept() -> None:
    for name in ("alice", "ALICE", " alice", "ali\uff43e", "Alice"):
        fail(name)
    wait_of("alice")
    assert "alice" not in str(list(SignInAttempts.objects.values()))


def test_odd_names_are_counted_too() -> None:
    for name in ("", "\0", "\ud800", "x" * 100_000):
        fail(name, times=5)
        wait_of(name)


def test_an_address_is_slowed_down_over_all_accounts() -> None:
    for number in range(50):
        fail(f"user{number}")
    assert wait_of("somebody") <= 30
    fail("somebody", THERE)
    later(seconds=31)
    fail("somebody")
    assert 30 < wait_of("somebody") <= 60


def test_one_ipv6_network_is_one_address() -> None:
    for number in range(5):
        fail("alice", f"2001:db8::{number}")
    wait_of("alice", "2001:db8::ffff")
    fail("alice", "2001:db8:0:1::1")


def test_success_forgets_the_pair_and_only_its_own_count_of_the_address() -> None:
    fail("bob", times=3)
    fail("alice", times=4)
    throttle.forgive(throttle.claim("alice", HERE))
    assert sorted(SignInAttempts.objects.values_list("failures", flat=True)) == [3, 7]
    fail("alice", times=5)
    wait_of("alice")


def test_success_at_the_limit_leaves_no_block() -> None:
    fail("alice", times=4)
    throttle.forgive(throttle.claim("alice", HERE))
    assert not SignInAttempts.objects.exclude(blocked_until=None).exists()


def test_take_back_undoes_one_attempt() -> None:
    fail(times=4)
    throttle.take_back(throttle.claim("alice", HERE))
    assert sorted(SignInAttempts.objects.values_list("failures", "blocked_until")) == [(4, None), (4, None)]


def test_old_rows_go() -> None:
    fail("bob", THERE)
    later(days=2)
    fail("alice", HERE)
    assert SignInAttempts.objects.filter(last_at__lt=timezone.now() - timedelta(days=1)).count() == 0
    assert SignInAttempts.objects.count() == 2


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("accounts", ["one account", "many accounts"])
def test_twenty_at_once_get_no_further_than_one_after_another(accounts: str) -> None:
    """Five are free: of one account by its rule, of many because the address has 45 failures behind it."""
    one = accounts == "one account"
    for number in range(0 if one else 45):
        fail(f"user{number}")
    start = threading.Barrier(20)
    results: list[bool] = []

    def guess(number: int) -> None:
        try:
            start.wait()
            throttle.claim("alice" if one else f"guess{number}", HERE)
            results.append(True)
        except Throttled:
            results.append(False)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=guess, args=(n,)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(results), sum(results)) == (20, 5)
    # The refused ones left no count behind.
    assert max(SignInAttempts.objects.values_list("failures", flat=True)) == (5 if one else 50)

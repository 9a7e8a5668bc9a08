"""The admin pages of accounts, as each of the cast."""

from __future__ import annotations

import pytest
from django.test import Client
from django.urls import reverse

from accounts import audit, tokens
from accounts.models import AuditEvent, Plan, User
from tests.cast import Browser

pytestmark = pytest.mark.urls("tests.accounts.urls")
MODELS = ["user", "plan", "token", "auditevent"]


@pytest.fixture
def operator(root: User) -> Client:
    client = Client()
    client.force_login(root)
    return client


@pytest.mark.parametrize("model", MODELS)
def test_lists_open_for_root_alone(
    operator: Client, alice: User, browser_client: Browser, model: str
) -> None:
    audit.record(alice, "file.purged", "x")
    tokens.create(alice, "laptop")
    address = reverse(f"admin:accounts_{model}_changelist")
    assert operator.get(address).status_code == 200
    assert browser_client(alice).get(address).status_code == 302
    assert Client().get(address).status_code == 302


def test_user_page_shows_storage_and_keeps_counters(operator: Client, alice: User) -> None:
    User.objects.filter(pk=alice.pk).update(used=3 * 2**30, reserved=2**20, quota=7 * 2**30)
    address = reverse("admin:accounts_user_change", args=[alice.pk])
    page = operator.get(address).content.decode()
    for text in ("3.0\xa0GB", "1.0\xa0MB", "7.0\xa0GB", 'name="plan"', 'name="quota"'):
        assert text in page
    assert 'name="used"' not in page and 'name="reserved"' not in page
    plan = Plan.objects.get(name="Standard")
    form = {"username": "alice", "plan": plan.pk, "quota": "", "used": "0", "is_active": "on"}
    form |= {"date_joined_0": "2026-01-01", "date_joined_1": "00:00:00"}
    assert operator.post(address, form).status_code == 302
    alice.refresh_from_db()
    assert (alice.plan, alice.quota, alice.used) == (plan, None, 3 * 2**30)
    assert operator.post(address, form | {"quota": "-1"}).status_code == 200


def test_user_can_be_added(operator: Client) -> None:
    address = reverse("admin:accounts_user_add")
    assert operator.get(address).status_code == 200
    form = {
        "username": "carol",
        "usable_password": "true",
        "password1": "a long secret",
        "password2": "a long secret",
    }
    assert operator.post(address, form).status_code == 302
    assert User.objects.get(username="carol").check_password("a long secret")


def test_tokens_show_no_secret_and_can_only_be_revoked(operator: Client, alice: User) -> None:
    token, plain = tokens.create(alice, "laptop")
    address = reverse("admin:accounts_token_change", args=[token.pk])
    page = operator.get(address).content.decode()
    assert token.prefix in page and token.digest not in page and plain not in page
    assert operator.post(address, {"name": "x"}).status_code == 403
    assert operator.get(reverse("admin:accounts_token_add")).status_code == 403
    listing = reverse("admin:accounts_token_changelist")
    response = operator.post(listing, {"action": "revoke", "_selected_action": [token.pk]})
    assert response.status_code == 302
    assert tokens.verify(plain) is None
    assert AuditEvent.objects.get().action == "token.revoked"


def test_audit_trail_is_read_only(operator: Client, alice: User) -> None:
    event = audit.record(alice, "file.purged", "x")
    address = reverse("admin:accounts_auditevent_change", args=[event.pk])
    assert operator.get(address).status_code == 200
    assert operator.post(address, {"action": "nothing"}).status_code == 403
    assert operator.post(reverse("admin:accounts_auditevent_delete", args=[event.pk])).status_code == 403
    assert AuditEvent.objects.get().action == "file.purged"

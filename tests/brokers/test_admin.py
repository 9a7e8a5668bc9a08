"""The operator's pages for brokers."""

from __future__ import annotations

import pytest
from django.contrib.auth import get_user_model

from brokers import credentials
from brokers.drivers import memory
from brokers.models import Broker, Health
from brokers.services import add_broker
from tests.brokers.secretive import CANARY, register

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.urls("tests.brokers.admin_urls"),
    pytest.mark.only_on("sqlite"),
]
ADD = "/admin/brokers/broker/add/"


@pytest.fixture
def root(client):
    user = get_user_model().objects.create_superuser("root", "root@example.com", "pw")
    client.force_login(user)
    return client


def errors(response) -> str:
    form = response.context["adminform"].form
    return " ".join(text for texts in form.errors.values() for text in texts)


def test_a_kind_is_chosen_first(root):
    page = root.get(ADD).content.decode()
    assert "S3-compatible bucket" in page and "Local folder" in page and "Memory" not in page


def test_an_unknown_kind_leads_back_with_a_reason(root):
    response = root.get(ADD, {"driver": "nothing"}, follow=True)
    assert "no driver is registered as" in response.content.decode()


def test_add_and_change_a_local_broker(root, roots):
    page = root.get(f"{ADD}?driver=local").content.decode()
    assert 'name="option_root"' in page and 'name="weight"' in page
    data = {
        "name": "Disk",
        "domain": "here",
        "weight": "1.5",
        "option_root": str(roots / "a"),
        "option_sync": "on",
    }
    response = root.post(f"{ADD}?driver=local", data)
    assert response.status_code == 302
    broker = Broker.objects.get()
    assert (broker.name, broker.driver, broker.weight, broker.health) == ("Disk", "local", 1.5, Health.ONLINE)
    assert broker.options["root"] == str(roots / "a") and broker.options["sync"] is True
    change = f"/admin/brokers/broker/{broker.pk}/change/"
    page = root.get(change).content.decode()
    assert str(roots / "a") in page and "online" in page
    data.update(name="Disk one", weight="0", option_mount_point=broker.options["mount_point"])
    assert root.post(change, data).status_code == 302
    broker.refresh_from_db()
    assert (broker.name, broker.weight, broker.enabled) == ("Disk one", 0, False)
    assert root.post(change, {**data, "enabled": "on"}).status_code == 302
    broker.refresh_from_db()
    assert broker.enabled and broker.health == Health.ONLINE


def test_what_is_wrong_is_shown_beside_what_was_typed(root, roots):
    data = {"name": "Disk", "domain": "here", "weight": "1", "option_root": "/etc"}
    response = root.post(f"{ADD}?driver=local", data)
    assert response.status_code == 200 and "CLOUDSTORE_LOCAL_ROOTS" in errors(response)
    assert 'value="/etc"' in response.content.decode()
    assert not Broker.objects.exists()


def test_the_same_place_twice_is_refused(root, roots):
    add_broker("One", "local", "here", {"root": str(roots / "a")})
    data = {"name": "Two", "domain": "there", "weight": "1", "option_root": str(roots / "a")}
    response = root.post(f"{ADD}?driver=local", data)
    assert "already the broker" in errors(response) and Broker.objects.count() == 1


def test_secrets_are_write_only(root, settings):
    register(settings)
    data = {"name": "S", "domain": "d", "weight": "1", "option_space": "s", "option_secret_key": CANARY}
    assert root.post(f"{ADD}?driver=secretive", data).status_code == 302
    broker = Broker.objects.get()
    assert credentials.open_secrets(broker) == {"secret_key": CANARY}
    change = f"/admin/brokers/broker/{broker.pk}/change/"
    page = root.get(change).content.decode()
    assert CANARY not in page and CANARY not in str(broker.options)
    data.update(option_secret_key="", domain="e", enabled="on")
    assert root.post(change, data).status_code == 302
    broker.refresh_from_db()
    assert broker.domain == "e" and credentials.open_secrets(broker) == {"secret_key": CANARY}
    data.update(option_secret_key="wrong", name="")
    assert "wrong" not in root.post(change, data).content.decode()
    history = root.get(f"/admin/brokers/broker/{broker.pk}/history/").content.decode()
    assert CANARY not in history


def test_poll_now_and_write_the_marker(root, memory_broker):
    place = "/admin/brokers/broker/"
    memory.space("one").objects.pop("cs-marker")
    selected = {"_selected_action": [memory_broker.pk], "index": "0"}
    page = root.post(place, {"action": "poll_now", **selected}, follow=True).content.decode()
    assert "down (blank)" in page
    page = root.post(place, {"action": "write_marker", **selected}, follow=True).content.decode()
    assert "marker written" in page and "cs-marker" in memory.space("one").objects


def test_events_are_read_only_and_nothing_is_deleted_here(root, memory_broker, expect_log):
    expect_log("Forbidden")
    assert "added" in root.get("/admin/brokers/brokerevent/").content.decode()
    assert root.get("/admin/brokers/brokerevent/add/").status_code == 403
    assert root.post(f"/admin/brokers/broker/{memory_broker.pk}/delete/").status_code == 403


def test_strangers_are_sent_to_sign_in(client, memory_broker):
    for path in (ADD, f"{ADD}?driver=local", f"/admin/brokers/broker/{memory_broker.pk}/change/"):
        assert "/admin/login/" in client.get(path)["Location"]


def test_staff_without_the_right_change_nothing(client, memory_broker, expect_log):
    expect_log("Forbidden")
    user = get_user_model().objects.create_user("bob", "bob@example.com", "pw", is_staff=True)
    client.force_login(user)
    for path in (ADD, f"{ADD}?driver=memory"):
        data = {"name": "X", "domain": "d", "weight": "1", "option_space": "x"}
        assert client.post(path, data).status_code == 403
    assert Broker.objects.count() == 1

"""`manage.py init`: makes what is missing, and only that."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from django.contrib.auth import get_user_model
from django.core.management import call_command
from pytest_django.fixtures import Settings as SettingsWrapper

from brokers.models import Broker

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def data(tmp_path: Path, settings: SettingsWrapper) -> Path:
    settings.CLOUDSTORE_DATA = tmp_path
    settings.STATIC_ROOT = tmp_path / "static"
    settings.CLOUDSTORE_LOCAL_ROOTS = [tmp_path / "brokers"]
    return tmp_path


def init(*arguments: str) -> str:
    out = io.StringIO()
    call_command("init", *arguments, stdout=out)
    return out.getvalue()


def test_first_and_second_time(data: Path) -> None:
    text = init()
    password = text.partition("password: ")[2].split()[0]
    admin = get_user_model().objects.get()
    assert admin.username == "admin" and admin.is_superuser and admin.check_password(password)
    assert text.count(password) == 1
    assert "two folders on one disk" in text
    found = Broker.objects.order_by("name").values_list("name", "driver", "domain", "health")
    assert list(found) == [
        ("Local A", "local", "local-a", "online"),
        ("Local B", "local", "local-b", "online"),
    ]
    assert (data / "static" / "admin" / "css" / "base.css").is_file()

    assert init() == ""
    assert get_user_model().objects.count() == 1
    assert Broker.objects.count() == 2


def test_json() -> None:
    report = json.loads(init("--json"))
    assert report["brokers_added"] == ["Local A", "Local B"]
    assert report["static_files_collected"] is True
    assert get_user_model().objects.get().check_password(report["admin"]["password"])
    again = json.loads(init("--json"))
    assert again == {"migrated": False, "static_files_collected": False, "brokers_added": []}


def test_no_brokers() -> None:
    init("--no-brokers")
    assert not Broker.objects.exists()


def test_existing_users_and_brokers_are_left_alone() -> None:
    get_user_model().objects.create_user(username="alice", password="x")
    init("--no-brokers")
    assert get_user_model().objects.count() == 1


def test_static_files_are_collected_again_when_one_changed(data: Path, settings: SettingsWrapper) -> None:
    source = data / "source"
    source.mkdir()
    (source / "x.css").write_text("a {}")
    settings.STATICFILES_DIRS = [source]
    init()
    (source / "x.css").write_text("b {} ")
    os.utime(source / "x.css", (1, 1))
    init()
    assert (data / "static" / "x.css").read_text() == "b {} "

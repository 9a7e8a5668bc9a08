"""Configuration: wrong values are named together, secrets never quoted, and `.env.example` is complete."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from cloudstore.config import BASE_DIR, PLAIN_SOCKET_PATH, Config, parse_master_keys, queue_socket

pytestmark = pytest.mark.only_on("sqlite")

KEY = base64.b64encode(b"k" * 32).decode()


def settings_in(tmp_path: Path, code: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """Loads the product's settings in a process of its own."""
    clean = {name: value for name, value in os.environ.items() if name not in example_names()}
    clean |= {"CLOUDSTORE_DATA": str(tmp_path), "ENV_FILE": str(tmp_path / ".env")}
    clean |= {"SECRET_KEY": "s" * 50, "CLOUDSTORE_MASTER_KEYS": f"1:{KEY}"} | env
    command = [sys.executable, "-c", f"import cloudstore.settings as s; {code}"]
    return subprocess.run(command, env=clean, capture_output=True, text=True, cwd=BASE_DIR, timeout=60)


def example_names() -> set[str]:
    text = (BASE_DIR / ".env.example").read_text()
    return set(re.findall(r"^#?([A-Z_]+)=", text, re.MULTILINE))


def test_the_example_names_every_variable_that_is_read() -> None:
    source = "".join((BASE_DIR / "cloudstore" / name).read_text() for name in ("settings.py", "config.py"))
    read = set(re.findall(r"""config\.[a-z_]+\(\s*"([A-Z_]+)",?""", source))
    assert read - {"ENV_FILE"} == example_names()


def test_the_example_is_a_right_configuration(tmp_path: Path) -> None:
    example = BASE_DIR / ".env.example"
    done = settings_in(tmp_path, "print(s.PORT, s.REDIS_URL)", ENV_FILE=str(example))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("5000 redis+socket:///")


def test_wrong_values_are_named_together_and_secrets_never_quoted(tmp_path: Path) -> None:
    done = settings_in(
        tmp_path,
        PORT="80000",
        DEBUG="maybe",
        WEB_THREADS="many",
        SITE_URL="drive.example.com",
        DATABASE_URL="mysql://root:hunter2@db/x",
        REDIS_URL="amqp://guest:hunter2@mq",
        EMAIL_URL="http://ops:hunter2@mail.example.com",
        CLOUDSTORE_ALERT_WEBHOOK="ftp://hooks.example.com/hunter2",
        LOG_LEVEL="LOUD",
        CLOUDSTORE_MASTER_KEYS="1:aHVudGVyMg==,2:***hunter2***",
    )
    assert done.returncode != 0
    names = "PORT DEBUG WEB_THREADS SITE_URL DATABASE_URL REDIS_URL LOG_LEVEL CLOUDSTORE_MASTER_KEYS"
    names += " EMAIL_URL CLOUDSTORE_ALERT_WEBHOOK"
    for name in names.split():
        assert f"  {name}: " in done.stderr, name
    assert "80000 is not between 1 and 65535" in done.stderr
    message = done.stderr.partition("wrong configuration")[2]
    assert "hunter2" not in message and "aHVudGVyMg" not in message


def test_a_command_tells_what_is_wrong_without_a_traceback(tmp_path: Path) -> None:
    env = {**os.environ, "ENV_FILE": str(tmp_path / ".env"), "PORT": "http"}
    done = subprocess.run(
        [sys.executable, "manage.py", "check"],
        env=env,
        cwd=BASE_DIR,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "PORT: 'http' is not a whole number" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "url", ["postgresql://u:hunter2@db:port/x", "postgresql://", "sqlite://", "nonsense", "postgres://[::1/x"]
)
def test_a_wrong_database_url_is_not_quoted(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    config = Config()
    config.database("DATABASE_URL", tmp_path / "x")
    with pytest.raises(
        ImproperlyConfigured, match=r"DATABASE_URL: use sqlite:///FILE or postgresql"
    ) as caught:
        config.finish()
    assert "hunter2" not in str(caught.value)


def test_missing_secrets_are_named(tmp_path: Path) -> None:
    done = settings_in(tmp_path, SECRET_KEY="", CLOUDSTORE_MASTER_KEYS="")
    assert "SECRET_KEY and CLOUDSTORE_MASTER_KEYS not set" in done.stderr


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "at least one"),
        (KEY, "written VERSION:BASE64"),
        (f"0:{KEY}", "written VERSION:BASE64"),
        ("1:c2hvcnQ=", "has 5 bytes, not 32"),
        ("1:?", "is not base64"),
        (f"1:{KEY},1:{KEY}", "given twice"),
    ],
)
def test_wrong_master_keys(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        parse_master_keys(text)
    assert KEY not in str(caught.value)


def test_master_keys() -> None:
    other = base64.b64encode(b"o" * 32).decode()
    assert parse_master_keys(f" 1:{KEY}, 2:{other} ") == {1: b"k" * 32, 2: b"o" * 32}


def test_the_environment_wins_over_the_file_and_an_empty_value_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("# words\nT_A=file\nexport T_B='file two'\nT_C=file\n")
    monkeypatch.setenv("T_A", "environment")
    monkeypatch.setenv("T_B", "")
    monkeypatch.setenv("T_C", "")
    config = Config(tmp_path / ".env")
    assert [config.text(name) for name in ("T_A", "T_B", "T_C")] == ["environment", "file two", "file"]


def test_a_line_that_is_no_setting_is_named_by_number(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".env").write_text("# head\nSECRET_KEY hunter2\n")
    config = Config(tmp_path / ".env")
    with pytest.raises(ImproperlyConfigured, match=r"\.env line 2 is not NAME=VALUE"):
        config.finish()
    assert "hunter2" not in "".join(capfd.readouterr())


def test_relative_paths_count_from_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLOUDSTORE_DATA", "var/x")
    assert Config().path("CLOUDSTORE_DATA", tmp_path) == BASE_DIR / "var" / "x"
    monkeypatch.setenv("DATABASE_URL", "sqlite:///var/x.sqlite3")
    assert Config().database("DATABASE_URL", tmp_path)["NAME"] == str(BASE_DIR / "var" / "x.sqlite3")


def test_flags_seconds_and_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T_FLAG", "Yes")
    monkeypatch.setenv("T_LIST", "a, b,,c ")
    monkeypatch.setenv("T_SECONDS", "90")
    config = Config()
    assert config.flag("T_FLAG", False) is True
    assert config.items("T_LIST", []) == ["a", "b", "c"]
    assert config.seconds("T_SECONDS", 5, low=0, high=100) == timedelta(seconds=90)


@pytest.mark.parametrize("folder", ["/data", "/" + "deep/" * 30, "/my #1 data", "/d\u00e4ta"])
def test_the_queue_socket_always_has_a_usable_path(folder: str) -> None:
    path = queue_socket(Path(folder))
    assert PLAIN_SOCKET_PATH.fullmatch(str(path))
    assert path == queue_socket(Path(folder)), "every process finds the same"
    assert path != queue_socket(Path(folder + "x"))


def test_the_mail_server_and_the_webhook(tmp_path: Path) -> None:
    shown = (
        "print(s.EMAIL_HOST, s.EMAIL_PORT, getattr(s, 'EMAIL_USE_TLS', False), s.CLOUDSTORE_ALERT_WEBHOOK)"
    )
    assert settings_in(tmp_path, shown).stdout.split() == ["localhost", "25", "False"]
    address = "https://hooks.example.com/a/?token=x/"
    done = settings_in(
        tmp_path, shown, EMAIL_URL="smtp+tls://me:pw@mail.example.com:587", CLOUDSTORE_ALERT_WEBHOOK=address
    )
    assert done.stdout.split() == ["mail.example.com", "587", "True", address], done.stderr

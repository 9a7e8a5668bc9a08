"""The secrets' file: made once, privately, and never again beside existing data."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from cloudstore.config import BASE_DIR
from cloudstore.secretfile import ensure

pytestmark = pytest.mark.only_on("sqlite")


@pytest.fixture(autouse=True)
def no_secrets_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SECRET_KEY", raising=False)
    monkeypatch.delenv("CLOUDSTORE_MASTER_KEYS", raising=False)


def test_made_once_and_private(tmp_path: Path) -> None:
    data = tmp_path / "data"
    target = data / "secrets.env"
    assert str(target) in (ensure(data, target) or "")
    content = target.read_text()
    assert target.stat().st_mode & 0o777 == 0o600
    assert data.stat().st_mode & 0o777 == 0o700
    assert "SECRET_KEY=" in content and "CLOUDSTORE_MASTER_KEYS=1:" in content
    assert ensure(data, target) is None
    assert target.read_text() == content
    assert [path.name for path in data.iterdir()] == ["secrets.env"]


@pytest.mark.parametrize("there", ["cloudstore.sqlite3", "brokers"])
def test_no_new_key_beside_old_data(tmp_path: Path, there: str) -> None:
    (tmp_path / there).mkdir()
    target = tmp_path / "secrets.env"
    with pytest.raises(ImproperlyConfigured, match="could not open"):
        ensure(tmp_path, target)
    assert not target.exists()


def test_nothing_to_do_when_the_environment_gives_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_KEY", "x")
    monkeypatch.setenv("CLOUDSTORE_MASTER_KEYS", "1:x")
    assert ensure(tmp_path, tmp_path / "secrets.env") is None
    assert not list(tmp_path.iterdir())


def test_many_at_once_agree(tmp_path: Path) -> None:
    target = tmp_path / "secrets.env"
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: ensure(tmp_path, target), range(32)))
    assert len([result for result in results if result]) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_an_open_file_is_named(tmp_path: Path) -> None:
    target = tmp_path / "secrets.env"
    target.write_text("SECRET_KEY=x\n")
    target.chmod(0o644)
    assert "chmod 600" in (ensure(tmp_path, target) or "")


def test_as_a_command_it_follows_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text(
        f"CLOUDSTORE_DATA={tmp_path}/d\nCLOUDSTORE_SECRETS={tmp_path}/s/keys.env\n"
    )
    monkeypatch.setenv("ENV_FILE", str(tmp_path / ".env"))
    monkeypatch.delenv("CLOUDSTORE_DATA", raising=False)
    monkeypatch.delenv("CLOUDSTORE_SECRETS", raising=False)
    command = [sys.executable, "-m", "cloudstore.secretfile"]
    subprocess.run(command, check=True, capture_output=True, cwd=BASE_DIR, timeout=60)
    assert (tmp_path / "s" / "keys.env").is_file()
    (tmp_path / "s" / "keys.env").unlink()
    (tmp_path / "d" / "cloudstore.sqlite3").touch()
    done = subprocess.run(command, capture_output=True, text=True, cwd=BASE_DIR, timeout=60)
    assert done.returncode == 1
    assert "is missing" in done.stderr and "Traceback" not in done.stderr

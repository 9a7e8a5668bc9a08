"""Production settings are clean, and what production needs is written down."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cloudstore.config import BASE_DIR
from tests.servers.product import product_variables

pytestmark = pytest.mark.only_on("sqlite")

KEY = "1:" + "a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s="


@pytest.fixture
def production(tmp_path: Path) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if name not in product_variables()}
    example = (BASE_DIR / "docker" / "production.env.example").read_text()
    given = dict(re.findall(r"^([A-Z_]+)=(.+)$", example, re.MULTILINE))
    return {
        **clean,
        **given,
        "ENV_FILE": str(tmp_path / ".env"),
        "CLOUDSTORE_DATA": str(tmp_path),
        "SECRET_KEY": "".join(chr(33 + i) for i in range(80)),
        "CLOUDSTORE_MASTER_KEYS": KEY,
    }


def test_check_deploy_is_clean(production: dict[str, str]) -> None:
    command = [sys.executable, "manage.py", "check", "--deploy", "--fail-level", "WARNING"]
    done = subprocess.run(command, env=production, cwd=BASE_DIR, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "no issues" in done.stdout


def test_production_cookies_redirects_and_proxy(production: dict[str, str]) -> None:
    code = (
        "import cloudstore.settings as s; print(s.SESSION_COOKIE_SECURE, s.CSRF_COOKIE_SECURE, "
        "s.SESSION_COOKIE_NAME, s.SECURE_SSL_REDIRECT, s.SECURE_PROXY_SSL_HEADER[0], s.EMBEDDED_QUEUE, s.DEBUG)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=production, cwd=BASE_DIR, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == [
        "True",
        "True",
        "__Host-session",
        "True",
        "HTTP_X_FORWARDED_PROTO",
        "False",
        "False",
    ]


def test_nginx_neither_collects_nor_limits_bodies() -> None:
    text = (BASE_DIR / "docker" / "nginx.conf").read_text()
    for line in ("proxy_request_buffering off;", "client_max_body_size 0;", "proxy_max_temp_file_size 0;"):
        assert line in text


def test_the_image_gets_every_package() -> None:
    """A package that is missing in the ignore file's list would be missing in the image."""
    kept = re.findall(
        r"^!(\S+)$", (BASE_DIR / "docker" / "Dockerfile.dockerignore").read_text(), re.MULTILINE
    )
    packages = {path.parent.name for path in BASE_DIR.glob("*/__init__.py")} - {"tests", "scripts", "bench"}
    assert packages | {"templates", "static", "requirements", "manage.py"} <= set(kept)

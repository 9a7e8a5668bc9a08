"""Chromium for browser tests: where it is, and how to get it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
ARGUMENTS += ["--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"]


def executable() -> str | None:
    """The system's Chromium, or the one that Playwright has installed, or None."""
    for name in NAMES:
        if path := shutil.which(name):
            return path
    command = "from playwright.sync_api import sync_playwright as p\nwith p() as x: print(x.chromium.executable_path)"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=False)
    path = done.stdout.strip()
    return path if path and Path(path).is_file() else None


def ensure() -> str | None:
    """Like `executable`, after trying to install one; says what it does."""
    if found := executable():
        return found
    prefix = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if shutil.which("apt-get") and (not prefix or _runs("sudo", "-n", "true")):
        print("Installing Chromium for the browser tests (apt-get)...", flush=True)
        _runs(*prefix, "apt-get", "update", "-qq")
        _runs(*prefix, "apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium")
    if not executable():
        print("Installing Chromium for the browser tests (playwright)...", flush=True)
        _runs(sys.executable, "-m", "playwright", "install", "chromium")
    return executable()


def _runs(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=600).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


@pytest.fixture(scope="session")
def browser_type_launch_args(browser_type_launch_args: dict[str, object]) -> dict[str, object]:
    """pytest-playwright starts this Chromium; without one the test is skipped with the reason."""
    path = os.environ.get("CLOUDSTORE_TEST_CHROMIUM") or executable()
    if path is None:
        pytest.skip("no Chromium: install it (apt install chromium) to run the browser tests")
    return {**browser_type_launch_args, "executable_path": path, "args": ARGUMENTS}

"""The main job in Chromium: sign in, upload with progress, see the copies, download, lose a broker, see it, and
download again."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import ConsoleMessage, Page, expect

from tests.servers.product import Product

pytestmark = [pytest.mark.slow, pytest.mark.browser]

SIZE = 12 * 1024 * 1024


@pytest.fixture
def quick_product() -> Iterator[Product]:
    """A product that is quick to notice what happens to its brokers."""
    product = Product(CLOUDSTORE_HEALTH_INTERVAL="5")
    try:
        yield product.start()
    finally:
        product.close()


def fetch(page: Page, name: str) -> str:
    """Download a file through its link: -> the SHA-256 of what arrived."""
    with page.expect_download() as started:
        page.get_by_role("link", name=name).first.click()
    return hashlib.sha256(Path(started.value.path()).read_bytes()).hexdigest()


def throttle_uploads(page: Page, bytes_per_second: int) -> Any:
    session = page.context.new_cdp_session(page)
    session.send(
        "Network.emulateNetworkConditions",
        {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": bytes_per_second},
    )
    return session


def test_the_main_job_in_a_browser(quick_product: Product, page: Page, tmp_path: Path) -> None:
    product = quick_product
    troubles: list[str] = []

    def note(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            troubles.append(message.text)

    page.on("console", note)
    page.on("pageerror", lambda error: troubles.append(str(error)))

    file = tmp_path / "häuser & gärten #1.bin"
    file.write_bytes(os.urandom(SIZE))
    checksum = hashlib.sha256(file.read_bytes()).hexdigest()

    page.goto(product.url)
    page.get_by_label("Name").fill("admin")
    page.get_by_label("Password").fill(product.password or "")
    page.get_by_role("button", name="Sign in").click()
    expect(page).to_have_url(re.compile(r"/dashboard/$"))

    session = throttle_uploads(page, 4 * 1024 * 1024)
    page.locator("input[type=file]").first.set_input_files(file)
    progress = page.locator("progress").first
    expect(progress).to_be_visible()
    page.wait_for_function(
        "() => [...document.querySelectorAll('progress')].some(p => p.value > 0 && p.value < p.max)"
    )
    session.detach()
    row = page.locator("tr", has_text=file.name)
    expect(row).to_contain_text("2 of 2: Local A, Local B", timeout=30_000)
    assert fetch(page, file.name) == checksum

    root = product.data / "brokers" / "a"
    root.rename(root.with_name("away"))
    expect(row).to_contain_text("1 of 2", timeout=60_000)
    expect(page.locator("body")).to_contain_text("Local A")
    assert fetch(page, file.name) == checksum

    root.with_name("away").rename(root)
    expect(row).to_contain_text("2 of 2: Local A, Local B", timeout=120_000)
    assert troubles == []

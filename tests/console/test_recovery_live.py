"""What an operator types, on the real product: snapshot, a lost database, rebuild; a new master key while it runs."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request

import pytest

from cloudstore.config import BASE_DIR
from tests.servers.product import Product

pytestmark = pytest.mark.slow


def call(product: Product, token: str, method: str, path: str, data: bytes | None = None) -> bytes:
    request = urllib.request.Request(
        f"{product.url}/api/v1/files/{path}",
        data=data,
        method=method,
        headers={"Authorization": f"Bearer {token}"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read()


def lose_the_database(product: Product) -> None:
    """Another, empty one."""
    if product.database:
        product._postgres(f"DROP DATABASE {product.database} WITH (FORCE)")
        product._postgres(f"CREATE DATABASE {product.database}")
    for path in product.data.glob("cloudstore.sqlite3*"):
        path.unlink()


def test_a_lost_database_and_a_new_master_key(product: Product) -> None:
    token = product.token()
    named, newer = os.urandom(9_000_000), os.urandom(500_000)
    call(product, token, "PUT", "folder/named.bin", named)
    made = product.manage_json("snapshot")
    assert made["brokers"] == ["Local A", "Local B"]
    call(product, token, "PUT", "newer.bin", newer)
    product.stop()
    lose_the_database(product)
    data = product.data
    places = []
    for name, folder in (("A", "a"), ("B", "b")):
        places += ["--broker", name, "local", f"root={data / 'brokers' / folder}"]
    assert product.manage_json("rebuild", "--list", *places)["snapshots"][0]["id"] == made["id"]
    report = product.manage_json("rebuild", *places)
    assert (report["operator"], report["objects"]["contents"]) == ("admin", 1)
    product.manage("epoch_confirm")

    product.start()
    assert call(product, token, "GET", "folder/named.bin") == named, "the token came back as well"
    (name,) = (n for n in product.manage("snapshot", "--list").stdout.splitlines() if "standing" in n)
    assert "Local A, Local B" in name

    # A new master key, as docs/operations.md says.
    product.stop()
    command = [sys.executable, "-m", "cloudstore.secretfile", "--add-master-key"]
    subprocess.run(command, env=product.env, cwd=BASE_DIR, check=True, timeout=60, capture_output=True)
    product.start()
    rotated = product.manage_json("rotate_master_key")
    assert (rotated["current"], rotated["contents"], rotated["waiting"]) == (2, 2, [1])
    assert call(product, token, "GET", "folder/named.bin") == named
    product.manage("snapshot")
    assert product.manage_json("rotate_master_key")["retirable"] == [1]
    assert product.manage_json("fsck", "--full") == {"findings": []}

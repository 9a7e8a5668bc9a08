"""`make run` end to end: first and second start, the ends it can come to, and what it does when a process dies."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloudstore.config import BASE_DIR, queue_socket
from tests.servers.product import Product

pytestmark = [pytest.mark.slow, pytest.mark.only_on("sqlite")]
NAMES = {"web", "worker", "beat", "queue"}


@pytest.fixture
def idle() -> Iterator[Product]:
    """A product that is not started yet."""
    fresh = Product()
    yield fresh
    fresh.close()


def until(condition: Callable[[], bool], what: str, timeout: float = 30.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        time.sleep(0.05)


def status(product: Product, path: str = "/") -> int:
    connection = http.client.HTTPConnection("localhost", product.port, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def answers(product: Product) -> bool:
    try:
        return status(product) < 500
    except OSError:
        return False


@pytest.mark.only_on("sqlite", "postgresql")
def test_first_and_second_start(idle: Product) -> None:
    idle.start()
    assert answers(idle)
    assert set(idle.children()) == NAMES
    assert idle.password and len(idle.password) >= 16
    assert "two folders on one disk" in idle.output and "death of the disk" in idle.output
    assert [broker["name"] for broker in idle.manage_json("broker_list")] == ["Local A", "Local B"]
    assert status(idle, "/static/admin/css/base.css") == 200
    secrets = (idle.data / "secrets.env").read_bytes()
    assert idle.stop() == 0
    assert idle.processes() == []

    users = "from accounts.models import User; print([(u.username, u.password) for u in User.objects.all()])"
    before = idle.manage("shell", "-c", users).stdout
    idle.start()
    assert "password" not in idle.output
    assert idle.manage("shell", "-c", users).stdout == before
    assert len(idle.manage_json("broker_list")) == 2
    assert (idle.data / "secrets.env").read_bytes() == secrets
    wait = "worker     | INFO celery.apps.worker"
    if wait not in idle.output:
        idle.wait_for(wait)
    assert idle.stop(signal.SIGTERM) == 0
    assert idle.processes() == []
    assert "Traceback" not in idle.output


def test_ctrl_c_in_a_terminal_ends_all(product: Product) -> None:
    """A terminal sends SIGINT to the whole foreground group; the children hear of it only from the supervisor,
    which ends the web server first and the queue last."""
    assert product.process is not None
    os.killpg(product.process.pid, signal.SIGINT)
    assert product.process.wait(60) == 0
    product.wait_for("Stopped.")
    assert product.processes() == []
    assert "starts again" not in product.output
    web, queue = product.output.index("Shutting down granian"), product.output.index("ready to exit")
    assert web < queue


def test_a_killed_process_is_started_again(product: Product) -> None:
    # A second after the start every process is in its steady state, with the processes it forks.
    product_line = "worker     | INFO celery.apps.worker"
    if product_line not in product.output:
        product.wait_for(product_line)
    for name in ("web", "worker", "queue", "beat"):
        old = product.children()[name]
        os.kill(old, signal.SIGKILL)
        product.wait_for(f"{name} ended (signal 9); it starts again")
        until(lambda n=name, o=old: product.children().get(n, o) != o, f"{name} is back")
        until(lambda: answers(product), f"the web answers after {name} was killed")
    groups = {os.getpgid(pid) for pid in product.processes()}
    assert product.process is not None
    own = {product.process.pid, *product.children().values()}
    # The supervisor, its guard and the four: nothing of the killed ones is left.
    until(
        lambda: {os.getpgid(pid) for pid in product.processes()} <= own | guards(product), f"{groups} {own}"
    )


def guards(product: Product) -> set[int]:
    assert product.process is not None
    text = Path(f"/proc/{product.process.pid}/task/{product.process.pid}/children").read_text()
    return {int(pid) for pid in text.split()}


def test_no_child_survives_the_killed_supervisor(product: Product) -> None:
    assert product.process is not None
    product.process.kill()
    product.process.wait()
    until(lambda: product.processes() == [], f"left: {product.processes()}")
    # And the data folder is free again at once.
    product.start()
    assert answers(product)


def test_one_run_for_one_data_folder(product: Product) -> None:
    second = Product(data=product.data)
    second.env["CLOUDSTORE_SECRETS"] = str(product.data / "secrets.env")
    try:
        second.spawn()
        assert second.process is not None
        assert second.process.wait(30) == 1
        second.wait_for("already running")
    finally:
        second.close()
    assert answers(product)


def test_a_port_in_use_is_named_before_anything_starts(idle: Product) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", idle.port))
        other.listen(1)
        idle.spawn()
        assert idle.process is not None
        assert idle.process.wait(30) == 1
    idle.wait_for(f"Port {idle.port} is in use")
    assert not (idle.data / "cloudstore.sqlite3").exists()
    assert "Traceback" not in idle.output


def test_wrong_values_are_named_at_start(idle: Product) -> None:
    env = {**idle.env, "PORT": "five thousand", "DEBUG": "perhaps"}
    for module in ("secretfile", "supervise"):
        command = [
            sys.executable,
            "-m",
            f"cloudstore.{module}",
            *(["--init"] if module == "supervise" else []),
        ]
        done = subprocess.run(command, env=env, cwd=BASE_DIR, capture_output=True, text=True, timeout=60)
        if module == "supervise":
            assert done.returncode == 1
            assert "PORT: 'five thousand' is not a whole number" in done.stderr
            assert "DEBUG: 'perhaps'" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_data_folder_with_a_long_and_strange_path() -> None:
    deep = Product()
    deep.data = deep.folder / "a folder #1" / ("deep" * 30) / "data"
    deep.env["CLOUDSTORE_DATA"] = str(deep.data)
    try:
        deep.start()
        assert set(deep.children()) == NAMES
        line = "worker     | INFO celery.worker.consumer.connection: Connected to redis+socket:///tmp/cloudstore-"
        if line not in deep.output:
            deep.wait_for(line)
        assert deep.stop() == 0
        assert not queue_socket(deep.data).parent.exists()
    finally:
        deep.close()


def test_output_that_nobody_reads_any_more_ends_it(idle: Product) -> None:
    """`make run | head`: the reader goes, and CloudStore ends without leaving anything."""
    subprocess.run([sys.executable, "-m", "cloudstore.secretfile"], env=idle.env, cwd=BASE_DIR, check=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "cloudstore.supervise", "--init"],
        env=idle.env, cwd=BASE_DIR, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if b"CloudStore is at" in line:
            break
    process.stdout.close()
    process.send_signal(signal.SIGHUP)  # the terminal is gone too
    assert process.wait(60) == 0
    assert idle.processes() == []

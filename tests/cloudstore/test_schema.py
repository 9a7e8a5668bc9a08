"""A process whose code expects another schema than the database has refuses work, and says why."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder

from cloudstore import schema
from cloudstore.celery import app


@pytest.fixture(autouse=True)
def migrated(db: None) -> Iterator[MigrationRecorder]:
    """The record of the migrations that made the suite's database."""
    if not schema._expected()[0]:
        pytest.skip("the database was made without migrations (--nomigrations)")
    schema.forget()
    yield MigrationRecorder(connection)
    schema.forget()


def test_the_right_schema() -> None:
    assert schema.mismatch() == ""
    assert schema.refusal() == ""


def test_code_that_is_newer_than_the_database(migrated: MigrationRecorder) -> None:
    migrated.record_unapplied("vfs", "0001_initial")
    assert schema.mismatch() == "the database lacks vfs.0001_initial: run manage.py migrate"


def test_code_that_is_older_than_the_database(migrated: MigrationRecorder) -> None:
    migrated.record_applied("replication", "9999_from_tomorrow")
    assert "has replication.9999_from_tomorrow, which this code does not know" in schema.mismatch()


def test_apps_that_are_not_ours_do_not_count(migrated: MigrationRecorder) -> None:
    migrated.record_applied("another_product", "0001_initial")
    assert schema.mismatch() == ""


def test_it_is_asked_again_after_a_while(migrated: MigrationRecorder, clock: Any) -> None:
    schema.forget()
    assert schema.refusal() == ""
    migrated.record_unapplied("vfs", "0001_initial")
    assert schema.refusal() == ""
    clock.advance(seconds=schema.EVERY + 1)
    assert "vfs.0001_initial" in schema.refusal()
    migrated.record_applied("vfs", "0001_initial")
    clock.advance(seconds=schema.EVERY + 1)
    assert schema.refusal() == ""


def run_as_worker(name: str, ran: list[int]) -> Any:
    """One task through Celery's own tracer, as a worker's process runs it."""
    from celery.app.trace import build_tracer

    def work() -> None:
        ran.append(1)

    task = app.task(name=name)(work)
    request = {"id": "1", "is_eager": False, "called_directly": False}
    return build_tracer(name, task, app=app)("1", (), {}, request)


def test_a_worker_refuses_tasks(migrated: MigrationRecorder, expect_log) -> None:
    ran: list[int] = []
    run_as_worker("tests.schema.fine", ran)
    assert ran == [1]
    migrated.record_unapplied("vfs", "0001_initial")
    schema.forget()
    expect_log("tests.schema.refused is refused: the database lacks vfs.0001_initial")
    run_as_worker("tests.schema.refused", ran)
    assert ran == [1]


def test_a_web_process_refuses_requests(migrated: MigrationRecorder, expect_log, client) -> None:
    from cloudstore.wsgi import application

    def get(path: str) -> str:
        statuses: list[str] = []
        environ = {
            "REQUEST_METHOD": "GET", "PATH_INFO": path, "SERVER_NAME": "localhost", "SERVER_PORT": "80",
            "wsgi.input": io.BytesIO(), "wsgi.errors": io.StringIO(), "wsgi.url_scheme": "http",
        }  # fmt: skip
        list(application(environ, lambda status, headers: statuses.append(status)))  # type: ignore[arg-type,return-value]
        return statuses[0]

    assert client.get("/healthz").json()["schema"] == "ok"
    migrated.record_applied("vfs", "9999_from_tomorrow")
    schema.forget()
    expect_log("/api/v1/nothing is refused: the database has vfs.9999_from_tomorrow", "/healthz")
    answer = client.get("/healthz")
    assert (answer.status_code, answer.json()["schema"]) == (503, "red")
    assert get("/api/v1/nothing") == "503 Service Unavailable"
    migrated.record_unapplied("vfs", "9999_from_tomorrow")
    schema.forget()
    assert get("/api/v1/nothing") == "404 Not Found"

"""The state machine of tests/machine/machine.py, the same programs in every run; `make soak` runs others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest
from django.db import connection
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.machine import machine
from tests.machine.machine import Machine

CI = settings(
    derandomize=True,
    max_examples=30 if connection.vendor == "sqlite" else 15,
    stateful_step_count=50,
    deadline=None,
    database=None,
    print_blob=False,
    suppress_health_check=list(HealthCheck),
)


class Alarm(logging.Handler):
    """Tells the machine of every error at the step that it happened in."""

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "status_code", 500) == 500:
            machine.alarm.append(logging.Formatter().format(record))


@pytest.fixture
def quiet(expect_log: Callable[..., None]) -> Iterator[None]:
    """Refusals are part of the programs; what goes well need not be told thousands of times."""
    expect_log("Service Unavailable", "Bad Gateway", "are missing at once")
    logging.disable(logging.INFO)
    requests = logging.getLogger("django.request")
    level = requests.level
    requests.setLevel(logging.ERROR)
    handler = Alarm(logging.ERROR)
    logging.getLogger().addHandler(handler)
    yield
    logging.getLogger().removeHandler(handler)
    requests.setLevel(level)
    logging.disable(logging.NOTSET)


@pytest.mark.slow
@pytest.mark.django_db
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("quiet")
def test_the_drive_keeps_its_promises() -> None:
    run_state_machine_as_test(Machine, settings=CI)

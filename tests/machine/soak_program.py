"""The long run of the state machine that `make soak` starts (tests/machine/soak.py): other programs every time, until
the time is over. pytest runs it only when it is named."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import Phase, seed, settings
from hypothesis.stateful import get_state_machine_test

from tests.kit import counters
from tests.machine.machine import STEPS, Machine
from tests.machine.test_machine import CI, quiet

__all__ = ["quiet"]
# Programs from one seed, so that what a failure prints leads back to it soon.
PROGRAMS = int(os.environ.get("SOAK_PROGRAMS", "20"))
LONG = settings(CI, derandomize=False, max_examples=PROGRAMS, stateful_step_count=100)
if "SOAK_NO_SHRINK" in os.environ:
    LONG = settings(LONG, phases=[Phase.generate], report_multiple_bugs=False)


@pytest.mark.django_db
@pytest.mark.timeout(0)
@pytest.mark.usefixtures("quiet")
def test_soak() -> None:
    began = time.monotonic()
    until = began + 60 * float(os.environ["SOAK_MINUTES"])
    number = int(os.environ["SOAK_SEED"])
    once = "SOAK_ONCE" in os.environ
    while time.monotonic() < until:
        print(f"seed {number}", flush=True)
        try:
            seed(number)(get_state_machine_test(Machine, settings=LONG))()
        except BaseException:
            print(f"FAILED with seed {number}: make soak SEED={number} finds it again", flush=True)
            raise
        number += 1
        if once:
            break
    names = (STEPS, counters.FAULTS, counters.ACKNOWLEDGED, counters.LOST, counters.WRONG)
    sums = {name: counters.value(name) for name in names}
    Path(os.environ["SOAK_SUMS"]).write_text(json.dumps({**sums, "seconds": time.monotonic() - began}))

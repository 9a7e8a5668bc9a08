"""The commands of this package print words, and JSON with `--json`."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from replication.models import Policy
from tests.replication.kit import copies, memory_broker, replicas, store

pytestmark = pytest.mark.django_db


def run(command: str, *arguments: str) -> Any:
    out = io.StringIO()
    call_command(command, *arguments, "--json", stdout=out)
    return json.loads(out.getvalue())


def words(command: str, *arguments: str) -> str:
    out = io.StringIO()
    call_command(command, *arguments, stdout=out)
    return out.getvalue()


def test_policy_shows_and_changes() -> None:
    assert run("policy") == {"copies": 2, "ack_copies": 2, "allow_degraded": False, "scrub_days": 14}
    changed = run("policy", "--copies", "3", "--allow-degraded")
    assert (changed["copies"], changed["allow_degraded"]) == (3, True)
    assert "3 copies, acknowledged after 2; degraded uploads are refused" in words(
        "policy", "--refuse-degraded"
    )


@pytest.mark.parametrize("arguments", [("--copies", "0"), ("--copies", "11"), ("--scrub-days", "0")])
def test_policy_refuses_what_makes_no_sense(arguments: tuple[str, str]) -> None:
    with pytest.raises(CommandError):
        call_command("policy", *arguments)
    assert not Policy.objects.exclude(copies=2, scrub_days=14).exists()


def test_reconcile_and_scrub() -> None:
    for name in "abc":
        memory_broker(name)
    content = store(b"x" * 1000)
    run("policy", "--copies", "3")
    assert run("reconcile")["copied"] == 1
    assert copies(content) == 3
    assert "0 copied" in words("reconcile", "--content", str(content.pk))
    assert run("scrub", "--all")["replicas"] == len(replicas(content))
    assert "0 lost" in words("scrub")

"""What the operator does to one broker: connect it, change it, try it, bring back what it holds. Each change stands
together with its audit row. The commands, the console and the API call these; brokers/services.py does the work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from django.db import transaction

from brokers import services, trial
from brokers.models import Broker
from brokers.services import Record
from brokers.trial import Trial
from console import rebuild
from console.operations import Who
from replication import orphans
from replication.models import Orphan

# What the row of the audit trail is called, by the kind of the broker's own event.
_ACTIONS = {
    "added": "broker.added",
    "changed": "broker.changed",
    "enabled": "broker.enabled",
    "disabled": "broker.disabled",
    "marker_written": "broker.marker_written",
}


def recorder(who: Who) -> Record:
    """Writes the audit row of a change, in its transaction. Names of options, never their values."""

    def record(broker: Broker, kind: str, detail: str) -> None:
        about: dict[str, Any] = {"detail": detail} if detail else {}
        if kind == "changed":
            about |= {"domain": broker.domain, "weight": broker.weight}
        who.record(_ACTIONS[kind], broker.name, **about)

    return record


def add(
    name: str,
    driver: str,
    domain: str,
    options: Mapping[str, Any],
    who: Who,
    *,
    weight: float = 1.0,
    adopt: bool = False,
    allowed: Mapping[str, Any] | None = None,
    dry_run: bool = False,
) -> Broker:
    """Connect a place, with a live probe: -> the row (not saved with `dry_run`). See brokers/services.py."""
    if dry_run:
        return services.try_place(name, driver, domain, options, weight=weight, adopt=adopt, allowed=allowed)
    return services.add_broker(
        name, driver, domain, options, weight=weight, adopt=adopt, allowed=allowed, record=recorder(who)
    )


def update(broker_id: int, who: Who, *, dry_run: bool = False, **changes: Any) -> Broker:
    """Change name, domain, weight, limits (`allowed`), options or credentials. See brokers/services.py."""
    return services.update_broker(broker_id, dry_run=dry_run, record=recorder(who), **changes)


def set_enabled(broker_id: int, enabled: bool, who: Who) -> Broker:
    """Take a broker out of use, or back in. Idempotent: audited when it changes something."""
    return services.set_enabled(broker_id, enabled, record=recorder(who))


def write_marker(broker_id: int, who: Who) -> Broker:
    """Declare that a place whose marker is gone is this broker's."""
    return services.write_marker(broker_id, record=recorder(who))


def test(broker_id: int, who: Who) -> Trial:
    """Write, read, hash, list and delete one small object. Audited, because it writes to the place."""
    outcome = trial.run(broker_id)
    with transaction.atomic():
        failed = [f"{step.name}: {step.detail}" for step in outcome.steps if not step.ok]
        who.record("broker.tested", outcome.broker, ok=outcome.ok, failed=failed)
    return outcome


def bring_back(
    broker_id: int | None,
    who: Who,
    *,
    operator: str = "",
    dry_run: bool = False,
    tell: Callable[[str], None] = lambda _words: None,
) -> rebuild.Report:
    """Look through one broker (None: all) for objects of ours that no row knows: further copies are verified and known
    again, whole files that nobody knows come back in lost+found. May be interrupted and run again. Raises
    CannotRebuild."""
    report = rebuild.bring_back(
        rebuild.Report(), operator=operator, dry_run=dry_run, tell=tell, broker_id=broker_id
    )
    if not dry_run:
        found = report.objects
        target = Broker.objects.get(pk=broker_id).name if broker_id is not None else ""
        with transaction.atomic():
            who.record("broker.objects_adopted", target, copies=found.copies, files=found.contents)
    return report


def delete_orphans(
    broker_id: int, locators: Sequence[str], who: Who, *, dry_run: bool = False
) -> list[orphans.Outcome]:
    """Delete chosen objects that no row knows, with every guard of replication/orphans.py: -> what became of each. Each
    delete is audited."""

    def record(broker: Broker, orphan: Orphan) -> None:
        who.record("broker.orphan_deleted", broker.name, name=orphan.locator, size=orphan.size)

    return orphans.delete_chosen(broker_id, locators, dry_run=dry_run, record=record)

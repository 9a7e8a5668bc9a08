"""What the operator does to a whole broker: drain, rebalance, remove. Each change stands together with its audit row;
the bytes are moved by replication alone. The commands, the console and the API call these.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from django.db import transaction
from django.http import HttpRequest

from accounts import audit
from accounts.models import User
from brokers.models import Broker
from replication import drain, incidents, rebalance, removal, transfer
from replication.drain import Progress
from replication.models import Content
from replication.rebalance import Outlook
from replication.removal import RemovalRefused
from vfs.access import locate
from vfs.models import Version

# So many files are named where many are concerned.
NAMED = 20


@dataclass
class Who:
    """Who asks; None for a command."""

    user: User | None = None
    request: HttpRequest | None = None

    def record(self, action: str, target: object, **detail: Any) -> None:
        audit.record(self.user, action, target, self.request, **detail)


@dataclass
class Removal:
    """What removing a broker met, or did. `files` names the first of those that need its copies, `lost` of those
    that no other broker has; `left_there` counts objects of ours that stay at the place."""

    broker: str
    removed: bool
    reachable: bool
    needed: int
    bytes: int
    deleting: int
    contents: int
    contents_only_here: int
    files: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    left_there: int = 0
    refused: str = ""


def begin_drain(broker_id: int, who: Who) -> Progress:
    """Drain a broker (replication/drain.py). Idempotent: audited when it begins."""
    with transaction.atomic():
        before = drain.progress(broker_id)
        after = drain.begin(broker_id)
        if not before.draining:
            who.record("broker.drain_begun", after.broker, objects=after.objects, bytes=after.bytes)
    return after


def undo_drain(broker_id: int, who: Who) -> Progress:
    """Use a draining broker like the others again. Idempotent: audited when it ends one."""
    with transaction.atomic():
        before = drain.progress(broker_id)
        after = drain.undo(broker_id)
        if before.draining:
            who.record("broker.drain_ended", after.broker, objects=after.objects, bytes=after.bytes)
    return after


def confirm_loss(broker_id: int, who: Who) -> Broker:
    """Say that what a broker with an incident is missing is lost (replication/incidents.py): -> the row. Idempotent:
    audited when there was an incident. Outside any transaction."""
    before = Broker.objects.get(pk=broker_id)
    if before.incident:
        who.record(
            "broker.loss_confirmed", before.name, incident=before.incident, detail=before.health_detail
        )
    return incidents.confirm(broker_id)


def begin_rebalance(who: Who) -> Outlook:
    """Move load in proportion to free space until it is even (replication/rebalance.py). Idempotent."""
    with transaction.atomic():
        before = rebalance.look()
        rebalance.begin()
        if not before.running:
            who.record("rebalance.begun", "", moves=before.moves, bytes=before.bytes)
    return rebalance.look()


def stop_rebalance(who: Who) -> Outlook:
    """End a rebalance where it is. Idempotent."""
    with transaction.atomic():
        before = rebalance.look()
        rebalance.stop()
        if before.running or before.pending:
            who.record("rebalance.stopped", "", pending=before.pending)
    return rebalance.look()


def look_at_removal(broker_id: int) -> Removal:
    """What stands against removing a broker, with the files concerned by name. Changes nothing."""
    standing = removal.look(broker_id)
    refused = ""
    if standing.needed:
        refused = f"{standing.broker} holds {standing.needed} copies that are needed; drain it first"
    return Removal(
        broker=standing.broker,
        removed=False,
        reachable=standing.reachable,
        needed=standing.needed,
        bytes=standing.bytes,
        deleting=standing.doomed,
        contents=standing.contents,
        contents_only_here=len(standing.only_here),
        files=_files(removal.needed_contents(broker_id).values_list("pk", flat=True))
        if standing.needed
        else [],
        lost=_files(standing.only_here),
        refused=refused,
    )


def remove(broker_id: int, who: Who, *, leave_objects: bool = False) -> Removal:
    """Remove a broker that holds no needed copy: its place is left without anything of ours, then its row goes.
    `leave_objects` touches nothing at the place. Raises RemovalRefused, with nothing removed, or BrokerError when
    the place fails on the way; then the same call goes on. Outside any transaction."""
    result = look_at_removal(broker_id)
    broker = Broker.objects.get(pk=broker_id)
    removal.empty(broker_id, leave_objects=leave_objects)
    with transaction.atomic():
        result.left_there = removal.forget(broker_id)
        who.record("broker.removed", result.broker, left_there=result.left_there, emptied=not leave_objects)
    transfer.close(broker)
    result.removed = True
    return result


def remove_by_force(broker_id: int, typed_name: str, who: Who) -> Removal:
    """Remove a broker whatever it holds; what is on it alone is lost, and the audit row says which. Raises
    RemovalRefused unless `typed_name` is the broker's name. Nothing at the place is touched: it may be connected
    again with its marker, and `manage.py adopt` brings back what is there."""
    broker = Broker.objects.get(pk=broker_id)
    if typed_name != broker.name:
        raise RemovalRefused("name_differs", f"type the broker's name to remove it by force: {broker.name}")
    with transaction.atomic():
        # Named in the transaction that loses them.
        result = look_at_removal(broker_id)
        lost = removal.force(broker_id)
        who.record(
            "broker.removed_by_force",
            result.broker,
            copies=result.needed,
            lost=len(lost),
            lost_contents=[str(pk) for pk in lost[:1000]],
            lost_files=result.lost,
        )
    transfer.close(broker)
    result.removed, result.refused = True, ""
    return result


def _files(contents: Any) -> list[str]:
    """The first files, by owner and path, with a version of one of these contents."""
    ids = list(contents[: NAMED * 10])
    versions = Version.objects.filter(content__in=Content.objects.filter(pk__in=ids))
    names: list[str] = []
    for version in versions.select_related("node__owner").order_by("node__name", "pk"):
        name = f"{version.node.owner.get_username()}:{locate(version.node).path}"
        if name not in names:
            names.append(name)
        if len(names) == NAMED:
            break
    return names


def as_dict(data: Any) -> dict[str, Any]:
    """A dataclass as plain data for JSON."""
    return asdict(data)

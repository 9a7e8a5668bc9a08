"""The operations of the crash matrix: one entry each."""

from __future__ import annotations

import base64
import hashlib
import io
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.contrib.messages import get_messages

from brokers import services
from brokers.models import Broker
from console import operations as whole
from console.operations import Who
from console.snapshot import make as make_snapshot
from replication import collect, drain, epoch, orphans, policy, rebalance, reconcile, scrub, snapshots
from replication.models import Replica
from tests.crash.world import DATA, State, World
from vfs import trash
from vfs.models import Upload
from vfs.upload import FileUpload, expire_uploads, target_at

# How a client sees the end of an operation. REFUSED: told that nothing was stored or changed.
OK, REFUSED, FAILED, NO_ANSWER = "ok", "refused", "failed", "no answer"

# Problems that leave open what happened.
OPEN_ENDED = {"database_unavailable", "server_error"}


@dataclass(frozen=True)
class Operation:
    """`prepare` makes the state before, without faults. `act` is what is failed: -> how a client saw it end.
    `came_out` says whether the state after a run without faults is what it is for. `all_bytes`: what is wrong is
    found by the scrub only."""

    name: str
    prepare: Callable[[World], None]
    act: Callable[[World], str]
    came_out: Callable[[State], bool]
    all_bytes: bool = False


def _nothing(world: World) -> None:
    """The drive is empty."""


# -- doors --------------------------------------------------------------------------------------------


def seen_by_client(response: Any) -> str:
    if response.status_code in {200, 201, 204}:
        return OK
    if response.headers.get("Content-Type") != "application/problem+json":
        return FAILED
    return FAILED if response.json()["code"] in OPEN_ENDED else REFUSED


def put_file(world: World) -> str:
    return seen_by_client(
        world.api.generic("PUT", "/api/v1/files/new/one", DATA["one"], "application/octet-stream")
    )


def put_unknown_size(world: World) -> str:
    """A chunked body, as curl sends it from a pipe: the quota is reserved in steps."""
    digest = base64.b64encode(hashlib.sha256(DATA["one"]).digest()).decode()
    return seen_by_client(
        world.api.generic(
            "PUT",
            "/api/v1/files/one",
            b"",
            "application/octet-stream",
            headers={"Repr-Digest": f"sha-256=:{digest}:"},
            **{"wsgi.input": io.BytesIO(DATA["one"]), "CONTENT_LENGTH": ""},
        )
    )


def _form(*names: str) -> tuple[bytes, str]:
    parts = [
        f'--edge\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
        + DATA[name]
        for name in names
    ]
    return b"\r\n".join([*parts, b"--edge--\r\n"]), "multipart/form-data; boundary=edge"


def post_form(world: World) -> str:
    body, kind = _form("one", "two")
    return seen_by_client(world.api.generic("POST", f"/api/v1/nodes/{world.top.pk}/files", body, kind))


def post_page(world: World) -> str:
    """The form of the dashboard: the answer is a redirect with a message."""
    body, kind = _form("one")
    world.browser.cookies.pop("messages", None)
    response = world.browser.generic("POST", f"/folders/{world.top.pk}/upload", body, kind)
    if response.status_code != 302:
        return FAILED
    (message,) = get_messages(response.wsgi_request)
    if message.level_tag == "success":
        return OK
    return REFUSED if "Nothing was uploaded" in str(message) else FAILED


def overwrite(world: World) -> str:
    return seen_by_client(
        world.api.generic("PUT", "/api/v1/files/one", DATA["two"], "application/octet-stream")
    )


def delete(world: World) -> str:
    return seen_by_client(world.api.delete("/api/v1/files/folder"))


def purge(world: World) -> str:
    return seen_by_client(world.api.delete(f"/api/v1/trash/{world.notes['trashed']}"))


# -- the operator and the schedule --------------------------------------------------------------------


def run(*steps: Callable[[], Any]) -> str:
    """As a command or a task: it ends well or raises."""
    try:
        for step in steps:
            step()
    except Exception:
        return FAILED
    return OK


def more_copies(world: World) -> str:
    return run(lambda: policy.change(copies=3), reconcile.run_to_rest)


def fewer_copies(world: World) -> str:
    return run(
        lambda: policy.change(copies=1, ack_copies=1),
        lambda: world.clock.advance(hours=1),
        reconcile.run_to_rest,
    )


def snapshot(world: World) -> str:
    return run(make_snapshot, snapshots.retain)


def expire(world: World) -> str:
    return run(expire_uploads, collect.collect)


def drain_a(world: World) -> str:
    """Everything on one broker goes elsewhere, and its objects are deleted."""
    return run(lambda: whole.begin_drain(_broker("a").pk, Who()), reconcile.run_to_rest, collect.collect)


def undo_drain(world: World) -> str:
    return run(lambda: whole.undo_drain(_broker("a").pk, Who()), reconcile.run_to_rest)


def move_load(world: World) -> str:
    return run(rebalance.begin, reconcile.run_to_rest, collect.collect)


def remove_a(world: World) -> str:
    return run(lambda: whole.remove(_broker("a").pk, Who()))


def force_a(world: World) -> str:
    return run(lambda: whole.remove_by_force(_broker("a").pk, "a", Who()), reconcile.run_to_rest)


def _broker(name: str) -> Broker:
    return Broker.objects.get(name=name)


# -- what was there before ----------------------------------------------------------------------------


def one_file(world: World) -> None:
    world.put("one", DATA["one"])


def on_a(world: World) -> None:
    """A file with a copy on the broker that is to go."""
    services.set_enabled(_broker("c").pk, False)
    one_file(world)
    services.set_enabled(_broker("c").pk, True)
    assert Replica.objects.filter(broker__name="a").count() == 2


def on_a_and_b(world: World) -> None:
    """Three segments, of which the third broker has none."""
    services.set_enabled(_broker("c").pk, False)
    world.put("one", DATA["one"])
    world.put("two", DATA["two"])
    services.set_enabled(_broker("c").pk, True)
    reconcile.run_to_rest()


def half_drained(world: World) -> None:
    on_a(world)
    drain.begin(_broker("a").pk)


def drained(world: World) -> None:
    """An empty broker but for what was deleted lately, the epoch and the marker."""
    on_a(world)
    epoch.advance()
    drain.begin(_broker("a").pk)
    reconcile.run_to_rest()


def three_copies(world: World) -> None:
    policy.change(copies=3)
    one_file(world)
    reconcile.run_to_rest()
    world.clock.advance(hours=1)


def folder(world: World) -> None:
    world.put("folder/one", DATA["one"])
    world.put("folder/one", DATA["two"])
    world.put("folder/two", DATA["two"])


def trashed(world: World) -> None:
    folder(world)
    node = world.node("folder")
    trash.trash(world.alice, world.alice, node.pk)
    world.notes["trashed"] = str(node.pk)


def lost(world: World) -> None:
    """One copy is gone, and the scrub has seen it."""
    one_file(world)
    world.object_of("one")[0].unlink()
    scrub.scrub(everything=True)
    assert Replica.objects.filter(state=Replica.State.LOST).count() == 1


def flipped(world: World) -> None:
    """One byte of one copy is another, and nobody knows."""
    one_file(world)
    path, _replica = world.object_of("one", 1)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def purged(world: World) -> None:
    """What was deleted for good yesterday, beside a file that stays."""
    trashed(world)
    trash.purge(world.alice, world.alice, uuid.UUID(world.notes["trashed"]))
    one_file(world)
    world.clock.advance(hours=25)


def stranger(world: World) -> None:
    """An object that no row knows, seen long ago."""
    one_file(world)
    path, _replica = world.object_of("one")
    (path.parent / ("f" * 32)).write_bytes(b"nobody knows me")
    orphans.scan()
    world.clock.advance(hours=49)


def older_snapshots(world: World) -> None:
    """As many as are kept, so that another one makes the first go."""
    one_file(world)
    for _ in range(settings.CLOUDSTORE_SNAPSHOT_KEEP):
        make_snapshot()
        world.clock.advance(seconds=1)


def dead_upload(world: World) -> None:
    """What a web process left that died with the bytes on the brokers."""
    upload = FileUpload(world.alice, target_at(world.alice, ["one"]), size=len(DATA["one"]))
    upload.write(DATA["one"])
    upload.complete()
    Upload.objects.update(expires_at=world.clock.now() - timedelta(seconds=1))


def _live(**wanted: list[str]) -> Callable[[State], bool]:
    """These files, with these versions, are what is live; folders aside."""

    def check(state: State) -> bool:
        files = {path.strip("/").replace("/", "_"): v for path, v in state["live"].items() if v}
        return files == {path: [DATA[name] for name in names] for path, names in wanted.items()}

    return check


def _emptied(state: State) -> bool:
    return not state["live"] and not state["trash"]


def _empty_a(state: State) -> bool:
    return state["brokers"]["a"] == "draining" and not Replica.objects.filter(broker__name="a").exists()


def _load_moved(state: State) -> bool:
    return Replica.objects.filter(broker__name="c", state=Replica.State.STORED).count() >= 1


OPERATIONS = {
    operation.name: operation
    for operation in (
        Operation("put", _nothing, put_file, _live(new_one=["one"])),
        Operation("put of unknown size", _nothing, put_unknown_size, _live(one=["one"])),
        Operation("form", _nothing, post_form, _live(one=["one"], two=["two"])),
        Operation("page", _nothing, post_page, _live(one=["one"])),
        Operation("overwrite", one_file, overwrite, _live(one=["one", "two"])),
        Operation("copies 2 to 3", one_file, more_copies, lambda s: s["copies"] == 3),
        Operation("copies 3 to 1", three_copies, fewer_copies, lambda s: s["copies"] == 1),
        Operation("delete", folder, delete, lambda s: "/folder" in s["trash"]),
        Operation("purge", trashed, purge, _emptied),
        Operation("repair", lost, lambda w: run(reconcile.run_to_rest), _live(one=["one"]), all_bytes=True),
        Operation(
            "scrub-repair",
            flipped,
            lambda w: run(lambda: scrub.scrub(everything=True), reconcile.run_to_rest),
            _live(one=["one"]),
            all_bytes=True,
        ),
        Operation("collect", purged, lambda w: run(collect.collect), _live(one=["one"])),
        Operation("orphans", stranger, lambda w: run(orphans.scan), _live(one=["one"])),
        Operation("snapshot", older_snapshots, snapshot, _live(one=["one"])),
        Operation("drain", on_a, drain_a, _empty_a),
        Operation("drain undone", half_drained, undo_drain, lambda s: s["brokers"]["a"] == "used"),
        Operation("rebalance", on_a_and_b, move_load, _load_moved),
        Operation("remove", drained, remove_a, lambda s: "a" not in s["brokers"]),
        Operation("remove by force", on_a, force_a, lambda s: "a" not in s["brokers"]),
        Operation("expire", dead_upload, expire, _emptied),
    )
}

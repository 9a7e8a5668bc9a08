"""Imports: files of others at a broker come into a user's drive, once, whatever happens on the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import Client

from accounts import quota
from accounts.models import AuditEvent, User
from brokers.driver import CloudBroker
from brokers.errors import Corrupt, Unavailable
from brokers.models import Broker
from brokers.open import wrap
from brokers.testing.faulty import FaultyBroker
from console import imports, jobs, tasks
from console.models import ImportedFile, Job
from console.operations import Who, remove_by_force
from replication import collect, reconcile
from replication.models import Replica
from tests.cast import Api
from tests.console.kit import Crash, crash_at
from tests.kit.clock import VirtualClock
from tests.replication.kit import Objects, memory_broker
from tests.vfs.conftest import Put
from vfs import fsck, holder, tree
from vfs.access import locate_all
from vfs.errors import AccountClosed, InvalidName
from vfs.models import Node, Upload, Version
from vfs.names import MAX_NAME_BYTES
from vfs.upload import expire_uploads

pytestmark = pytest.mark.django_db
FOREIGN = {
    "photos/2020/one.jpg": b"1" * 3000,
    "photos/2020/two.jpg": b"2" * 2000,
    "photos/old": b"",
    "letters/a": b"a",
}


@pytest.fixture
def place(clock: VirtualClock, alice: User, two: list[Broker]) -> Broker:
    """A broker with files of others on it."""
    broker = memory_broker("c")
    Objects(broker).update(FOREIGN)
    return broker


def files_of(user: User) -> dict[str, bytes]:
    nodes = list(Node.objects.filter(owner=user, kind="file").select_related("version__content"))
    places = locate_all(nodes)
    return {places[node.pk].path: read(node) for node in nodes}


def read(node: Node) -> bytes:
    from replication.read import open_content

    assert node.version is not None
    return b"".join(open_content(node.version.content).stream())


def finish(job: Job) -> jobs.Progress:
    return jobs.progress(jobs.run(job.pk) or job)


def test_files_come_in_and_the_objects_stay(place: Broker, alice: User, root: User) -> None:
    before = dict(Objects(place))
    job = imports.start(place.pk, alice, Who(root), prefix="photos/", folder="/from c")
    now = finish(job)
    assert (now.state, now.objects_there, now.bytes_there) == ("done", 3, 5000)
    assert (now.objects, now.bytes, now.files, now.refused, now.failed) == (3, 5000, 3, 0, 0)
    assert files_of(alice) == {
        "/from c/2020/one.jpg": FOREIGN["photos/2020/one.jpg"],
        "/from c/2020/two.jpg": FOREIGN["photos/2020/two.jpg"],
        "/from c/old": b"",
    }
    assert {name: data for name, data in Objects(place).items() if name in before} == before
    assert quota.usage(alice).used == 5000
    assert {v.created_by for v in Version.objects.all()} == {root}
    actions = list(AuditEvent.objects.order_by("pk").values_list("action", "actor__username"))
    assert actions[0] == ("import.begun", "root")
    assert fsck.check() == []


def test_what_is_ours_is_not_imported(place: Broker, alice: User, put: Put) -> None:
    """The marker, the objects of files, what nobody knows but has a name of ours."""
    put(alice, "mine")
    Objects(place)["cs/ab/" + "ab" * 16] = b"x"
    reconcile.run_to_rest()
    now = finish(imports.start(place.pk, alice, Who()))
    assert now.files == len(FOREIGN)
    assert len(files_of(alice)) == len(FOREIGN) + 1
    for prefix in ("cs/", "cs/ab", "cs-meta/x", "cs-marker"):
        with pytest.raises(jobs.JobRefused, match="own"):
            imports.start(place.pk, alice, Who(), prefix=prefix)


@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("place_of_death", ["import.object", "upload.completed", "upload.committed"])
def test_a_kill_anywhere_brings_nothing_in_twice(
    place: Broker, alice: User, clock: VirtualClock, place_of_death: str, at: int
) -> None:
    job = imports.start(place.pk, alice, Who(), prefix="photos/")
    with pytest.raises(Crash), crash_at(place_of_death, at):
        jobs.run(job.pk)
    assert jobs.run(job.pk) is None, "the dead worker's lease still runs"
    clock.advance(hours=1)
    now = finish(job)
    assert (now.state, now.files) == ("done", 3)
    assert files_of(alice) == {
        f"/{name[7:]}": data for name, data in FOREIGN.items() if name[:7] == "photos/"
    }
    assert Version.objects.count() == 3
    clock.advance(days=1)
    expire_uploads()
    collect.collect()
    assert not Upload.objects.exists()
    assert quota.usage(alice).used == 5000
    assert fsck.check() == []


def test_a_worker_whose_job_was_taken_over_brings_nothing_in(
    place: Broker, alice: User, clock: VirtualClock
) -> None:
    """It slept too long: another has taken the job, and it wakes right before a commit."""
    job = imports.start(place.pk, alice, Who(), prefix="letters/")
    slow = jobs._take(job.pk, None, lambda _words: None)
    assert slow is not None
    clock.advance(hours=1)
    assert finish(job).files == 1
    (found,) = imports._foreign(place, "letters/")
    with pytest.raises(jobs.Ended):
        imports._Import(slow, place, found, imports.digest_of(found.path)).run()
    assert list(files_of(alice)) == ["/a"]
    assert not Upload.objects.exists()


def test_the_lease_of_a_process_that_is_gone_is_no_obstacle(
    place: Broker, alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = imports.start(place.pk, alice, Who(), prefix="letters/")
    assert jobs._take(job.pk, None, lambda _words: None) is not None
    assert jobs.run(job.pk) is None
    monkeypatch.setattr(holder, "gone", lambda _holder: True)
    assert finish(job).state == "done"


def test_both_are_kept(place: Broker, alice: User, put: Put) -> None:
    put(alice, "2020/one.jpg", b"mine")
    put(alice, "2020/one (2).jpg", b"mine too")
    put(alice, "old/folder", b"in the way")
    assert finish(imports.start(place.pk, alice, Who(), prefix="photos/")).files == 3
    found = files_of(alice)
    assert found["/2020/one.jpg"] == b"mine"
    assert found["/2020/one (3).jpg"] == FOREIGN["photos/2020/one.jpg"]
    assert found["/old (2)"] == b""
    assert Version.objects.exclude(number=1).count() == 0


def test_or_skipped(place: Broker, alice: User, put: Put) -> None:
    put(alice, "2020/one.jpg", b"mine")
    now = finish(imports.start(place.pk, alice, Who(), prefix="photos/", conflict="skip"))
    assert (now.files, now.skipped) == (2, 1)
    assert files_of(alice)["/2020/one.jpg"] == b"mine"


def test_names_that_no_drive_takes_are_reported(place: Broker, alice: User, put: Put) -> None:
    put(alice, "taken", b"a file")
    odd = ["odd/../up", "odd//twice", "odd/b\\c", "odd/\udcff", "odd/" + "x" * 300, "odd/new\nline", "odd/\0"]
    Objects(place).update(dict.fromkeys([*odd, "odd/taken/below", "odd/folder/"], b""))
    now = finish(imports.start(place.pk, alice, Who(), prefix="odd/"))
    assert (now.state, now.files, now.refused, now.skipped) == ("done", 0, len(odd) + 1, 1)
    refused = {row.name: row.detail for row in ImportedFile.objects.filter(state="refused")}
    assert refused["odd/b\\c"] == "invalid_name: The name contains a backslash."
    assert refused["odd/taken/below"].startswith("not_a_folder")
    assert "odd/\\udcff" in refused
    assert list(files_of(alice)) == ["/taken"]


def test_a_full_drive_stops_it_and_it_goes_on(place: Broker, alice: User, root: User) -> None:
    User.objects.filter(pk=alice.pk).update(quota=4000)
    job = imports.start(place.pk, alice, Who(root), prefix="photos/")
    now = finish(job)
    assert (now.state, now.files) == ("stopped", 1)
    assert "is full" in now.reason
    assert jobs.run(job.pk) is None
    User.objects.filter(pk=alice.pk).update(quota=None)
    jobs.resume(job.pk, Who(root))
    now = finish(job)
    assert (now.state, now.files, now.reason) == ("done", 3, "")
    with pytest.raises(jobs.JobRefused, match="has ended"):
        jobs.resume(job.pk, Who(root))


def failing(broker: Broker, operation: str, error: Exception, on: Any = None) -> Any:
    def wrapper(driver: CloudBroker) -> CloudBroker:
        faulty = FaultyBroker(driver)
        faulty.fail(operation, error, on)
        return faulty

    return wrap(broker.pk, wrapper)


def test_a_broker_that_is_away_only_costs_time(place: Broker, alice: User, clock: VirtualClock) -> None:
    job = imports.start(place.pk, alice, Who(), prefix="photos/")
    with failing(place, "list", Unavailable("down")):
        now = finish(job)
    assert (now.state, now.files) == ("running", 0)
    assert "unavailable" in now.reason
    assert jobs.run_due() == 0, "not before its time"
    clock.advance(minutes=5)
    tasks.run_jobs()
    now = jobs.progress(Job.objects.get())
    assert (now.state, now.files) == ("done", 3)


def test_an_object_that_cannot_be_read_is_tried_again_and_then_told(
    place: Broker, alice: User, clock: VirtualClock
) -> None:
    job = imports.start(place.pk, alice, Who(), prefix="photos/")
    with failing(place, "get", Corrupt("scratched"), lambda call: call.name.endswith("one.jpg")):
        for _ in range(imports.ATTEMPTS - 1):
            now = finish(job)
            assert (now.state, now.files, now.failed) == ("running", 2, 1)
            clock.advance(minutes=5)
        now = finish(job)
    assert (now.state, now.files, now.failed) == ("done", 2, 1)
    assert ImportedFile.objects.get(state="failed").detail == "corrupt: scratched"
    assert quota.usage(alice).used == 2000
    assert quota.usage(alice).reserved == 0


def test_an_object_that_changes_meanwhile_is_not_mixed(
    place: Broker, alice: User, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imports, "PIECE", 1000)
    job = imports.start(place.pk, alice, Who(), prefix="photos/2020/one")
    fetch, calls = imports.transfer.fetch, []

    def fetch_and_change(broker: Broker, locator: str, start: int, length: int) -> bytes:
        calls.append(start)
        if len(calls) == 2:
            Objects(place)[locator] = b"9" * 3000
        return fetch(broker, locator, start, length)

    monkeypatch.setattr(imports.transfer, "fetch", fetch_and_change)
    assert finish(job).failed == 1
    clock.advance(minutes=5)
    assert finish(job).files == 1
    assert files_of(alice) == {"/one.jpg": b"9" * 3000}


def test_it_can_be_cancelled_on_the_way(place: Broker, alice: User, root: User) -> None:
    job = imports.start(place.pk, alice, Who(), prefix="photos/")
    told: list[str] = []

    def tell(words: str) -> None:
        told.append(words)
        jobs.cancel(job.pk, Who(root))

    ended = jobs.run(job.pk, tell=tell)
    assert ended is not None
    assert (ended.state, len(told), len(files_of(alice))) == ("cancelled", 1, 1)
    assert AuditEvent.objects.get(action="import.cancelled").actor == root
    assert jobs.run(job.pk) is None


def test_a_turn_leaves_the_rest_to_the_next(place: Broker, alice: User, clock: VirtualClock) -> None:
    job = imports.start(place.pk, alice, Who(), prefix="photos/")
    turns = 0
    while Job.objects.get().state == "running":
        jobs.run(job.pk, seconds=10, tell=lambda _words: clock.advance(seconds=10))
        turns += 1
    assert turns == 3
    assert len(files_of(alice)) == 3


def test_the_broker_may_go_meanwhile(place: Broker, alice: User) -> None:
    job = imports.start(place.pk, alice, Who(), prefix="photos/")
    remove_by_force(place.pk, "c", Who())
    now = finish(job)
    assert (now.state, now.broker) == ("stopped", "c")
    assert "no broker c" in now.reason


def test_orders_that_cannot_be(place: Broker, alice: User) -> None:
    imports.start(place.pk, alice, Who(), prefix="photos/")
    with pytest.raises(jobs.JobRefused, match="is running"):
        imports.start(place.pk, alice, Who(), prefix="photos/")
    with pytest.raises(InvalidName):
        imports.start(place.pk, alice, Who(), folder="/a/../b")
    with pytest.raises(jobs.JobRefused):
        imports.start(place.pk, alice, Who(), conflict="overwrite")
    User.objects.filter(pk=alice.pk).update(is_active=False)
    with pytest.raises(AccountClosed):
        imports.start(place.pk, User.objects.get(pk=alice.pk), Who(), prefix="letters/")
    assert finish(Job.objects.get()).reason == "the account is closed"


@pytest.mark.parametrize(
    ("name", "number", "wanted"),
    [("a.txt", 1, "a.txt"), ("a.txt", 2, "a (2).txt"), ("a", 3, "a (3)"), (".x", 2, ".x (2)")],
)
def test_names_beside_others(name: str, number: int, wanted: str) -> None:
    assert imports.numbered(name, number) == wanted


@pytest.mark.parametrize("name", ["é" * 127, "x" * 251 + ".txt", "a." + "y" * 253])
def test_long_names_beside_others(name: str) -> None:
    found = imports.numbered(name, 12)
    assert found != name
    assert len(found.encode()) <= MAX_NAME_BYTES
    assert "(12)" in found


# -- doors --------------------------------------------------------------------------------------------


def command(*args: Any) -> Any:
    out = StringIO()
    call_command(*args, "--json", stdout=out, stderr=StringIO())
    return json.loads(out.getvalue())


def test_by_commands(place: Broker, alice: User) -> None:
    there = command("import_files", "c", "alice", "--prefix", "photos/", "--dry-run")
    assert there == {"objects_there": 3, "bytes_there": 5000}
    done = command("import_files", "c", "alice", "--prefix", "photos/", "--folder", "/in", "--wait")
    assert (done["state"], done["files"]) == ("done", 3)
    assert [job["id"] for job in command("jobs")] == [done["id"]]
    rows = command("jobs", str(done["id"]), "--files", "done")
    assert {row["path"] for row in rows} == {"/in/2020/one.jpg", "/in/2020/two.jpg", "/in/old"}
    later = command("import_files", "c", "alice", "--prefix", "letters/")
    assert later["state"] == "running"
    assert command("jobs", str(later["id"]), "--run")["state"] == "done"
    cancelled = command("import_files", "c", "alice", "--prefix", "letters/")
    assert command("jobs", str(cancelled["id"]), "--cancel")["state"] == "cancelled"
    with pytest.raises(CommandError, match="job_ended"):
        command("jobs", str(cancelled["id"]), "--resume")
    for arguments in (["nobody", "alice"], ["c", "nobody"], ["c", "alice", "--prefix", "cs/"]):
        with pytest.raises(CommandError):
            command("import_files", *arguments)
    with pytest.raises(CommandError, match="there is no job"):
        command("jobs", "999999")


def test_over_rest(place: Broker, alice: User, root: User, api: Api) -> None:
    client = api(root, ["admin"])
    order = {"broker": place.pk, "user": "alice", "prefix": "photos/", "folder": "/in"}
    assert client.post("/api/v1/imports", {**order, "dry_run": True}).json()["objects_there"] == 3
    started = client.post("/api/v1/imports", order)
    assert (started.status_code, started.json()["state"]) == (202, "running")
    again = client.post("/api/v1/imports", order)
    assert (again.status_code, again.json()["code"]) == (409, "already_running")
    job = started.json()["id"]
    jobs.run(job)
    now = client.get(f"/api/v1/jobs/{job}").json()
    assert (now["state"], now["files"], now["owner"], now["created_by"]) == ("done", 3, "alice", "root")
    page = client.get(f"/api/v1/jobs/{job}/files", {"state": "done", "limit": 2}).json()
    rest = client.get(f"/api/v1/jobs/{job}/files", {"state": "done", "cursor": page["next"]}).json()
    assert len({row["path"] for row in [*page["files"], *rest["files"]]}) == 3
    assert rest["next"] is None
    bad = client.post("/api/v1/imports", {**order, "folder": "/a/../b"})
    assert (bad.status_code, bad.json()["code"]) == (400, "invalid_name")
    bad = client.post("/api/v1/imports", {**order, "user": "nobody"})
    assert (bad.status_code, bad.json()["code"]) == (400, "no_such_user")


def test_a_returning_broker_over_rest(place: Broker, alice: User, root: User, api: Api, put: Put) -> None:
    """Removed by force and connected again: a job verifies what it holds."""
    put(alice, "mine", b"m" * 500)
    client = api(root, ["admin"])
    broker = Replica.objects.order_by("pk")[0].broker
    there = set(Objects(broker))
    removed = client.post(f"/api/v1/brokers/{broker.pk}/remove", {"force_name": broker.name})
    assert removed.json()["removed"] is True
    new = {"name": "again", "driver": "memory", "domain": "x", "options": broker.options, "adopt": True}
    assert client.post("/api/v1/brokers", new).status_code == 201
    (job,) = client.get("/api/v1/jobs").json()["jobs"]
    assert (job["kind"], job["state"]) == ("adoption", "running")
    jobs.run_due()
    job = client.get(f"/api/v1/jobs/{job['id']}").json()
    assert (job["state"], job["report"]["copies"]) == ("done", 1)
    assert set(Objects(broker)) == there
    assert Replica.objects.get(broker__name="again").state == "stored"
    asked = client.post(f"/api/v1/brokers/{Broker.objects.get(name='again').pk}/adopt")
    assert asked.status_code == 202


def test_in_the_console(
    place: Broker, alice: User, root: User, client: Client, expect_log: Callable[..., None]
) -> None:
    client.force_login(root)
    form = {
        "broker": place.pk,
        "owner": "alice",
        "prefix": "photos/",
        "folder": "/a/../b",
        "conflict": "skip",
    }
    page = client.post("/admin/console/job/add/", form)
    assert "cannot be a name" in page.content.decode()
    page = client.post("/admin/console/job/add/", {**form, "owner": "nobody"})
    assert "There is no user of this name" in page.content.decode()
    assert not Job.objects.exists()
    assert client.post("/admin/console/job/add/", {**form, "folder": "/in"}).status_code == 302
    job = Job.objects.get()
    assert (job.folder, job.conflict, job.created_by) == ("/in", "skip", root)
    jobs.run(job.pk)
    assert "3 of 3" in client.get("/admin/console/job/").content.decode()
    assert client.get(f"/admin/console/job/{job.pk}/change/").status_code == 200
    assert "one.jpg" in client.get("/admin/console/importedfile/").content.decode()

    def act(action: str) -> str:
        data = {"action": action, "_selected_action": [job.pk]}
        return client.post("/admin/console/job/", data, follow=True).content.decode()

    assert "has ended" in act("resume")
    assert "done" in act("cancel")
    data = {"action": "adopt", "_selected_action": [place.pk]}
    assert "looks through c" in client.post("/admin/brokers/broker/", data, follow=True).content.decode()
    assert tree.root_of(alice)

"""The state machine: a drive under everything that users, operators, providers and crashes do to it, against a
model of what was acknowledged. Its invariants are those of docs/reliability.md."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime
from typing import Any

from django.conf import settings
from django.db import transaction
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from accounts import quota
from accounts.models import Plan, User
from replication import policy
from replication.models import Content, Replica, Segment
from tests.kit import counters
from tests.machine import rest
from tests.machine.around import CRASHED, SEEDS, Around
from tests.machine.crash import Crash
from tests.machine.drive import REFUSED_READS, Drive, Read, Told, bytes_of
from tests.machine.tree import Conflict, Names, Tree, look
from tests.machine.world import SEGMENT, World
from vfs import upload
from vfs.models import Version

STEPS = "steps of the state machine"
CRASHES = "crashes of the state machine"
QUOTA = 20_000
DIED = Told(0, "died")
# What the product logged as an error since the last step: a bug, whatever it was about.
alarm: list[str] = []

SIZES = st.sampled_from([0, 1, 40, SEGMENT - 1, SEGMENT, SEGMENT + 1, 2 * SEGMENT + 3, 4 * SEGMENT])
PATHS = st.sampled_from(
    [("a",), ("b",), ("c", "a"), ("c", "b"), ("c", "d", "a"), ("c",), ("c", "d"), ("a", "b")]
)


class Machine(Around):
    @initialize(seed=SEEDS)
    def begin(self, seed: int) -> None:
        self.stack = ExitStack()
        block = transaction.atomic()
        block._from_testcase = True  # type: ignore[attr-defined]
        self.stack.enter_context(block)
        self.stack.callback(transaction.set_rollback, True)
        self.world = World(seed)
        self.stack.enter_context(self.world.running())
        self.plan = Plan.objects.create(name="machine", quota=QUOTA)
        self.user = User.objects.create_user("alice", plan=self.plan)
        self.drive = Drive(self.user)
        self.tree = Tree()
        upload.root_of(self.user)
        self.uploads: list[upload.FileUpload] = []
        self.sent: list[tuple[Names, bytes, int]] = []
        self.readers: list[tuple[Any, bytes, uuid.UUID, int]] = []
        self.purged: dict[uuid.UUID, datetime] = {}
        alarm.clear()

    # -- acting -------------------------------------------------------------------------------------------

    def act(self, what: Callable[[], Any], crash: int | None = None) -> Any:
        """Do something, the process dying at the given effect: -> what it came to, or DIED."""
        counters.add(STEPS)
        self.world.clock.advance(milliseconds=50)
        self.world.fuse.arm(crash)
        try:
            return what()
        except Crash:
            counters.add(CRASHES)
            return DIED
        finally:
            assert not alarm, "\n".join(alarm)
            died = self.world.fuse.dead
            self.world.fuse.arm(None)
            if died:
                self.uploads.clear()
                self.sent.clear()
                self.readers.clear()
                self.world.restart()

    def change(self, trees: list[Tree]) -> Tree:
        """Which of the states that are possible now came true."""
        seen = look(self.user)
        differences = [tree.difference(seen) for tree in trees]
        for tree, difference in zip(trees, differences, strict=True):
            if not difference:
                self.tree = tree
                return tree
        raise AssertionError("the drive is in none of the possible states:\n" + "\n--\n".join(differences))

    def put_all(self, files: list[tuple[Names, bytes]], send: Callable[[], Told], crash: int | None) -> None:
        """An upload through a door: all files, or none of them and an explicit refusal."""
        after, conflict = self.tree.copy(), ""
        try:
            for names, data in files:
                after.put(names, data)
        except Conflict as found:
            conflict = found.code
        size = sum(len(data) for _names, data in files)
        usage = quota.usage(self.user)
        rules = policy.current()
        wanted = self.plan.copies or rules.copies
        needed = policy.acknowledged_after(wanted, rules)
        certain = self.world.takers() >= needed
        versions = set(Version.objects.values_list("pk", flat=True))
        told = self.act(send, crash)
        if told is DIED:
            if self.change([self.tree, after] if not conflict else [self.tree]) is after:
                counters.add(counters.ACKNOWLEDGED, size)
            return
        if conflict:
            # Of a form, the files before that one may have been refused already.
            assert (told.status, told.code) == (409, conflict) or (
                len(files) > 1 and told.status in (413, 503)
            )
        elif size > usage.free:
            assert told.status == 413 or (told.status == 503 and not certain), told
        elif certain:
            assert told.done, f"refused without reason: {told}"
        else:
            assert told.done or told.status == 503, told
        if not told.done:
            self.change([self.tree])
            return
        self.change([after])
        counters.add(counters.ACKNOWLEDGED, size)
        for content in Content.objects.filter(versions__in=Version.objects.exclude(pk__in=versions)):
            stand = self.world.domains(content.pk)
            least = 1 if rules.allow_degraded else needed
            assert stand >= least, f"acknowledged with {stand} good copies, not {least}"

    # -- uploads ------------------------------------------------------------------------------------------

    @rule(names=PATHS, size=SIZES, seed=SEEDS, digest=st.booleans(), crash=CRASHED)
    def put(self, names: Names, size: int, seed: int, digest: bool, crash: int | None) -> None:
        data = bytes_of(size, seed)
        self.put_all([(names, data)], lambda: self.drive.put(names, data, digest=digest), crash)

    @rule(number=st.integers(0, 9), size=SIZES, seed=SEEDS, crash=CRASHED)
    def overwrite(self, number: int, size: int, seed: int, crash: int | None) -> None:
        files = self.tree.paths(folders=False)
        if files:
            names, data = files[number % len(files)], bytes_of(size, seed)
            self.put_all([(names, data)], lambda: self.drive.put(names, data), crash)

    @rule(
        page=st.booleans(),
        folder=st.integers(0, 9),
        files=st.lists(st.tuples(st.sampled_from(["a", "b", "d"]), SIZES, SEEDS), min_size=1, max_size=3),
        crash=CRASHED,
    )
    def form(self, page: bool, folder: int, files: list[tuple[str, int, int]], crash: int | None) -> None:
        folders = self.tree.paths(folders=True)
        above = folders[folder % len(folders)]
        key = self.tree.find(above)
        assert key is not None
        node = self.tree.entries[key].id
        if node is None:
            node = upload.root_of(self.user).pk
        parts = [(name, bytes_of(size, seed)) for name, size, seed in files]
        send = self.drive.page if page else self.drive.form
        self.put_all([((*above, n), d) for n, d in parts], lambda: send(node, parts), crash)

    @precondition(lambda self: len(self.uploads) < 2)
    @rule(names=PATHS, size=SIZES, seed=SEEDS)
    def start_slow_upload(self, names: Names, size: int, seed: int) -> None:
        """An upload whose bytes come in later steps."""

        def start() -> upload.FileUpload:
            return upload.FileUpload(self.user, upload.target_at(self.user, names), size=size)

        try:
            started = self.act(start)
        except rest.REFUSALS:
            return
        rules = policy.current()
        needed = policy.acknowledged_after(self.plan.copies or rules.copies, rules)
        self.uploads.append(started)
        self.sent.append((names, bytes_of(size, seed), 1 if rules.allow_degraded else needed))

    @precondition(lambda self: self.uploads)
    @rule(size=st.sampled_from([1, 300, SEGMENT, 3 * SEGMENT]), crash=CRASHED)
    def go_on(self, size: int, crash: int | None) -> None:
        """The next bytes of the first slow upload; after the last, its commit."""
        slow, (names, data, needed) = self.uploads[0], self.sent[0]
        at = slow._received
        before, owner = self.tree, self.user
        after = self.tree.copy()

        def send() -> Told:
            slow.write(data[at : at + size])
            if at + size >= len(data):
                slow.complete()
                slow.commit()
                return Told(201)
            return Told(100)

        try:
            told = self.act(send, crash)
        except rest.REFUSALS:
            self.uploads.pop(0).abort()
            self.sent.pop(0)
            self.change([self.tree])
            return
        if told.status == 100:
            return
        # Where it goes was settled when it began: the folder may have been renamed, trashed or purged meanwhile.
        try:
            parent = next(k for k, e in after.entries.items() if e.id == slow.target.parent.pk)
            after.put(slow.target.names, data, parent)
        except (Conflict, StopIteration):
            after = before
        if self.change([before, after] if told is DIED else [after]) is after and after is not before:
            counters.add(counters.ACKNOWLEDGED, len(data))
        if told is not DIED:
            assert after is not before, f"{names} was acknowledged, though it has no place"
            assert owner == self.user
            self.uploads.pop(0)
            self.sent.pop(0)
            stored = Segment.objects.filter(content=slow.row.content_id)
            for segment in stored:
                held = segment.replicas.filter(state__in=(Replica.State.STORED, Replica.State.SUSPECT))
                domains = len(set(held.values_list("broker__domain", flat=True)))
                assert domains >= needed, f"acknowledged with {domains} copies, not {needed}"

    @precondition(lambda self: self.uploads)
    @rule(crash=CRASHED)
    def give_up(self, crash: int | None) -> None:
        """The client of the first slow upload goes away."""
        slow = self.uploads.pop(0)
        self.sent.pop(0)
        self.act(slow.abort, crash)
        self.change([self.tree])

    # -- downloads ----------------------------------------------------------------------------------------

    def wrong(self, what: str, body: bytes) -> None:
        counters.add(counters.WRONG, max(1, len(body)))
        raise AssertionError(f"{what}: {len(body)} wrong bytes were served")

    @rule(number=st.integers(0, 9))
    def download(self, number: int) -> None:
        self.read(number, 0, -1)

    @rule(number=st.integers(0, 9), start=st.integers(0, 5 * SEGMENT), length=st.integers(-1, 2 * SEGMENT))
    def download_range(self, number: int, start: int, length: int) -> None:
        self.read(number, start, length)

    def read(self, number: int, start: int, length: int) -> None:
        """A whole file, or a range of it, by the raw door."""
        files = self.tree.paths(folders=False)
        if not files:
            return
        names = files[number % len(files)]
        data = self.tree.file(names)
        assert data is not None
        key = self.tree.find(names)
        assert key is not None
        content = Version.objects.get(pk=rest.node(self.tree.entries[key].id).version_id).content_id
        certain = self.world.certain(content)
        ranged = length >= 0
        read: Read = self.act(
            lambda: self.drive.get(names, f"bytes={start}-{start + length}" if ranged else "")
        )
        self.check_read(read, data[start : start + length + 1] if ranged else data, certain)

    def check_read(self, read: Read, should: bytes, certain: bool) -> None:
        if read.status == 416:
            assert not should
        elif read.status in REFUSED_READS:
            assert not certain, "refused, though every segment stands intact on a provider that works"
        else:
            assert read.status in (200, 206), read
            if not should.startswith(read.body) or (read.whole and read.body != should):
                self.wrong("a download", read.body)
            assert read.whole or not certain, "broke off, though every segment stands intact"

    @precondition(lambda self: len(self.readers) < 2)
    @rule(number=st.integers(0, 9))
    def start_slow_download(self, number: int) -> None:
        files = self.tree.paths(folders=False)
        if not files:
            return
        names = files[number % len(files)]
        data, key = self.tree.file(names), self.tree.find(names)
        assert data is not None
        assert key is not None
        content = rest.node(self.tree.entries[key].id).version.content_id  # type: ignore[union-attr]
        response = self.act(lambda: self.drive.open(names))
        if response.streaming:
            self.readers.append((iter(response), data, content, 0))
        else:
            assert response.status_code in REFUSED_READS, response.status_code

    @precondition(lambda self: self.readers)
    @rule()
    def read_on(self) -> None:
        """The next piece of the first slow download."""
        pieces, data, content, at = self.readers.pop(0)
        try:
            piece = bytes(self.act(lambda: next(pieces)))
        except StopIteration:
            assert at == len(data), "a short answer that looks whole"
            return
        except rest.READ_ERRORS:
            return
        if not piece or data[at : at + len(piece)] != piece:
            self.wrong("a slow download", piece)
        self.readers.insert(0, (pieces, data, content, at + len(piece)))

    @rule(names=PATHS)
    def ask(self, names: Names) -> None:
        """HEAD: what is there is there, with its hash; what was deleted stays deleted."""
        status, tag = self.act(lambda: self.drive.head(names))
        data = self.tree.file(names)
        if data is not None:
            assert (status, tag) == (200, rest.sha256(data))
        elif self.tree.find(names) is None:
            assert status == 404

    # -- folders and deleting -----------------------------------------------------------------------------

    @rule(names=PATHS, crash=CRASHED)
    def make_folder(self, names: Names, crash: int | None) -> None:
        after, conflict = self.tree.copy(), ""
        try:
            after.mkdir(names, exists_ok=False)
        except Conflict as found:
            after, conflict = self.tree, found.code
        told = self.act(lambda: self.drive.mkdir(names), crash)
        assert told is DIED or told.code == conflict
        self.change([self.tree, after] if told is DIED else [after])

    @rule(number=st.integers(0, 9), folder=st.booleans(), page=st.booleans(), crash=CRASHED)
    def delete(self, number: int, folder: bool, page: bool, crash: int | None) -> None:
        """To the trash."""
        there = [names for names in self.tree.paths(folders=folder) if names]
        if not there:
            return
        names = there[number % len(there)]
        after = self.tree.copy()
        key = after.find(names)
        assert key is not None
        node = after.entries[key].id
        after.trash(key)
        told = self.act(
            lambda: self.drive.delete_page(node) if page and node else self.drive.delete(names), crash
        )
        assert told is DIED or told.status == 204
        self.change([self.tree, after] if told is DIED else [after])

    @rule(number=st.integers(0, 9), trashed=st.booleans(), crash=CRASHED)
    def purge(self, number: int, trashed: bool, crash: int | None) -> None:
        """For good: out of the trash, or at once."""
        visible = [names for names in self.tree.paths(folders=False) if names]
        keys = self.tree.in_trash() if trashed else [self.tree.find(names) for names in visible]
        if not keys:
            return
        key = keys[number % len(keys)]
        assert key is not None
        after = self.tree.copy()
        after.purge(key)
        node = self.tree.entries[key].id
        assert node is not None
        contents = set(Content.objects.filter(versions__isnull=False).values_list("pk", flat=True))
        if trashed:
            told = self.act(lambda: self.drive.purge_trashed(node), crash)
        else:
            told = self.act(lambda: self.drive.delete(self.tree.path(key), purge=True), crash)
        assert told is DIED or told.status == 204
        self.change([self.tree, after] if told is DIED else [after])
        gone = contents - set(Content.objects.filter(versions__isnull=False).values_list("pk", flat=True))
        self.purged |= dict.fromkeys(gone, self.world.clock.now())

    # -- what holds after every step ----------------------------------------------------------------------

    @invariant()
    def all_is_well(self) -> None:
        if hasattr(self, "world"):
            self.nothing_is_lost()
            self.the_tree_and_the_quota_are_as_told()
            self.the_grace_is_kept()

    def nothing_is_lost(self) -> None:
        lost = self.world.lost()
        if lost:
            counters.add(
                counters.LOST, sum(Segment.objects.filter(pk__in=lost).values_list("size", flat=True))
            )
        assert not lost, f"segments {lost} of acknowledged files have no intact copy any more"

    def the_tree_and_the_quota_are_as_told(self) -> None:
        difference = self.tree.difference(look(self.user))
        assert not difference, difference
        usage = quota.usage(self.user)
        assert usage.used == self.tree.used
        assert usage.used + usage.reserved <= usage.limit

    def the_grace_is_kept(self) -> None:
        """What was deleted for good may still be needed by a restored backup: its objects stay for the grace."""
        if not self.purged:
            return
        now, grace = self.world.clock.now(), settings.CLOUDSTORE_COLLECT_GRACE
        young = {pk for pk, at in self.purged.items() if now - at < grace}
        kept = Replica.objects.filter(segment__content__in=young).exclude(state=Replica.State.DOOMED)
        missing = young - set(kept.values_list("segment__content", flat=True))
        assert not missing, f"contents {missing} were collected before their grace was over"

    def teardown(self) -> None:
        if not hasattr(self, "stack"):
            return
        try:
            with self.stack:
                if sys.exc_info()[0] is None:  # else the program has failed already
                    rest.bring_to_rest(self)
        finally:
            super().teardown()

"""Jobs: who works at one, when, and how they end. All state is in the database: a kill at any moment costs time only.

A worker holds a job by a lease that it renews; another takes it over when that has run out, or when the process that
held it is surely gone. What a job does is in console/imports.py and console/brokers.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from django.db import transaction
from django.db.models import Count, Q, Sum

from accounts.models import User
from brokers import clock
from brokers.errors import BrokerError
from brokers.models import Broker
from console import tasks
from console.models import ImportedFile, Job
from console.operations import Who
from vfs import holder

log = logging.getLogger(__name__)
State, Kind = Job.State, Job.Kind

# An adoption may verify a very long file between two renewals.
LEASES = {Kind.IMPORT: timedelta(minutes=10), Kind.ADOPTION: timedelta(hours=2)}
BEAT = 20.0  # seconds between two renewals
# A task works so long, then leaves the rest to the next, so that no job keeps other work waiting.
TURN = 60.0
RETRY = timedelta(minutes=2)

Tell = Callable[[str], None]


class JobRefused(Exception):
    """Nothing was begun or changed; `code` and the words say why."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class Ended(Exception):
    """The job is not this worker's any more: cancelled, or taken over after its lease ran out."""


class Stop(Exception):
    """The job waits for the operator; the text says why."""


class Later(Exception):
    """The job goes on later; the text says why."""


@dataclass
class Progress:
    """How far a job is. Of `objects_there` and `bytes_there` (null until counted), `objects` and `bytes` were dealt
    with, and `files` objects brought in."""

    id: int
    kind: str
    state: str
    reason: str
    broker: str
    prefix: str
    owner: str
    folder: str
    conflict: str
    created_by: str
    created_at: Any
    finished_at: Any
    objects_there: int | None
    bytes_there: int | None
    objects: int = 0
    bytes: int = 0
    files: int = 0
    skipped: int = 0
    refused: int = 0
    failed: int = 0
    report: dict[str, Any] = field(default_factory=dict)


def begin(kind: str, broker: Broker, who: Who, **values: Any) -> Job:
    """Note an order; workers take it. Refuses a second one that is the same while the first runs (JobRefused)."""
    with transaction.atomic():
        # The update is the lock: of two orders at once, the second sees the first.
        Broker.objects.filter(pk=broker.pk).update(name=broker.name)
        same = Job.objects.filter(kind=kind, broker=broker, state=State.RUNNING, **values)
        if found := same.first():
            raise JobRefused("already_running", f"job {found.pk} does the same and is running")
        job = Job.objects.create(
            kind=kind, broker=broker, broker_name=broker.name, created_by=who.user, **values
        )
        about = {name: value for name, value in values.items() if isinstance(value, str)}
        if job.owner is not None:
            about["owner"] = job.owner.get_username()
        who.record(f"{kind}.begun", broker.name, job=job.pk, **about)
        _hint(job.pk)
    return job


def _hint(job_id: int) -> None:
    """Make a worker look at a job soon, after the commit. The sweep finds it anyway."""
    transaction.on_commit(lambda: tasks.run_job.delay(job_id))


def begin_adoption(broker_id: int, who: Who) -> Job:
    """Let the workers look through a broker for objects of ours that no row knows (`console.brokers.bring_back`)."""
    return begin(Kind.ADOPTION, Broker.objects.get(pk=broker_id), who)


def cancel(job_id: int, who: Who) -> Job:
    """End a job where it is; what it has done stays. Idempotent."""
    with transaction.atomic():
        rows = Job.objects.filter(pk=job_id, state__in=(State.RUNNING, State.STOPPED))
        if rows.update(state=State.CANCELLED, finished_at=clock.now()):
            job = Job.objects.get(pk=job_id)
            who.record(f"{job.kind}.cancelled", job.broker_name, job=job.pk)
    return Job.objects.get(pk=job_id)


def resume(job_id: int, who: Who) -> Job:
    """Go on with a job that was stopped. Idempotent. Raises JobRefused for one that has ended."""
    with transaction.atomic():
        rows = Job.objects.filter(pk=job_id, state=State.STOPPED)
        changed = rows.update(state=State.RUNNING, reason="", retry_at=None, lease_until=None, holder="")
        job = Job.objects.get(pk=job_id)
        if changed:
            who.record(f"{job.kind}.resumed", job.broker_name, job=job.pk)
        elif job.state != State.RUNNING:
            raise JobRefused("job_ended", f"job {job.pk} has ended: {job.state}")
        _hint(job_id)
    return job


def run_due() -> int:
    """Go on with every job that nobody works at: -> how many. Any number of processes may call it."""
    now = clock.now()
    due = Job.objects.filter(Q(retry_at=None) | Q(retry_at__lte=now), state=State.RUNNING)
    return sum(
        run(pk, seconds=TURN) is not None for pk in list(due.order_by("pk").values_list("pk", flat=True))
    )


def run(job_id: int, *, seconds: float | None = None, tell: Tell = lambda _words: None) -> Job | None:
    """Work at a job, for about so many seconds: -> it as it is then; None when another worker has it or it is not
    running. Outside any transaction."""
    turn = _take(job_id, seconds, tell)
    if turn is None:
        return None
    from console import imports  # it needs this module

    try:
        if turn.broker is None:
            raise Stop(f"there is no broker {turn.job.broker_name} any more")
        if turn.job.kind == Kind.IMPORT:
            done = imports.work(turn)
        else:
            done = _adopt(turn)
        if done:
            turn.change(state=State.DONE, finished_at=clock.now(), reason="")
        else:
            turn.change(holder="", lease_until=None)
            _hint(job_id)
    except Ended:
        log.info("job %s is not ours any more", job_id)
    except Stop as why:
        turn.change(state=State.STOPPED, reason=str(why)[:500], holder="", lease_until=None)
    except Later as why:
        turn.change(reason=str(why)[:500], retry_at=clock.now() + RETRY, holder="", lease_until=None)
    return Job.objects.get(pk=job_id)


class Turn:
    """A worker's hold on a job."""

    def __init__(self, job: Job, seconds: float | None, tell: Tell) -> None:
        self.job, self.tell = job, tell
        self.broker: Broker | None = job.broker
        self.lease = LEASES[Kind(job.kind)]
        self._seconds, self._ends = seconds, float("inf")
        self._beat_at = clock.monotonic() + BEAT

    @property
    def over(self) -> bool:
        """Whether it is time to leave the rest to the next. The time begins when this is asked for the first time, so
        that passing over what is done already takes none of it."""
        if self._seconds is not None and self._ends == float("inf"):
            self._ends = clock.monotonic() + self._seconds
            return False
        return clock.monotonic() >= self._ends

    def rows(self) -> Any:
        """The job's row while it is this worker's."""
        return Job.objects.filter(pk=self.job.pk, state=State.RUNNING, holder=self.job.holder)

    def change(self, **values: Any) -> None:
        """Change the job's row. Does nothing when it is not ours any more."""
        self.rows().update(**values)

    def beat(self, *, now: bool = False) -> None:
        """Renew the lease, at most every 20 seconds. Raises Ended."""
        if not now and clock.monotonic() < self._beat_at:
            return
        self._beat_at = clock.monotonic() + BEAT
        if not self.rows().update(lease_until=clock.now() + self.lease):
            raise Ended


def _take(job_id: int, seconds: float | None, tell: Tell) -> Turn | None:
    job = (
        Job.objects.filter(pk=job_id, state=State.RUNNING)
        .select_related("broker", "owner", "created_by")
        .first()
    )
    if job is None:
        return None
    now = clock.now()
    if job.lease_until is not None and job.lease_until > now and not holder.gone(_process(job.holder)):
        return None
    # The moment makes two turns of one process differ.
    mine = f"{holder.current()} {now.isoformat()} {clock.monotonic()}"
    free = Job.objects.filter(pk=job_id, state=State.RUNNING, holder=job.holder, lease_until=job.lease_until)
    if not free.update(holder=mine, lease_until=now + LEASES[Kind(job.kind)], retry_at=None):
        return None
    job.holder = mine
    return Turn(job, seconds, tell)


def _process(text: str) -> str:
    return text.partition(" ")[0]


def _adopt(turn: Turn) -> bool:
    from console import brokers, rebuild

    assert turn.broker is not None  # noqa: S101
    operator = turn.job.created_by

    def tell(words: str) -> None:
        turn.tell(words)
        turn.beat()

    try:
        name = operator.get_username() if operator is not None and operator.is_active else ""
        report = brokers.bring_back(turn.broker.pk, Who(operator), operator=name, tell=tell)
    except rebuild.CannotRebuild as error:
        raise Stop(str(error)) from None
    except BrokerError as error:
        raise Later(f"{error.code}: {error}") from None
    if report.objects.unreachable:
        raise Later(f"{turn.broker.name} does not answer now")
    turn.change(report=_plain(report.objects))
    return True


def _plain(report: Any) -> dict[str, Any]:
    """What is kept of an adoption's report."""
    names = ("objects", "unknown", "not_ours", "deleted_before", "copies", "contents", "bytes")
    kept = {name: getattr(report, name) for name in names}
    return {**kept, "incomplete": len(report.incomplete), "damaged": len(report.damaged)}


def progress(job: Job) -> Progress:
    """How far a job is."""
    result = Progress(
        id=job.pk,
        kind=job.kind,
        state=job.state,
        reason=job.reason,
        broker=job.broker_name,
        prefix=job.prefix,
        owner=_name(job.owner),
        folder=job.folder,
        conflict=job.conflict,
        created_by=_name(job.created_by),
        created_at=job.created_at,
        finished_at=job.finished_at,
        objects_there=job.objects_there,
        bytes_there=job.bytes_there,
        report=job.report,
    )
    files = ImportedFile.State
    counted = job.files.values("state").order_by("state").annotate(n=Count("pk"), size=Sum("size"))
    names = {files.DONE: "files", files.SKIPPED: "skipped", files.REFUSED: "refused", files.FAILED: "failed"}
    for row in counted:
        setattr(result, names[files(row["state"])], row["n"])
        if row["state"] != files.FAILED:
            result.objects += row["n"]
            result.bytes += row["size"] or 0
    return result


def _name(user: User | None) -> str:
    return user.get_username() if user is not None else ""


def words_of(now: Progress) -> str:
    """For a terminal or a message."""
    words = f"job {now.id}: {now.kind} of {now.broker}, {now.state}"
    if now.kind == Kind.IMPORT:
        there = "?" if now.objects_there is None else str(now.objects_there)
        words += (
            f"; {now.objects} of {there} objects ({now.bytes} bytes): {now.files} files brought in, "
            f"{now.skipped} skipped, {now.refused} refused, {now.failed} failed"
        )
    elif now.report:
        words += f"; {now.report['copies']} copies known again, {now.report['contents']} files found"
    return f"{words}\n{now.reason}" if now.reason else words

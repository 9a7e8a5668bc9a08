"""Tells operators that a broker's state has changed: by mail and by a webhook.

`note_changes` compares each broker's state with the one that was told last and, in one transaction, writes that down
and a row of `BrokerAlert` for each channel. `send_due` sends what is pending, all of a channel in one message, so that
ten brokers that fail at once make one mail. A message is sent at least once: the rows are marked after it went, and
after a crash between the two it goes again. No poll and no request waits for any of it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import smtplib
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.mail import EmailMessage
from django.db import transaction
from django.db.models import F

from brokers import clock, endpoint
from brokers.errors import BrokerError, Misconfigured, Unavailable
from brokers.layers import guard
from brokers.layers.call import Call
from brokers.layers.deadline import Deadline
from brokers.models import Broker, BrokerAlert
from brokers.state import State, detail_of, reason_of, state_of

log = logging.getLogger(__name__)

MAIL, WEBHOOK = "mail", "webhook"
# A change waits so long for others, to be told with them.
GATHER = timedelta(seconds=30)
LEASE = timedelta(minutes=2)
FIRST_WAIT = timedelta(minutes=1)
LONGEST_WAIT = timedelta(hours=1)
TRIES = 10
# The most changes of one message.
MOST = 200
KEPT = timedelta(days=30)
# Seconds for the whole of a POST, and for each step of it.
POST_SECONDS, STEP_SECONDS = 15.0, 10.0
_WELL = (State.UP, State.DISABLED, State.DRAINING)


class NotSent(Exception):
    """A message did not go out; the text says why, without secrets."""


@dataclass(frozen=True)
class Change:
    """One broker's change of state as it is told."""

    id: int
    broker: str
    before: str
    after: str
    reason: str
    detail: str
    at: str

    @property
    def line(self) -> str:
        reason = f" ({self.reason})" if self.reason else ""
        detail = f": {self.detail}" if self.detail else ""
        before = f", was {State(self.before).label}" if self.before else ""
        return f"{self.at}  {self.broker} is {State(self.after).label}{reason}{before}{detail}"


def channels() -> list[str]:
    """The channels that are configured."""
    found = [(MAIL, settings.CLOUDSTORE_ALERT_MAIL), (WEBHOOK, settings.CLOUDSTORE_ALERT_WEBHOOK)]
    return [name for name, value in found if value]


# -- noting --------------------------------------------------------------------------------------------------


def note_changes() -> int:
    """Note every change of a broker's state since the last one that was noted: -> how many. A new broker that is
    well is no news. Any number of processes may call it; each change is noted once."""
    noted = 0
    for broker in Broker.objects.all():
        state = state_of(broker)
        if state in (State.UNKNOWN, broker.told_state):
            continue
        with transaction.atomic():
            mine = Broker.objects.filter(pk=broker.pk, told_state=broker.told_state)
            if not mine.update(told_state=state):
                continue
            if not broker.told_state and state in _WELL:
                continue
            now = clock.now()
            BrokerAlert.objects.bulk_create(
                BrokerAlert(
                    channel=channel,
                    broker=broker,
                    name=broker.name,
                    before=broker.told_state,
                    after=state,
                    reason=reason_of(broker),
                    detail=detail_of(broker),
                    at=now,
                    due_at=now + GATHER,
                )
                for channel in channels()
            )
        noted += 1
    return noted


def expire() -> int:
    """Drop alerts that were told, or given up, long ago: -> how many."""
    before = clock.now() - KEPT
    pending = BrokerAlert.objects.filter(sent_at=None, given_up_at=None)
    return BrokerAlert.objects.filter(at__lt=before).exclude(pk__in=pending).delete()[0]


# -- sending -------------------------------------------------------------------------------------------------


def send_due() -> int:
    """Send what is pending and due: -> how many changes were told. Outside any transaction. Any number of processes
    may call it. Never raises for a channel that fails: its changes are tried again, at growing intervals, and given
    up after ten tries."""
    guard.check()
    return sum(_send(channel, send) for channel, send in _SENDERS.items() if _claimable(channel))


def _claimable(channel: str) -> bool:
    pending = BrokerAlert.objects.filter(channel=channel, sent_at=None, given_up_at=None)
    return pending.filter(due_at__lte=clock.now()).exists()


def _send(channel: str, send: Callable[[Sequence[Change]], None]) -> int:
    now = clock.now()
    claim = uuid.uuid4()
    pending = BrokerAlert.objects.filter(channel=channel, sent_at=None, given_up_at=None)
    # A process died over its last try.
    pending.filter(attempts__gte=TRIES, due_at__lte=now).update(given_up_at=now)
    # What still gathers goes along; what another process has (its lease is longer) or waits after a failure stays.
    ready = pending.filter(due_at__lte=now) | pending.filter(due_at__lte=now + GATHER, attempts=0)
    pks = list(ready.order_by("at", "pk").values_list("pk", flat=True)[:MOST])
    with transaction.atomic():
        for pk, due_at in pending.filter(pk__in=pks).values_list("pk", "due_at"):
            pending.filter(pk=pk, due_at=due_at).update(
                due_at=now + LEASE, claim=claim, attempts=F("attempts") + 1
            )
    mine = BrokerAlert.objects.filter(channel=channel, claim=claim, sent_at=None, given_up_at=None)
    rows = list(mine)
    if not rows:
        return 0
    failure = ""
    if channel not in channels():
        failure = "the channel is not configured any more"
    else:
        try:
            send([_change(row) for row in rows])
        except NotSent as error:
            failure = str(error)
    if not failure:
        return mine.update(sent_at=clock.now(), failure="")
    _put_off(channel, rows, claim, failure)
    return 0


def _put_off(channel: str, rows: list[BrokerAlert], claim: uuid.UUID, failure: str) -> None:
    now = clock.now()
    given_up = 0
    for row in rows:
        over = row.attempts >= TRIES
        given_up += over
        wait = min(FIRST_WAIT * 2 ** (row.attempts - 1), LONGEST_WAIT)
        BrokerAlert.objects.filter(pk=row.pk, claim=claim).update(
            due_at=now + wait,
            claim=None,
            failure=failure[:200],
            given_up_at=now if over else None,
        )
    if given_up:
        log.error("%d alerts by %s were given up after %d tries: %s", given_up, channel, TRIES, failure)
    else:
        log.warning("alerts by %s could not be sent and are tried again: %s", channel, failure)


def _change(row: BrokerAlert) -> Change:
    return Change(row.pk, row.name, row.before, row.after, row.reason, row.detail, row.at.isoformat())


def test() -> dict[str, str]:
    """Send one made-up change over every configured channel, now: -> by channel, "" or why it failed."""
    guard.check()
    now = clock.now().isoformat()
    sample = Change(0, "test", "", State.UP, "test", "this is a test; no broker has changed", now)
    outcome = {}
    for channel in channels():
        try:
            _SENDERS[channel]([sample])
        except NotSent as error:
            outcome[channel] = str(error)
        else:
            outcome[channel] = ""
    return outcome


# -- the channels --------------------------------------------------------------------------------------------


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def _send_mail(changes: Sequence[Change]) -> None:
    worst = [c for c in changes if c.after not in _WELL] or list(changes)
    what = f"{worst[0].broker} is {State(worst[0].after).label}"
    others = len({c.broker for c in changes}) - 1
    subject = f"[{settings.CLOUDSTORE_NAME}] {what}" + (f" and {others} more" if others else "")
    lines = [*(c.line for c in changes), "", f"{settings.SITE_URL}/admin/brokers/broker/"]
    message = EmailMessage(
        _one_line(subject)[:200], "\n".join(map(_one_line, lines)), to=settings.CLOUDSTORE_ALERT_MAIL
    )
    try:
        message.send()
    except (smtplib.SMTPException, OSError, ValueError) as error:
        # Its text may quote what was sent, the password among it.
        raise NotSent(f"the mail server refused or did not answer ({type(error).__name__})") from None


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """What the header X-CloudStore-Signature says: HMAC-SHA256 of timestamp, ".", body."""
    signed = hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256)
    return f"sha256={signed.hexdigest()}"


def _send_webhook(changes: Sequence[Change]) -> None:
    body = json.dumps(
        {
            "event": "broker_state",
            "site": settings.SITE_URL,
            "changes": [
                {
                    "id": c.id, "broker": c.broker, "before": c.before, "after": c.after,
                    "reason": c.reason, "detail": c.detail, "at": c.at,
                }
                for c in changes
            ],
        }
    ).encode()  # fmt: skip
    timestamp = str(int(clock.now().timestamp()))
    headers = {"Content-Type": "application/json", "X-CloudStore-Timestamp": timestamp}
    if settings.CLOUDSTORE_ALERT_SECRET:
        headers["X-CloudStore-Signature"] = signature(settings.CLOUDSTORE_ALERT_SECRET, timestamp, body)
    call = Call("post", (settings.CLOUDSTORE_ALERT_WEBHOOK, body, headers), POST_SECONDS)
    try:
        status = _poster(call)
    except BrokerError as error:
        raise NotSent(f"the webhook could not be reached: {error}") from None
    if not 200 <= status < 300:
        raise NotSent(f"the webhook answered {status}")


def _post(call: Call) -> int:
    """POST to an address that is checked as those of brokers are, without following redirects: -> the status. The
    address may carry a secret: no error quotes it."""
    import urllib3

    url, body, headers = call.arguments
    parts = urlsplit(url)
    kinds: dict[str, Any] = {"http": urllib3.HTTPConnectionPool, "https": urllib3.HTTPSConnectionPool}
    pool = endpoint.guarded(kinds[parts.scheme])(
        parts.hostname, parts.port, timeout=urllib3.Timeout(STEP_SECONDS), retries=False, maxsize=1
    )
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        response = pool.urlopen(
            "POST", target, body=body, headers=headers, redirect=False, preload_content=False
        )
        response.close()
        return int(response.status)
    except Misconfigured:
        raise
    except (urllib3.exceptions.HTTPError, OSError) as error:
        if refused := endpoint.refusal(error):
            raise refused from None
        raise Unavailable(type(error).__name__) from None
    finally:
        pool.close()


_poster = Deadline(_post, 2, "webhook")
_SENDERS: dict[str, Callable[[Sequence[Change]], None]] = {MAIL: _send_mail, WEBHOOK: _send_webhook}

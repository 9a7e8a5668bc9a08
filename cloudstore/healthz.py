"""`/healthz`: can this node serve, and which part is red. For load balancers and monitors; tells no secrets."""

from __future__ import annotations

import time

from django.db import DatabaseError, connection
from django.http import HttpRequest, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from brokers.models import Broker
from cloudstore import schema
from replication import policy

OK, RED = "ok", "red"
# The queue is asked at most so often, in seconds: a dead one costs each question a time-out.
QUEUE_EVERY = 5.0
_queue: tuple[float, str] = (float("-inf"), RED)


@never_cache
@require_safe
def healthz(request: HttpRequest) -> JsonResponse:
    """503 when the database or its schema is red: this node can serve nothing. Otherwise 200; a red queue makes
    repairs late, red brokers refuse uploads or keep copies away."""
    try:
        connection.ensure_connection()
        parts = {"database": OK, "schema": RED if schema.mismatch() else OK, "brokers": _brokers()}
    except DatabaseError:
        parts = {"database": RED, "schema": RED, "brokers": RED}
    parts["queue"] = queue()
    serves = parts["database"] == parts["schema"] == OK
    return JsonResponse({"status": OK if serves else RED, **parts}, status=200 if serves else 503)


def _brokers() -> str:
    """Whether every enabled broker is readable and enough of them take uploads."""
    rows = list(Broker.objects.filter(enabled=True))
    rules = policy.current()
    domains = {broker.domain for broker in rows if broker.writable}
    enough = len(domains) >= policy.acknowledged_after(rules.copies, rules)
    return OK if enough and all(broker.readable for broker in rows) else RED


def queue() -> str:
    """Whether the queue answers."""
    global _queue
    now = time.monotonic()
    if now - _queue[0] >= QUEUE_EVERY:
        _queue = (now, _ask_queue())
    return _queue[1]


def _ask_queue() -> str:
    from cloudstore.celery import app

    try:
        with app.connection_for_write() as link:
            link.ensure_connection(max_retries=1, timeout=2)
            link.default_channel.client.ping()
    except Exception:  # noqa: BLE001 - whatever it is, the queue does not answer
        return RED
    return OK

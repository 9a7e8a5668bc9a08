"""What changes brokers: add, change, enable, claim a place. Provider IO first, then one small transaction."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any

from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction

from brokers import clock, credentials, health, limits, marker, registry
from brokers.errors import Misconfigured
from brokers.layers import guard
from brokers.models import Broker, BrokerEvent, Health
from brokers.open import OpenBroker, connect, forget

# How long the polls leave a broker alone that is being added.
ADDING = timedelta(seconds=60)

# Called inside the transaction of a change with the row, what was done and a detail: for the caller's audit row.
Record = Callable[[Broker, str, str], None]


class InvalidOptions(Misconfigured):
    """Options that the driver's form refuses; `errors` by the option's name ("" for all of them)."""

    code = "invalid_options"

    def __init__(self, errors: Mapping[str, Iterable[Any]]) -> None:
        self.errors = {name: [str(text) for text in texts] for name, texts in errors.items()}
        lines = [
            f"{name}: {' '.join(texts)}" if name else " ".join(texts) for name, texts in self.errors.items()
        ]
        super().__init__("; ".join(lines))


class StaleBroker(Misconfigured):
    """Somebody else changed the broker meanwhile; nothing was changed."""

    code = "stale_broker"


def check_options(slug: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The driver's form over these options: -> (plain options, secrets). Options left out have their initial
    value. Raises InvalidOptions, or Misconfigured for a driver that there is none of."""
    kind = registry.get(slug)
    unknown = set(options) - set(kind.form.base_fields)
    if unknown:
        known = ", ".join(kind.form.base_fields) or "none"
        raise InvalidOptions(
            {name: [f"There is no such option; there are: {known}."] for name in sorted(unknown)}
        )
    initial = {n: f.initial for n, f in kind.form.base_fields.items() if f.initial is not None}
    form = kind.form(data={**initial, **options})
    if not form.is_valid():
        errors = {name if name != "__all__" else "": list(texts) for name, texts in form.errors.items()}
        raise InvalidOptions(errors)
    cleaned = {n: v for n, v in form.cleaned_data.items() if v is not None and v != ""}
    secrets = {n: str(v) for n, v in cleaned.items() if n in kind.secret_options}
    return {n: v for n, v in cleaned.items() if n not in secrets}, secrets


def add_broker(
    name: str,
    driver: str,
    domain: str,
    options: Mapping[str, Any],
    *,
    weight: float = 1.0,
    adopt: bool = False,
    allowed: Mapping[str, Any] | None = None,
    record: Record | None = None,
) -> Broker:
    """Connect a place: check the options, prepare the place, mark it, poll it: -> the saved row.

    `options` holds plain and secret ones, `allowed` the operator's limits (`brokers.limits.FIELDS`). A place that
    carries the marker of another broker is refused (two brokers on one place would count as two copies); one that
    holds objects without a broker in this database is taken over only with `adopt`. Outside any transaction. Raises
    InvalidOptions, Misconfigured, or what the provider raises; then no row is left."""
    guard.check()
    broker, secrets = _new_row(name, driver, domain, options, weight, allowed)
    opened = connect(broker)
    try:
        opened.prepare()
        found = marker.find(opened)
        _check_claim(broker, opened, found, adopt)
        if found and (there := marker.parse(found[1])) and there != broker.marker:
            broker.marker = there
            credentials.seal_secrets(broker, secrets)
            broker.marker_locator = found[0]
        # The row first: a crash leaves a broker that the polls finish, not a marker that nobody knows.
        _insert(broker, record)
        try:
            if not broker.marker_locator:
                locator = marker.write(opened, broker.marker)
                Broker.objects.filter(pk=broker.pk).update(marker_locator=locator)
        except Exception:
            Broker.objects.filter(pk=broker.pk, health=Health.UNKNOWN).delete()
            raise
    finally:
        opened.retire()
    return _still_ours(health.poll(broker.pk))


def try_place(
    name: str,
    driver: str,
    domain: str,
    options: Mapping[str, Any],
    *,
    weight: float = 1.0,
    adopt: bool = False,
    allowed: Mapping[str, Any] | None = None,
) -> Broker:
    """Whether `add_broker` would take this place, as far as reading tells: -> the row, not saved. Changes nothing,
    neither here nor there, so a folder that `add_broker` would make is not there yet (Unavailable). Raises what
    `add_broker` raises."""
    guard.check()
    broker, _secrets = _new_row(name, driver, domain, options, weight, allowed)
    opened = connect(broker)
    try:
        _check_claim(broker, opened, marker.find(opened), adopt)
    finally:
        opened.retire()
    return broker


def update_broker(
    broker_id: int,
    *,
    name: str | None = None,
    domain: str | None = None,
    weight: float | None = None,
    options: Mapping[str, Any] | None = None,
    allowed: Mapping[str, Any] | None = None,
    record: Record | None = None,
    dry_run: bool = False,
) -> Broker:
    """Change what is given (`dry_run`: only check that it could be): -> the row. Of `options` and `allowed` (the
    operator's limits, None for no limit), those that are left out keep their value, as does a secret given as "". New
    options or secrets must lead to the same place: its marker is read through them before anything changes. Raises
    InvalidOptions, StaleBroker, Misconfigured, or what the provider raises."""
    guard.check()
    broker = Broker.objects.get(pk=broker_id)
    revision = broker.revision
    changed = []
    if name is not None and name.strip() != broker.name:
        broker.name = name.strip()
        changed.append("name")
    if domain is not None and domain.strip() != broker.domain:
        broker.domain = domain.strip()
        changed.append("domain")
    if weight is not None and weight != broker.weight:
        broker.weight = weight
        changed.append("weight")
    changed_limits = _apply_limits(broker, allowed or {})
    changed += changed_limits
    if options is not None and _replace_options(broker, options):
        changed.append("options")
    if not changed:
        return broker
    _check_row(broker)
    if "options" in changed:
        _check_same_place(broker)
    if dry_run:
        return broker
    broker.revision = revision + 1
    with transaction.atomic():
        try:
            with transaction.atomic():
                rows = Broker.objects.filter(pk=broker_id, revision=revision).update(
                    name=broker.name,
                    domain=broker.domain,
                    weight=broker.weight,
                    options=broker.options,
                    sealed_secrets=broker.sealed_secrets,
                    secrets_key_version=broker.secrets_key_version,
                    revision=broker.revision,
                    check_at=clock.now(),
                    **_of_limits(broker, changed_limits),
                )
        except IntegrityError:
            raise _name_taken() from None
        if not rows:
            raise StaleBroker("somebody else changed this broker meanwhile; look at it again")
        _note(broker, "changed", ", ".join(changed), record)
    forget(broker_id)
    # What fits is another question now.
    asks = {"options", "capacity_limit", "reserve"} & set(changed)
    return health.poll(broker_id) if asks else Broker.objects.get(pk=broker_id)


def set_enabled(broker_id: int, enabled: bool, *, record: Record | None = None) -> Broker:
    """Take a broker out of use, or back in: -> the row. A disabled broker is neither read, written nor polled;
    its replicas stay. An enabled one is polled at once. Idempotent; outside any transaction."""
    guard.check()
    changes: dict[str, Any] = {"enabled": enabled, "check_at": None}
    if enabled:
        # What was known of it before is old: nothing is, until the poll.
        changes.update(
            health=Health.UNKNOWN, health_reason="", health_detail="", health_since=clock.now(),
            successes=0, failures=0, blank_since=None,
            degraded_since=None, degraded_reason="", degraded_detail="", turning_since=None,
        )  # fmt: skip
    with transaction.atomic():
        if Broker.objects.filter(pk=broker_id, enabled=not enabled).update(**changes):
            _note(Broker.objects.get(pk=broker_id), "enabled" if enabled else "disabled", "", record)
    return health.poll(broker_id) if enabled else Broker.objects.get(pk=broker_id)


def set_draining(broker_id: int, draining: bool, *, objects: int = 0, size: int = 0) -> bool:
    """Mark a broker as draining, with what there is to move, or end that: -> whether this call did it."""
    changes: dict[str, Any] = {"draining_since": None, "draining_objects": 0, "draining_bytes": 0}
    if draining:
        changes.update(draining_since=clock.now(), draining_objects=objects, draining_bytes=size)
    with transaction.atomic():
        rows = Broker.objects.filter(pk=broker_id, draining_since__isnull=draining).update(**changes)
        if rows:
            BrokerEvent.objects.create(broker_id=broker_id, kind="drain_begun" if draining else "drain_ended")
    return bool(rows)


def write_marker(broker_id: int, *, record: Record | None = None) -> Broker:
    """By hand: declare that the place is this broker's, although its marker is gone or damaged (health
    "marker_missing", "wrong_marker", a root folder that was removed): -> the row, polled. Refuses a place that
    carries another broker's marker. Outside any transaction. Idempotent."""
    guard.check()
    broker = Broker.objects.get(pk=broker_id)
    opened = connect(broker)
    try:
        opened.prepare()
        found = marker.find(opened)
        there = marker.parse(found[1]) if found else None
        if there is not None and there != broker.marker:
            raise Misconfigured(f"the place carries the marker of broker {there}")
        locator = marker.write(opened, broker.marker)
    finally:
        opened.retire()
    with transaction.atomic():
        Broker.objects.filter(pk=broker_id).update(marker_locator=locator, blank_since=None)
        _note(broker, "marker_written", "", record)
    return health.poll(broker_id)


def _apply_limits(broker: Broker, allowed: Mapping[str, Any]) -> list[str]:
    try:
        return limits.apply(broker, allowed)
    except ValueError as error:
        raise InvalidOptions({"": [str(error)]}) from None


def _of_limits(broker: Broker, changed: list[str]) -> dict[str, Any]:
    """The columns of changed limits. What follows from an old one is worked out anew."""
    columns = {name: getattr(broker, name) for name in changed}
    if any(name.startswith("monthly_") for name in changed):
        columns["traffic_over_until"] = None
    if "capacity_limit" in changed:
        columns["held_at"] = None
    return columns


def _still_ours(broker: Broker) -> Broker:
    """Of two that connect one place at the same moment, the second overwrites the marker of the first: that one
    goes."""
    if broker.health_reason == health.WRONG_MARKER:
        Broker.objects.filter(pk=broker.pk, health=Health.OFFLINE).delete()
        raise Misconfigured("this place was connected by somebody else at the same moment")
    return broker


def _note(broker: Broker, kind: str, detail: str, record: Record | None) -> None:
    """Tell of a change, inside its transaction."""
    BrokerEvent.objects.create(broker_id=broker.pk, kind=kind, detail=detail)
    if record is not None:
        record(broker, kind, detail)


def _new_row(
    name: str,
    driver: str,
    domain: str,
    options: Mapping[str, Any],
    weight: float,
    allowed: Mapping[str, Any] | None,
) -> tuple[Broker, dict[str, str]]:
    """A row that is not saved, with its secrets sealed: -> it and the secrets."""
    plain, secrets = check_options(driver, options)
    broker = Broker(
        name=name.strip(), driver=driver, domain=domain.strip(), options=plain, weight=weight,
        check_at=clock.now() + ADDING,
    )  # fmt: skip
    _apply_limits(broker, allowed or {})
    _check_row(broker)
    credentials.seal_secrets(broker, secrets)
    return broker, secrets


def _check_row(broker: Broker) -> None:
    if not math.isfinite(broker.weight):
        raise InvalidOptions({"weight": ["Give a finite number."]})
    try:
        broker.full_clean(exclude=["sealed_secrets", "options"])
    except ValidationError as error:
        raise InvalidOptions(error.message_dict) from None


def _name_taken() -> InvalidOptions:
    return InvalidOptions({"name": ["There is a broker with this name."]})


def _insert(broker: Broker, record: Record | None) -> None:
    try:
        with transaction.atomic():
            broker.save(force_insert=True)
            _note(broker, "added", f"{broker.driver}, {broker.domain}", record)
    except IntegrityError:
        if Broker.objects.filter(marker=broker.marker).exists():
            raise Misconfigured("this place was connected by somebody else at the same moment") from None
        raise _name_taken() from None


def _check_claim(broker: Broker, opened: OpenBroker, found: tuple[str, bytes] | None, adopt: bool) -> None:
    """Refuse a place that is, or may be, somebody else's."""
    there = marker.parse(found[1]) if found else None
    if there is not None:
        owner = Broker.objects.filter(marker=there).first()
        if owner is not None:
            raise Misconfigured(
                f"this place is already the broker {owner.name!r}; a second broker on it would be no second copy"
            )
        if not adopt:
            raise Misconfigured(
                f"this place belongs to a broker {there} that is not in this database (another CloudStore, or one "
                "that was removed); connect it with `adopt` to take it over"
            )
    elif (found or marker.has_objects(opened)) and not adopt:
        raise Misconfigured(
            "this place holds CloudStore objects but no readable marker; connect it with `adopt` to take it over"
        )


def _replace_options(broker: Broker, options: Mapping[str, Any]) -> bool:
    """Put new options and secrets into the (unsaved) row; True when something differs."""
    secret = registry.get(broker.driver).secret_options
    before = {**broker.options, **credentials.open_secrets(broker)}
    given = {n: v for n, v in options.items() if not (n in secret and v in ("", None))}
    plain, secrets = check_options(broker.driver, {**before, **given})
    if {**plain, **secrets} == before:
        return False
    broker.options = plain
    credentials.seal_secrets(broker, secrets)
    return True


def _check_same_place(broker: Broker) -> None:
    opened = connect(broker)
    try:
        found = marker.find(opened)
    finally:
        opened.retire()
    if found is None or found[1] != marker.content(broker.marker):
        raise Misconfigured(
            "these options lead to a place that does not carry this broker's marker; to use another place, add "
            "it as a new broker and drain this one"
        )

"""The operator's part of the API: each endpoint as each of the cast, and what the actions do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from django.contrib.auth.models import Permission

from accounts.models import AuditEvent, User
from brokers import history
from brokers.driver import CloudBroker
from brokers.drivers import memory
from brokers.errors import Unavailable
from brokers.models import Broker
from brokers.open import wrap
from brokers.present import as_dict
from brokers.testing.faulty import FaultyBroker
from console.api.serializers import BrokerSerializer
from replication import collect, reconcile
from replication.models import Replica
from tests.brokers.secretive import CANARY, register
from tests.cast import Api, Browser
from tests.kit.clock import VirtualClock
from tests.replication.kit import Objects, memory_broker
from tests.vfs.conftest import Put

pytestmark = [pytest.mark.django_db, pytest.mark.only_on("sqlite")]
NEW = {"name": "c", "driver": "memory", "domain": "c", "options": {"space": "tests-c"}}


@dataclass(frozen=True)
class Call:
    """A verb of an endpoint, below /api/v1/, on the broker `a` that holds a copy of a file of alice's."""

    method: str
    path: str
    root: int = 200
    body: Any = None


# The route's name -> calls.
MATRIX: dict[str, list[Call]] = {
    "brokers": [
        Call("GET", "brokers"),
        Call("GET", "brokers/"),
        Call("OPTIONS", "brokers"),
        Call("POST", "brokers", 201, NEW),
        Call("POST", "brokers/", 200, {**NEW, "dry_run": True}),
    ],
    "drivers": [Call("GET", "brokers/drivers")],
    "broker": [
        Call("GET", "brokers/{a}"),
        Call("HEAD", "brokers/{a}"),
        Call("GET", "brokers/999999", 404),
        Call("PATCH", "brokers/{a}", 200, {"weight": 2}),
    ],
    "broker-test": [Call("POST", "brokers/{a}/test")],
    "broker-poll": [Call("POST", "brokers/{a}/poll")],
    "broker-enable": [Call("POST", "brokers/{a}/enable")],
    "broker-disable": [Call("POST", "brokers/{a}/disable")],
    "broker-write-marker": [Call("POST", "brokers/{a}/write-marker")],
    "broker-confirm-loss": [Call("POST", "brokers/{a}/confirm-loss")],
    "broker-history": [
        Call("GET", "brokers/{a}/history"),
        Call("GET", "brokers/{a}/history?step=5", 400),
        Call("GET", "brokers/{a}/history?since=yesterday", 400),
    ],
    "broker-drain": [Call("GET", "brokers/{a}/drain"), Call("POST", "brokers/{a}/drain")],
    "broker-undo-drain": [Call("POST", "brokers/{a}/undo-drain")],
    "broker-remove": [
        Call("POST", "brokers/{a}/remove", 409),
        Call("POST", "brokers/{a}/remove", 200, {"dry_run": True}),
        Call("POST", "brokers/{a}/remove", 409, {"force_name": "b"}),
        Call("POST", "brokers/{a}/remove", 200, {"force_name": "a"}),
    ],
    "broker-objects": [Call("GET", "brokers/{a}/objects"), Call("GET", "brokers/{a}/objects?kind=x", 400)],
    "broker-delete-orphans": [
        Call("POST", "brokers/{a}/objects/delete-orphans", 200, {"objects": ["x"]}),
        Call("POST", "brokers/{a}/objects/delete-orphans", 400),
    ],
    "broker-adopt": [Call("POST", "brokers/{a}/adopt", 202)],
    "imports": [
        Call("POST", "imports", 404, {"broker": 999999, "user": "alice"}),
        Call("POST", "imports", 400, {}),
    ],
    "jobs": [Call("GET", "jobs")],
    "job": [Call("GET", "jobs/999999", 404)],
    "job-cancel": [Call("POST", "jobs/999999/cancel", 404)],
    "job-resume": [Call("POST", "jobs/999999/resume", 404)],
    "job-files": [Call("GET", "jobs/999999/files", 404)],
    "rebalance": [Call("GET", "rebalance"), Call("POST", "rebalance"), Call("DELETE", "rebalance")],
}
CALLS = [call for calls in MATRIX.values() for call in calls]
each_call = pytest.mark.parametrize("call", CALLS, ids=[f"{c.method}-{c.path}-{c.root}" for c in CALLS])


@pytest.fixture
def a(alice: User, put: Put, two: list[Broker]) -> Broker:
    put(alice, "letters/one", b"x" * 1000)
    memory.clear("tests-c")
    return two[0]


def send(client: Any, call: Call, a: Broker, **headers: str) -> Any:
    send_it = getattr(client, call.method.lower())
    body = {} if call.method in {"GET", "HEAD", "OPTIONS"} else {"data": call.body, "format": "json"}
    return send_it(f"/api/v1/{call.path.format(a=a.pk)}", headers=headers, **body)


def standing() -> list[Any]:
    """What a refused call must leave as it is."""
    rows = Broker.objects.order_by("pk").values_list(
        "name", "weight", "enabled", "draining_since", "revision"
    )
    return [*rows, AuditEvent.objects.count(), Replica.objects.count()]


@each_call
def test_root(call: Call, a: Broker, root: User, api: Api) -> None:
    response = send(api(root, ["admin"]), call, a)
    assert response.status_code == call.root, response.content
    if call.root >= 400:
        assert response.headers["Content-Type"] == "application/problem+json"


@each_call
def test_others_do_not_find_it(call: Call, a: Broker, alice: User, api: Api) -> None:
    before = standing()
    response = send(api(alice), call, a)
    assert response.status_code == 404
    if call.method != "HEAD":
        assert response.json()["code"] == "not_found"
    assert standing() == before


@each_call
def test_anon(call: Call, a: Broker, api: Api) -> None:
    before = standing()
    response = send(api(None), call, a)
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert standing() == before


@each_call
def test_a_token_needs_the_scope(call: Call, a: Broker, root: User, api: Api) -> None:
    before = AuditEvent.objects.count()
    response = send(api(root, ["files:read", "files:write", "account"]), call, a)
    assert response.status_code == 403
    if call.method != "HEAD":
        assert response.json()["code"] == "scope_missing"
    assert AuditEvent.objects.count() == before


@each_call
def test_staff_needs_the_right(call: Call, a: Broker, bob: User, api: Api) -> None:
    """Staff that may only look."""
    User.objects.filter(pk=bob.pk).update(is_staff=True)
    before = standing()
    assert send(api(bob), call, a).status_code == 403
    assert standing() == before
    bob.user_permissions.set(Permission.objects.filter(codename__in=("view_broker", "view_job")))
    response = send(api(bob), call, a)
    reading = call.method in {"GET", "HEAD", "OPTIONS"}
    assert response.status_code == (call.root if reading else 403)
    assert standing() == before


def test_another_site_changes_nothing(a: Broker, root: User, browser_client: Browser) -> None:
    response = browser_client(root).post(
        f"/api/v1/brokers/{a.pk}/disable", headers={"Sec-Fetch-Site": "cross-site"}
    )
    assert (response.status_code, response.json()["code"]) == (403, "cross_site")
    assert Broker.objects.get(pk=a.pk).enabled


# -- what they do -------------------------------------------------------------------------------------


@contextmanager
def failing(broker: Broker, *operations: str) -> Iterator[None]:
    """Every connection to a broker fails with `Unavailable` in these operations."""

    def wrapper(driver: CloudBroker) -> CloudBroker:
        faulty = FaultyBroker(driver)
        for operation in operations:
            faulty.fail(operation, Unavailable("down"))
        return faulty

    with wrap(broker.pk, wrapper):
        yield


@pytest.fixture
def operator(clock: VirtualClock, root: User, api: Api) -> Any:
    return api(root, ["admin"])


def test_the_description_tells_every_field(a: Broker) -> None:
    assert set(BrokerSerializer().fields) == set(as_dict(a)), "brokers/present.py has other fields"


def test_brokers_in_pages(operator: Any, a: Broker) -> None:
    memory_broker("c")
    names, cursor = [], None
    while True:
        query = {"limit": 2, **({"cursor": cursor} if cursor else {})}
        page = operator.get("/api/v1/brokers", query).json()
        names.append([broker["name"] for broker in page["brokers"]])
        cursor = page["next"]
        if cursor is None:
            break
    assert names == [["a", "b"], ["c"]]
    assert operator.get("/api/v1/brokers", {"cursor": "x"}).json()["code"] == "bad_cursor"


def test_the_drivers_tell_their_forms(operator: Any) -> None:
    drivers = {d["slug"]: d for d in operator.get("/api/v1/brokers/drivers").json()["drivers"]}
    assert "memory" not in drivers
    root = {o["name"]: o for o in drivers["local"]["options"]}["root"]
    assert (root["type"], root["required"], root["secret"]) == ("text", True, False)
    assert root["help"]
    secret = {o["name"]: o for o in drivers["s3"]["options"]}["secret_key"]
    assert (secret["secret"], secret["initial"]) == (True, None)


def test_a_driver_that_cannot_be_used_says_why(operator: Any, settings: Any) -> None:
    settings.CLOUDSTORE_BROKERS = {"odd": "no_such_module.Thing"}
    drivers = {d["slug"]: d for d in operator.get("/api/v1/brokers/drivers").json()["drivers"]}
    assert "no_such_module" in drivers["odd"]["unusable"]
    assert drivers["odd"]["options"] == []


def test_a_broker_is_added_changed_and_its_secret_never_told(
    operator: Any, root: User, settings: Any
) -> None:
    register(settings)
    new = {"name": "S", "driver": "secretive", "domain": "d"}
    tried = operator.post("/api/v1/brokers", {**new, "options": {"space": "s"}})
    assert (tried.status_code, tried.json()["code"]) == (400, "invalid_options")
    assert "secret_key" in tried.json()["errors"]
    options = {"space": "s", "secret_key": CANARY}
    looked = operator.post("/api/v1/brokers", {**new, "options": options, "dry_run": True})
    assert (looked.status_code, looked.json()["id"]) == (200, None)
    assert not Broker.objects.exists()
    added = operator.post("/api/v1/brokers", {**new, "options": options})
    assert (added.status_code, added.json()["health"]) == (201, "online")
    address = f"/api/v1/brokers/{added.json()['id']}"
    changed = operator.patch(address, {"options": {"secret_key": f"{CANARY}-2"}, "weight": 3, "name": "T"})
    assert (changed.json()["weight"], changed.json()["name"]) == (3, "T")
    looked = operator.patch(address, {"weight": 9, "dry_run": True})
    assert Broker.objects.get().weight == 3
    for response in (tried, added, changed, looked, operator.get(address)):
        assert CANARY not in response.content.decode()
    rows = list(AuditEvent.objects.order_by("pk"))
    assert [row.action for row in rows] == ["broker.added", "broker.changed"]
    assert {row.actor for row in rows} == {root}
    assert CANARY not in str([row.detail for row in rows])


def test_limits_are_set_told_and_lifted(operator: Any, a: Broker) -> None:
    address = f"/api/v1/brokers/{a.pk}"
    changed = operator.patch(address, {"limits": {"max_rate": 5000, "reserve": 7, "monthly_counts": "both"}})
    limits = changed.json()["limits"]
    assert (limits["max_rate"], limits["reserve"], limits["monthly_counts"]) == (5000, 7, "both")
    lifted = operator.patch(address, {"limits": {"max_rate": None}}).json()["limits"]
    assert (lifted["max_rate"], lifted["reserve"]) == (None, 7)
    refused = operator.patch(address, {"limits": {"max_rate": 0}})
    assert refused.status_code == 400
    assert "max_rate" in refused.json()["errors"]["limits"]
    new = operator.post("/api/v1/brokers", {**NEW, "limits": {"capacity_limit": 10**9}})
    assert new.json()["limits"]["capacity_limit"] == 10**9
    assert new.json()["room"] is not None


def test_the_history_of_a_broker(operator: Any, clock: VirtualClock, a: Broker) -> None:
    address = f"/api/v1/brokers/{a.pk}"
    for _ in range(3):
        operator.post(f"{address}/test")
    with failing(a, "list"):
        operator.post(f"{address}/test")
    history.flush()
    clock.advance(minutes=1)
    (point,) = operator.get(f"{address}/history").json()["points"]
    assert point["span"] == 3600
    assert point["speeds"]["put"]["calls"] == 5  # the file, and a trial each
    assert point["speeds"]["put"]["p99"] >= point["speeds"]["put"]["p50"] >= 0
    assert point["errors"]["unavailable"] == 1
    assert point["failures"] == 1
    before = {"until": point["start"]}
    assert operator.get(f"{address}/history", before).json() == {"points": []}


def test_the_same_place_twice_is_refused(operator: Any, a: Broker) -> None:
    again = operator.post("/api/v1/brokers", {**NEW, "options": {"space": "tests-a"}})
    assert (again.status_code, again.json()["code"]) == (400, "misconfigured")
    assert "already the broker 'a'" in again.json()["detail"]
    dry = operator.post("/api/v1/brokers", {**NEW, "options": {"space": "tests-a"}, "dry_run": True})
    assert dry.status_code == 400
    assert Broker.objects.count() == 2


def test_what_the_provider_answers_is_no_failure_of_ours(
    operator: Any, a: Broker, expect_log: Callable[..., None]
) -> None:
    expect_log("Service Unavailable: /api/v1/brokers")
    with failing(a, "get", "list"):
        response = operator.post(f"/api/v1/brokers/{a.pk}/write-marker")
    assert (response.status_code, response.json()["code"]) == (503, "broker_unavailable")
    assert response.headers["Retry-After"]


def test_a_trial_tells_each_step_and_leaves_nothing(operator: Any, a: Broker) -> None:
    before = set(Objects(a))
    trial = operator.post(f"/api/v1/brokers/{a.pk}/test").json()
    assert trial["ok"] is True
    assert [step["name"] for step in trial["steps"]] == [
        "connect", "marker", "write", "read", "range", "list", "delete",
    ]  # fmt: skip
    with failing(a, "list"):
        trial = operator.post(f"/api/v1/brokers/{a.pk}/test").json()
    assert trial["ok"] is False
    assert trial["steps"][-1]["detail"] == "unavailable: down"
    assert set(Objects(a)) == before
    assert [row.detail["ok"] for row in AuditEvent.objects.filter(action="broker.tested").order_by("pk")] == [
        True,
        False,
    ]


def test_nothing_is_written_to_a_place_that_is_another(operator: Any, a: Broker) -> None:
    Objects(a).clear()
    trial = operator.post(f"/api/v1/brokers/{a.pk}/test").json()
    assert (trial["ok"], trial["steps"][-1]["name"]) == (False, "marker")
    assert not Objects(a)


def test_a_broker_is_replaced(operator: Any, a: Broker) -> None:
    assert operator.post("/api/v1/brokers", NEW).status_code == 201
    address = f"/api/v1/brokers/{a.pk}"
    refused = operator.post(f"{address}/remove")
    assert (refused.status_code, refused.json()["code"]) == (409, "copies_needed")
    looked = operator.post(f"{address}/remove", {"dry_run": True}).json()
    assert (looked["needed"], looked["files"], looked["removed"]) == (1, ["alice:/letters/one"], False)
    assert operator.post(f"{address}/drain").json()["draining"] is True
    assert operator.post(f"{address}/undo-drain").json()["draining"] is False
    assert operator.post(f"{address}/drain").json()["objects"] == 1
    reconcile.run_to_rest()
    collect.collect()
    assert operator.get(f"{address}/drain").json()["objects"] == 0
    assert operator.post(f"{address}/remove").json()["removed"] is True
    assert operator.get(address).status_code == 404


def test_disable_and_enable_are_audited_once(operator: Any, a: Broker) -> None:
    for _ in range(2):
        assert operator.post(f"/api/v1/brokers/{a.pk}/disable").json()["enabled"] is False
    assert operator.post(f"/api/v1/brokers/{a.pk}/enable").json()["health"] == "online"
    actions = AuditEvent.objects.filter(target="a").order_by("pk").values_list("action", flat=True)
    assert list(actions) == ["broker.disabled", "broker.enabled"]


def test_rebalance(operator: Any, a: Broker) -> None:
    assert operator.get("/api/v1/rebalance").json()["running"] is False
    assert operator.post("/api/v1/rebalance").json()["running"] is True
    assert operator.delete("/api/v1/rebalance").json()["running"] is False


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": "x"}, "driver"),
        ({**NEW, "weight": "heavy"}, "weight"),
        ({**NEW, "name": 7}, "name"),
        ({**NEW, "options": []}, "options"),
    ],
)
def test_bad_input_is_named(operator: Any, body: Any, field: str) -> None:
    response = operator.post("/api/v1/brokers", body)
    assert (response.status_code, response.json()["code"]) == (400, "invalid")
    assert field in response.json()["errors"]
    assert not Broker.objects.exists()

"""How a broker on Dropbox gets its refresh token: the services, the command and the operator's page."""

from __future__ import annotations

import io
import json
import re
import sys
from html import unescape

import pytest
from django.contrib.auth import get_user_model
from django.core.management import CommandError, call_command

from brokers import credentials, dropbox_connect
from brokers.drivers import dropbox_client
from brokers.errors import BrokerError, Misconfigured, RateLimited, Timeout, Unauthorized, Unavailable
from brokers.models import Broker, Health
from brokers.services import InvalidOptions, add_broker
from tests.brokers.dropbox_place import dropbox_fixture, one_dropbox_fixture  # noqa: F401
from tests.servers.fake_dropbox import (
    ACCESS_TOKEN,
    APP_KEY,
    APP_SECRET,
    REFRESH_TOKEN,
    told,
)
from tests.servers.faults import Answer

pytestmark = [
    pytest.mark.only_on("sqlite"),
    pytest.mark.django_db,
    pytest.mark.urls("tests.brokers.admin_urls"),
]
PAGE = "/admin/brokers/broker/dropbox/"
ADD = "/admin/brokers/broker/add/?driver=dropbox"
TOKEN = re.compile(re.escape(REFRESH_TOKEN) + r"-\d+\Z")


@pytest.fixture
def bare(dropbox) -> Broker:
    """A broker with an access token alone."""
    return add_broker("Bare", "dropbox", "dropbox", {"access_token": ACCESS_TOKEN, "folder": "Store"})


# -- the services ----------------------------------------------------------------------------------------------


def test_from_the_key_to_a_broker(dropbox):
    step = dropbox_connect.begin(f" {APP_KEY} ", APP_SECRET)
    assert not dropbox.calls, "nobody is asked before there is a code"
    step = dropbox_connect.exchange(step, f" {dropbox.authorize(step.address)}\n")
    assert TOKEN.match(step.refresh_token)
    broker = dropbox_connect.add(step, "Mine", "dropbox", folder="Store")
    assert broker.health == Health.ONLINE and broker.options == {"app_key": APP_KEY, "folder": "Store"}
    secrets = credentials.open_secrets(broker)
    assert secrets == {"app_secret": APP_SECRET, "refresh_token": step.refresh_token}


def test_a_broker_gets_a_new_token_in_place_of_what_it_had(dropbox, bare):
    dropbox.expire()
    step = dropbox_connect.begin(APP_KEY, APP_SECRET, bare)
    step = dropbox_connect.exchange(step, dropbox.authorize(step.address))
    saved = dropbox_connect.give(step, bare.pk)
    secrets = credentials.open_secrets(saved)
    assert set(secrets) == {"app_secret", "refresh_token"} and saved.health == Health.ONLINE
    again = dropbox_connect.begin("", "", saved)
    again = dropbox_connect.exchange(again, dropbox.authorize(again.address))
    secrets = credentials.open_secrets(dropbox_connect.give(again, bare.pk))
    assert secrets == {"app_secret": APP_SECRET, "refresh_token": again.refresh_token}


def test_the_secret_is_not_needed(dropbox):
    step = dropbox_connect.begin(APP_KEY)
    step = dropbox_connect.exchange(step, dropbox.authorize(step.address))
    broker = dropbox_connect.add(step, "Mine", "dropbox")
    assert set(credentials.open_secrets(broker)) == {"refresh_token"}


def test_a_code_is_good_once_and_only_for_who_began(dropbox):
    step, other = dropbox_connect.begin(APP_KEY), dropbox_connect.begin(APP_KEY)
    assert step.address != other.address
    for wrong in ("nonsense", dropbox.authorize(other.address)):
        with pytest.raises(InvalidOptions, match="good once") as caught:
            dropbox_connect.exchange(step, wrong)
        assert set(caught.value.errors) == {"code"} and wrong not in str(caught.value)
    code = dropbox.authorize(step.address)
    done = dropbox_connect.exchange(step, code)
    with pytest.raises(InvalidOptions):
        dropbox_connect.exchange(step, code)
    dropbox.calls.clear()
    assert dropbox_connect.exchange(done, "") == done and not dropbox.calls


def test_an_app_without_a_permission_is_told_which(dropbox):
    dropbox.granted -= {"files.content.write", "account_info.read"}
    step = dropbox_connect.begin(APP_KEY, APP_SECRET)
    with pytest.raises(Unauthorized, match=r"account_info\.read, files\.content\.write.*Permissions"):
        dropbox_connect.exchange(step, dropbox.authorize(step.address))


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (told({"error": "invalid_client: Invalid client_id"}, 400), Unauthorized),
        (Answer(429, b"", {"Retry-After": "3"}), RateLimited),
        (Answer(500), Unavailable),
        (Answer(special="reset"), Unavailable),
        (Answer(special="garbage"), Unavailable),
        (Answer(200, b"<html>sign in</html>"), Unavailable),
        (told({}), Unavailable),
        (told([]), Unavailable),
        (Answer(302, b"", {"Location": "https://login.example.com/"}), Unavailable),
    ],
)
def test_an_exchange_that_fails(dropbox, answer, kind):
    step = dropbox_connect.begin(APP_KEY, APP_SECRET)
    code = dropbox.authorize(step.address)
    dropbox.rules.append(lambda call: answer)
    with pytest.raises(BrokerError) as caught:
        dropbox_connect.exchange(step, code)
    assert type(caught.value) is kind and code not in str(caught.value)
    assert len(dropbox.calls) == 1
    dropbox.rules.clear()
    assert dropbox_connect.exchange(step, code).refresh_token


def test_an_exchange_without_an_answer(dropbox, monkeypatch):
    monkeypatch.setattr(dropbox_client, "READ_SECONDS", 0.2)
    step = dropbox_connect.begin(APP_KEY, APP_SECRET)
    dropbox.rules.append(lambda call: Answer(special="hang"))
    with pytest.raises(Timeout):
        dropbox_connect.exchange(step, "code")


def test_a_token_that_does_not_last_is_none(dropbox):
    step = dropbox_connect.begin(APP_KEY, APP_SECRET)
    code = dropbox.authorize(step.address.replace("offline", "online"))
    with pytest.raises(Unavailable, match="no refresh token"):
        dropbox_connect.exchange(step, code)


@pytest.mark.parametrize(
    ("key", "secret", "wrong"), [("", "", "app_key"), ("a b", "", "app_key"), ("k", "a\nb", "app_secret")]
)
def test_keys_that_are_none(dropbox, key, secret, wrong):
    with pytest.raises(InvalidOptions) as caught:
        dropbox_connect.begin(key, secret)
    assert set(caught.value.errors) == {wrong}


def test_another_app_needs_its_own_secret(dropbox, bare, memory_broker):
    with pytest.raises(InvalidOptions, match="another secret"):
        dropbox_connect.begin("another", "", bare)
    with pytest.raises(Misconfigured, match="no broker on Dropbox"):
        dropbox_connect.begin(APP_KEY, APP_SECRET, memory_broker)


def test_a_sealed_step_opens_for_its_owner_for_an_hour(dropbox, clock):
    step = dropbox_connect.begin(APP_KEY, APP_SECRET)
    assert APP_SECRET not in repr(step) and step.verifier not in repr(step)
    sealed = dropbox_connect.seal(step, "user 1")
    for secret in (APP_SECRET, step.verifier):
        assert secret not in sealed
    assert dropbox_connect.unseal(sealed, "user 1") == step
    flipped = sealed[:-3] + ("AAA" if sealed[-3:] != "AAA" else "BBB")
    for text, whose in [
        (sealed, "user 2"),
        (flipped, "user 1"),
        ("", "user 1"),
        ("9.x", "user 1"),
        ("1.é", "user 1"),
    ]:
        with pytest.raises(Misconfigured, match="begin again"):
            dropbox_connect.unseal(text, whose)
    clock.advance(seconds=dropbox_connect.GOOD_FOR + 1)
    with pytest.raises(Misconfigured, match="begin again"):
        dropbox_connect.unseal(sealed, "user 1")


def test_a_missing_package_is_said_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "dropbox", None)
    with pytest.raises(Misconfigured, match="Python package dropbox"):
        dropbox_connect.begin(APP_KEY)


# -- the command -----------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    """Answers what is asked, the code from the address that was printed."""

    def __init__(self, dropbox, *answers: str) -> None:
        super().__init__()
        self._dropbox, self._answers = dropbox, list(answers)

    def readline(self, *_size: int) -> str:
        if self._answers:
            return f"{self._answers.pop(0)}\n"
        found = re.search(r"https://\S+", self.getvalue())
        return f"{self._dropbox.authorize(found[0])}\n" if found else ""


def run(monkeypatch, terminal: Terminal, *arguments: str) -> str:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdin", terminal)
    call_command("dropbox_connect", *arguments, stdout=out, stderr=terminal)
    return out.getvalue()


def test_the_command_adds_a_broker(dropbox, monkeypatch):
    terminal = Terminal(dropbox, APP_KEY, APP_SECRET)
    place = ("--add", "Mine", "--domain", "dropbox", "--folder", "Store", "--weight", "0.5")
    shown = run(monkeypatch, terminal, *place, "--json")
    assert json.loads(shown)["health"] == "online"
    broker = Broker.objects.get()
    assert (broker.name, broker.weight, broker.options["folder"]) == ("Mine", 0.5, "Store")
    token = credentials.open_secrets(broker)["refresh_token"]
    assert TOKEN.match(token)
    for secret in (token, APP_SECRET, ACCESS_TOKEN):
        assert secret not in shown + terminal.getvalue()


def test_the_command_gives_a_broker_a_new_token(dropbox, bare, monkeypatch):
    monkeypatch.setenv("CLOUDSTORE_SECRET_APP_SECRET", APP_SECRET)
    shown = run(monkeypatch, Terminal(dropbox), "--broker", "Bare", "--app-key", APP_KEY)
    assert shown.startswith("Bare: dropbox, domain dropbox, up")
    assert TOKEN.match(credentials.open_secrets(Broker.objects.get())["refresh_token"])


def test_the_command_shows_a_token_when_it_is_asked_to(dropbox, monkeypatch):
    shown = run(monkeypatch, Terminal(dropbox, APP_KEY, ""), "--show-token", "--json")
    assert TOKEN.match(json.loads(shown)["refresh_token"]) and not Broker.objects.exists()
    words = run(monkeypatch, Terminal(dropbox, APP_KEY, ""), "--show-token")
    assert "broker_add" in words and REFRESH_TOKEN in words


def test_the_command_says_what_is_wrong(dropbox, monkeypatch, bare):
    for arguments, answers, text in [
        ((), (), "one of the arguments"),
        (("--add", "X"), (), "--domain"),
        (("--broker", "None"), (), "no broker 'None'"),
        (("--show-token",), ("", ""), "app_key"),
        (("--show-token",), (APP_KEY, "", "nonsense"), "good once"),
        (("--add", "Bare", "--domain", "d"), (), "already: use --broker"),
    ]:
        with pytest.raises(CommandError, match=text):
            run(monkeypatch, Terminal(dropbox, *answers), *arguments)
    silent = io.StringIO()
    monkeypatch.setattr(sys, "stdin", silent)
    with pytest.raises(CommandError, match="no answer to: App key"):
        call_command("dropbox_connect", "--show-token", stderr=io.StringIO())
    assert Broker.objects.count() == 1


# -- the page --------------------------------------------------------------------------------------------------


@pytest.fixture
def root(client):
    client.force_login(get_user_model().objects.create_superuser("root", "root@example.com", "pw"))
    return client


def parts(response) -> tuple[str, str]:
    """The address and the sealed step that a page carries."""
    text = response.content.decode()
    address = re.search(r'href="(https://[^"]+)"', text)
    state = re.search(r'name="state" value="([^"]+)"', text)
    return unescape(address[1]) if address else "", state[1] if state else ""


def test_the_page_adds_a_broker(dropbox, root):
    assert PAGE in root.get(ADD).content.decode()
    assert "files.metadata.write" in root.get(PAGE).content.decode()
    response = root.post(PAGE, {"app_key": APP_KEY, "app_secret": APP_SECRET})
    address, state = parts(response)
    assert APP_SECRET not in response.content.decode() and "no-store" in response["Cache-Control"]
    data = {"state": state, "code": dropbox.authorize(address), "name": "Mine", "domain": "d", "folder": "F"}
    response = root.post(PAGE, data)
    broker = Broker.objects.get()
    assert response["Location"] == f"/admin/brokers/broker/{broker.pk}/change/"
    assert (broker.name, broker.domain, broker.health) == ("Mine", "d", Health.ONLINE)
    token = credentials.open_secrets(broker)["refresh_token"]
    page = root.get(response["Location"]).content.decode()
    assert "Mine is connected: online" in page and f"{PAGE}?broker={broker.pk}" in page
    assert token not in page and not {"state", "app_secret"} & {*root.session.keys()}


def test_a_code_that_was_good_is_not_asked_for_again(dropbox, root, bare):
    address, state = parts(root.post(PAGE, {"app_key": APP_KEY}))
    data = {"state": state, "code": dropbox.authorize(address), "name": "Bare", "domain": "d"}
    response = root.post(PAGE, data)
    page = response.content.decode()
    assert "already exists" in page and 'name="code"' not in page
    _none, state = parts(response)
    assert REFRESH_TOKEN not in page
    assert root.post(PAGE, {"state": state, "name": "Other", "domain": "d"}).status_code == 302
    assert Broker.objects.filter(name="Other").exists()


def test_the_page_gives_a_broker_a_new_token(dropbox, root, bare):
    dropbox.expire()
    change = f"/admin/brokers/broker/{bare.pk}/change/"
    assert "offline within hours" in root.get(change).content.decode()
    here = f"{PAGE}?broker={bare.pk}"
    assert "Connect Bare anew" in root.get(here).content.decode()
    address, state = parts(root.post(here, {"app_key": APP_KEY, "app_secret": APP_SECRET}))
    response = root.post(here, {"state": state, "code": "nonsense"})
    assert "good once" in response.content.decode()
    address, state = parts(response)
    dropbox.rules.append(lambda call: None if call.route == "oauth2/token" else Answer(500))
    response = root.post(here, {"state": state, "code": dropbox.authorize(address)})
    assert "status 500" in response.content.decode() and "not needed again" in response.content.decode()
    dropbox.rules.clear()
    assert root.post(here, {"state": parts(response)[1]}).status_code == 302
    assert "offline within hours" not in root.get(change).content.decode()
    assert TOKEN.match(credentials.open_secrets(Broker.objects.get())["refresh_token"])


def test_what_is_wrong_is_shown_beside_what_was_typed(dropbox, root, bare):
    response = root.post(PAGE, {"app_key": "two words", "app_secret": "canary-typed"})
    page = response.content.decode()
    assert "copy it again" in page and "two words" in page and "canary-typed" not in page
    assert "This field is required" in root.post(PAGE, {"app_key": ""}).content.decode()
    _address, state = parts(root.post(PAGE, {"app_key": APP_KEY}))
    page = root.post(PAGE, {"state": state, "code": "x", "name": "", "domain": "d"}).content.decode()
    assert "This field is required" in page and not dropbox.count("oauth2/token")
    page = root.post(PAGE, {"state": "1.changed"}).content.decode()
    assert "begin again" in page and 'name="app_key"' in page


def test_a_wrong_secret_shows_when_it_is_used(dropbox, root, bare):
    here = f"{PAGE}?broker={bare.pk}"
    address, state = parts(root.post(here, {"app_key": APP_KEY, "app_secret": "wrong"}))
    response = root.post(here, {"state": state, "code": dropbox.authorize(address)})
    page = response.content.decode()
    assert "app secret is wrong" in page and f'<a href="{here}">begin again</a>' in page
    assert credentials.open_secrets(Broker.objects.get()) == {"access_token": ACCESS_TOKEN}, "as it was"


def test_a_step_of_somebody_else_is_not_taken(dropbox, root, client):
    address, state = parts(root.post(PAGE, {"app_key": APP_KEY}))
    client.force_login(get_user_model().objects.create_superuser("eve", "eve@example.com", "pw"))
    data = {"state": state, "code": dropbox.authorize(address), "name": "Mine", "domain": "d"}
    assert "begin again" in client.post(PAGE, data).content.decode()
    assert not Broker.objects.exists()


def test_who_may_not_is_refused(dropbox, client, bare, memory_broker, expect_log):
    expect_log("Forbidden")
    assert "/admin/login/" in client.get(PAGE)["Location"]
    bob = get_user_model().objects.create_user("bob", "bob@example.com", "pw", is_staff=True)
    client.force_login(bob)
    for path in (PAGE, f"{PAGE}?broker={bare.pk}"):
        assert client.get(path).status_code == client.post(path, {"app_key": APP_KEY}).status_code == 403
    bob.is_superuser = True
    bob.save()
    for number in (memory_broker.pk, 999, "x"):
        assert client.get(f"{PAGE}?broker={number}").status_code == 404


def test_the_page_has_nothing_that_a_strict_policy_forbids(dropbox, root):
    for response in (root.get(PAGE), root.post(PAGE, {"app_key": APP_KEY})):
        body = response.content.decode().partition('<div id="content"')[2]
        assert body and not re.search(r"<script|\son\w+=|style=", body)

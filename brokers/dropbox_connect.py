"""How a broker on Dropbox gets its refresh token: OAuth 2's code flow without a redirect (RFC 6749, 4.1), with PKCE
(RFC 7636), through Dropbox's SDK.

    step = begin(app_key, app_secret)   # the operator opens step.address, presses Allow, copies the code
    step = exchange(step, code)         # a code is good once
    add(step, ...) or give(step, broker_id)

A `Step` holds secrets. Between two requests of a page it travels sealed with the master key (`seal`), bound to who
began; nothing of it is kept here or in a session, and nothing shows the token.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from django import forms

from brokers import clock, services
from brokers.drivers import dropbox_errors
from brokers.drivers.dropbox_options import clean_word
from brokers.errors import BrokerError, Misconfigured, Timeout, Unauthorized, Unavailable
from brokers.keyring import Keyring, KeyringError, keyring
from brokers.layers import guard
from brokers.models import Broker

DRIVER = "dropbox"
PURPOSE = b"dropbox connect"
# A sealed step is good for so many seconds.
GOOD_FOR = 3600
# What the driver's calls need (dropbox.com/developers/documentation/http names the scope of each).
SCOPES = (
    "account_info.read",
    "files.metadata.read",
    "files.metadata.write",
    "files.content.read",
    "files.content.write",
)


@dataclass(frozen=True)
class Step:
    """What is known so far. `address` is the page of Dropbox's that the operator has to open."""

    app_key: str
    address: str
    app_secret: str = field(repr=False)
    verifier: str = field(repr=False)
    refresh_token: str = field(default="", repr=False)


def begin(app_key: str, app_secret: str = "", broker: Broker | None = None) -> Step:
    """The first step. Asks nobody.

    For an existing broker an empty key or secret is the stored one. Raises InvalidOptions, or Misconfigured when
    the SDK is missing."""
    key = _clean("app_key", app_key) or (str(broker.options.get("app_key") or "") if broker else "")
    secret = _clean("app_secret", app_secret)
    if not key:
        raise services.InvalidOptions({"app_key": ["Give the app key."]})
    if broker is not None:
        _check_broker(broker)
        if key != broker.options.get("app_key") and not secret:
            raise services.InvalidOptions({"app_secret": ["Another app has another secret: give it."]})
    flow = _flow(key)
    return Step(key, str(flow.start()), secret, str(flow.code_verifier))


def exchange(step: Step, code: str) -> Step:
    """The step with the refresh token that the code is worth. One that has it already stays as it is.

    Outside any transaction. Raises InvalidOptions for a code that is not (or no longer) good, Unauthorized when the app
    lacks a permission, or what the provider raises."""
    guard.check()
    if step.refresh_token:
        return step
    code = _clean("code", code)
    if not code:
        raise services.InvalidOptions({"code": ["Give the code that Dropbox shows."]})
    told = _finish(step, code)
    granted = str(told.scope or "").split()
    lacking = [scope for scope in SCOPES if scope not in granted]
    if lacking:
        raise Unauthorized(dropbox_errors.lacks(lacking))
    token = _clean("code", str(told.refresh_token or ""))
    if not token:
        raise Unavailable("Dropbox gave no refresh token")
    return replace(step, refresh_token=token)


def options(step: Step) -> dict[str, str]:
    """The driver's options of a step that has the token."""
    return {"app_key": step.app_key, "app_secret": step.app_secret, "refresh_token": step.refresh_token}


def add(
    step: Step, name: str, domain: str, *, folder: str = "", weight: float = 1.0, adopt: bool = False
) -> Broker:
    """Connect a new broker with the token: see `services.add_broker`."""
    given = {**options(step), "folder": folder}
    return services.add_broker(name, DRIVER, domain, given, weight=weight, adopt=adopt)


def give(step: Step, broker_id: int) -> Broker:
    """Put the token into a broker that there is, in place of the tokens it had: see `services.update_broker`."""
    _check_broker(Broker.objects.get(pk=broker_id))
    return services.update_broker(broker_id, options=options(step))


def seal(step: Step, whose: str) -> str:
    """The step as text that can be sent to a browser and back. Nobody can read it, and only `whose` can use it."""
    content = {**asdict(step), "until": clock.now().timestamp() + GOOD_FOR}
    version, sealed = keyring().seal(PURPOSE, json.dumps(content).encode(), whose.encode())
    return f"{version}.{base64.urlsafe_b64encode(sealed).decode('ascii')}"


def unseal(text: str, whose: str) -> Step:
    """The inverse of `seal`. Raises Misconfigured for what was changed, is somebody else's, or too old."""
    again = Misconfigured("this page is too old, or not yours: begin again")
    version, _dot, sealed = text.partition(".")
    try:
        ring: Keyring = keyring()
        content: dict[str, Any] = json.loads(
            ring.open(PURPOSE, int(version), base64.urlsafe_b64decode(sealed), whose.encode())
        )
    except (KeyringError, ValueError, binascii.Error):
        raise again from None
    if float(content.pop("until")) < clock.now().timestamp():
        raise again
    return Step(**content)


def _check_broker(broker: Broker) -> None:
    if broker.driver != DRIVER:
        raise Misconfigured(f"{broker.name!r} is no broker on Dropbox")


def _clean(name: str, text: str) -> str:
    try:
        return clean_word(text)
    except forms.ValidationError as error:
        raise services.InvalidOptions({name: error.messages}) from None


def _flow(app_key: str) -> Any:
    try:
        from dropbox import DropboxOAuth2FlowNoRedirect

        from brokers.drivers import dropbox_client
    except ImportError:
        raise Misconfigured(dropbox_errors.MISSING) from None
    # No scopes are asked for: Dropbox then gives those of the app, and what is lacking can be said here.
    lasting = "offline"
    flow = DropboxOAuth2FlowNoRedirect(
        app_key, token_access_type=lasting, use_pkce=True, timeout=dropbox_client.timeouts()
    )
    flow.requests_session = dropbox_client.new_session()
    return flow


def _finish(step: Step, code: str) -> Any:
    import requests

    flow = _flow(step.app_key)
    flow.code_verifier = step.verifier
    try:
        return flow.finish(code)
    except requests.HTTPError as error:
        raise _refused(dropbox_errors.named(error.response)) from error
    except requests.Timeout as error:
        raise Timeout("Dropbox does not answer") from error
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise Unavailable(f"no proper answer from Dropbox ({type(error).__name__})") from error
    finally:
        flow.requests_session.close()


def _refused(error: BrokerError) -> BrokerError:
    if isinstance(error, Unauthorized) and str(error) == dropbox_errors.REVOKED:
        text = "Dropbox does not accept this code: it is good once, for a few minutes, for this app. Begin again."
        return services.InvalidOptions({"code": [text]})
    return error

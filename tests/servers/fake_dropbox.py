"""A server that speaks Dropbox's protocol: one account with one app's folder, tokens, quota, pages of listings.

    with FakeDropbox().running() as dropbox:
        dropbox.take_over(monkeypatch)      # the SDK's requests to Dropbox's hosts come here instead

Written from Dropbox's documentation, without the driver's code. It is as strict as Dropbox where a client could go
wrong: hosts, kinds of bodies, permissions of tokens, hashes of contents, codes that are good once.

A rule sees each call and answers None (the next rule is asked, at last the server answers) or an `Answer` in the
server's place; "drop" does the work and closes the connection without the answer.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

from requests.adapters import HTTPAdapter

from brokers import clock
from brokers.drivers import dropbox_client
from tests.servers.faults import Answer, FaultServer

APP_KEY = "canaryappkey123"
APP_SECRET = "canary-app-secret"
REFRESH_TOKEN = "canary-refresh-token"
ACCESS_TOKEN = "sl.canary-access-token"
SECRETS = (APP_SECRET, REFRESH_TOKEN, ACCESS_TOKEN)
SCOPES = (
    "account_info.read",
    "files.content.read",
    "files.content.write",
    "files.metadata.read",
    "files.metadata.write",
)
HOURS = 14400
BLOCK = 4 * 1024 * 1024
# Route -> (host, permission).
ROUTES = {
    "files/upload": ("content", "files.content.write"),
    "files/download": ("content", "files.content.read"),
    "files/get_metadata": ("api", "files.metadata.read"),
    "files/list_folder": ("api", "files.metadata.read"),
    "files/list_folder/continue": ("api", "files.metadata.read"),
    "files/delete_v2": ("api", "files.content.write"),
    "files/create_folder_v2": ("api", "files.content.write"),
    "users/get_space_usage": ("api", "account_info.read"),
}


def content_hash(data: bytes) -> str:
    blocks = [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]
    return hashlib.sha256(b"".join(hashlib.sha256(block).digest() for block in blocks)).hexdigest()


def told(body: object, status: int = 200, **headers: str) -> Answer:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, json.dumps(body).encode(), {"Content-Type": "application/json", **names})


def error(status: int, *tags: str, **headers: str) -> Answer:
    """An error of Dropbox's, its tags from the outermost to the innermost."""
    union: Any = None
    for tag in reversed(tags):
        union = {".tag": tag, **({} if union is None else {tag: union})}
    return told(
        {"error_summary": "/".join(tags) + "/..", "error": union or {".tag": "other"}}, status, **headers
    )


def failed_write(reason: str) -> Answer:
    """How an upload that found no place says so."""
    union = {".tag": "path", "reason": {".tag": reason}, "upload_session_id": "session"}
    return told({"error_summary": f"path/{reason}/..", "error": union}, 409)


def slow_down(reason: str, seconds: int, **headers: str) -> Answer:
    body = {"error_summary": f"{reason}/..", "error": {"reason": {".tag": reason}, "retry_after": seconds}}
    return told(body, 429, **headers)


@dataclass(frozen=True)
class DropboxCall:
    """What came: a route ("files/upload", "oauth2/token"), its argument, and the token; `number` counts those of
    its route."""

    route: str
    number: int
    argument: dict[str, Any] = field(default_factory=dict)
    token: str = ""
    range: str = ""


@dataclass(frozen=True)
class Entry:
    """A file, or a folder where there is no `data`."""

    display: str
    id: str
    data: bytes | None = None
    rev: str = ""
    modified: str = ""


Rule = Callable[[DropboxCall], "Answer | str | None"]


class _Refuse(Exception):
    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer


class FakeDropbox(FaultServer):
    def __init__(self) -> None:
        super().__init__()
        self._mutex = threading.RLock()
        self.reset()

    def reset(self) -> None:
        """An empty account with one app, connected; no rules, nothing recorded."""
        with self._mutex:
            self._numbers = itertools.count(1)
            self.release.clear()
            self._cursors: dict[str, list[str]] = {}
            self.entries: dict[str, Entry] = {}
            self.rules: list[Rule] = []
            self.calls: list[DropboxCall] = []
            self.linked = True
            self.granted = set(SCOPES)
            self.permissions: dict[str, set[str]] = {ACCESS_TOKEN: set(SCOPES)}
            self.expires = {ACCESS_TOKEN: clock.now() + timedelta(seconds=HOURS)}
            self.refresh_tokens = {REFRESH_TOKEN}
            self.codes: dict[str, tuple[str, str]] = {}
            self.total = 2 << 30
            self.elsewhere = 1000  # bytes of other files in the account
            self.team: dict[str, Any] | None = None
            # A listing's pages are no longer than this, whatever was asked for.
            self.most_entries = 2000

    # -- what tests look at and do ------------------------------------------------------------------------

    def take_over(self, monkeypatch: Any) -> None:
        """Send what goes to Dropbox's hosts here, below the SDK and its session."""
        monkeypatch.setattr(dropbox_client, "new_session", session_to(lambda: self.url))

    def options(self, **more: str) -> dict[str, str]:
        return {"app_key": APP_KEY, "app_secret": APP_SECRET, "refresh_token": REFRESH_TOKEN, **more}

    def routes(self) -> list[str]:
        return [call.route for call in self.calls]

    def count(self, route: str) -> int:
        return self.routes().count(route)

    def files(self) -> dict[str, bytes]:
        """Path -> bytes."""
        return {e.display: e.data for e in self.entries.values() if e.data is not None}

    def put(self, path: str, data: bytes) -> None:
        """A file that somebody else has stored or changed."""
        with self._mutex:
            self._store(path, data)

    def about(self, path: str) -> dict[str, Any]:
        """What an upload or a download tells of a file."""
        return self._about(self.entries[path.lower()], tag=False)

    def remove(self, path: str) -> None:
        with self._mutex:
            self._remove(path.lower())

    def expire(self) -> None:
        """Every access token made so far is too old."""
        self.expires = dict.fromkeys(self.expires, clock.now() - timedelta(seconds=1))

    def authorize(self, address: str) -> str:
        """What the person sees who follows the address and presses Allow: a code."""
        parts = urlsplit(address)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        assert (parts.scheme, parts.netloc, parts.path) == ("https", "www.dropbox.com", "/oauth2/authorize")
        assert query["response_type"] == "code" and query["client_id"] == APP_KEY
        assert query["code_challenge_method"] == "S256" and "redirect_uri" not in query
        with self._mutex:
            code = f"canary-code-{next(self._numbers)}"
            self.codes[code] = (query["code_challenge"], query.get("token_access_type", "online"))
        return code

    # -- the protocol -------------------------------------------------------------------------------------

    def reply(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        host, _slash, path = handler.path.removeprefix("/").partition("/")
        with self._mutex:
            try:
                answer = self._answer(host, path, handler.headers, body)
            except _Refuse as refused:
                answer = refused.answer
        self.give(handler, answer)

    def _answer(self, host: str, path: str, headers: Any, body: bytes) -> Answer:
        if path == "oauth2/token":
            route = path
            argument = {name: values[0] for name, values in parse_qs(body.decode()).items()}
            token = ""
        else:
            route = path.removeprefix("2/")
            assert route in ROUTES and host == f"{ROUTES[route][0]}.dropboxapi.com", f"{host}/{path}"
            token = headers.get("Authorization", "").removeprefix("Bearer ")
            argument = json.loads(headers["Dropbox-API-Arg"] if ROUTES[route][0] == "content" else body)
        call = DropboxCall(route, self.count(route) + 1, argument, token, headers.get("Range", ""))
        self.calls.append(call)
        verdict = next((v for v in (rule(call) for rule in list(self.rules)) if v is not None), None)
        if isinstance(verdict, Answer):
            return verdict
        if route == "oauth2/token":
            done = self._token(argument)
        else:
            self._check(call)
            done = self._do(call, headers, body)
        return Answer(special="reset") if verdict == "drop" else done

    def _do(self, call: DropboxCall, headers: Any, body: bytes) -> Answer:
        if call.route == "files/upload":
            assert headers["Content-Type"] == "application/octet-stream"
            return self._upload(call.argument, body)
        if call.route == "files/download":
            assert not body
            return self._download(call)
        assert headers["Content-Type"] == "application/json"
        return getattr(self, "_" + call.route.replace("/", "_"))(call.argument)

    def _check(self, call: DropboxCall) -> None:
        scope = ROUTES[call.route][1]
        if not self.linked or call.token not in self.expires:
            raise _Refuse(error(401, "invalid_access_token"))
        if self.expires[call.token] <= clock.now():
            raise _Refuse(error(401, "expired_access_token"))
        if scope not in self.permissions[call.token]:
            union = {".tag": "missing_scope", "required_scope": scope}
            raise _Refuse(told({"error_summary": "missing_scope/..", "error": union}, 401))

    def _token(self, form: dict[str, str]) -> Answer:
        if form.get("client_id") != APP_KEY or form.get("client_secret", APP_SECRET) != APP_SECRET:
            return told({"error": "invalid_client: Invalid client_id or client_secret"}, 400)
        more: dict[str, Any] = {}
        if form["grant_type"] == "refresh_token":
            if not self.linked or form["refresh_token"] not in self.refresh_tokens:
                text = "refresh token is invalid or revoked"
                return told({"error": "invalid_grant", "error_description": text}, 400)
        else:
            assert form["grant_type"] == "authorization_code"
            challenge, kind = self.codes.pop(form["code"], ("", ""))
            digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
            if challenge != base64.urlsafe_b64encode(digest).decode().rstrip("="):
                text = "code doesn't exist or has expired"
                return told({"error": "invalid_grant", "error_description": text}, 400)
            more = {"uid": "12345", "account_id": "dbid:AAH4f99T0taONIb-OurWxbNQ6ywGRopQngc"}
            if kind == "offline":
                more["refresh_token"] = f"{REFRESH_TOKEN}-{next(self._numbers)}"
                self.refresh_tokens.add(more["refresh_token"])
        token = f"{ACCESS_TOKEN}-{next(self._numbers)}"
        self.expires[token] = clock.now() + timedelta(seconds=HOURS)
        self.permissions[token] = set(self.granted)
        scope = " ".join(sorted(self.granted))
        return told(
            {"access_token": token, "token_type": "bearer", "expires_in": HOURS, "scope": scope, **more}
        )

    # -- files --------------------------------------------------------------------------------------------

    def _store(self, path: str, data: bytes) -> Entry:
        parts = path.split("/")
        for number in range(2, len(parts)):
            self._folder("/".join(parts[:number]))
        old = self.entries.get(path.lower())
        number = next(self._numbers)
        made = Entry(
            old.display if old else path,
            old.id if old else f"id:file{number}",
            bytes(data),
            f"{number:012x}",
            clock.now().strftime("%Y-%m-%dT%H:%M:%SZ"),
        )
        self.entries[path.lower()] = made
        return made

    def _folder(self, path: str) -> Entry:
        return self.entries.setdefault(path.lower(), Entry(path, f"id:folder{next(self._numbers)}"))

    def _remove(self, path: str) -> None:
        for key in [k for k in self.entries if k == path or k.startswith(f"{path}/")]:
            del self.entries[key]

    def _find(self, path: str, *outer: str) -> Entry:
        found = self.entries.get(path.lower())
        if found is None:
            raise _Refuse(error(409, *outer, "not_found"))
        return found

    def _about(self, entry: Entry, tag: bool = True) -> dict[str, Any]:
        common = {
            "name": entry.display.rpartition("/")[2],
            "path_lower": entry.display.lower(),
            "path_display": entry.display,
            "id": entry.id,
        }
        if entry.data is None:
            return {".tag": "folder", **common}
        return {
            **({".tag": "file"} if tag else {}),
            **common,
            "client_modified": entry.modified,
            "server_modified": entry.modified,
            "rev": entry.rev,
            "size": len(entry.data),
            "is_downloadable": True,
            "content_hash": content_hash(entry.data),
        }

    @property
    def used(self) -> int:
        return self.elsewhere + sum(len(e.data) for e in self.entries.values() if e.data is not None)

    def _upload(self, argument: dict[str, Any], body: bytes) -> Answer:
        path, mode = argument["path"], argument["mode"]
        mode = mode if isinstance(mode, str) else mode[".tag"]
        assert path.startswith("/") and argument["autorename"] is False and argument["mute"] is True
        if argument.get("content_hash") not in (None, content_hash(body)):
            return error(409, "content_hash_mismatch")
        there = self.entries.get(path.lower())
        if there is not None and (there.data is None or (mode == "add" and there.data != body)):
            what = {".tag": "conflict", "conflict": {".tag": "folder" if there.data is None else "file"}}
            union = {".tag": "path", "reason": what, "upload_session_id": "session"}
            return told({"error_summary": "path/conflict/..", "error": union}, 409)
        if there is not None and there.data == body:
            return told(self._about(there, tag=False))  # nothing gets written
        if self.used + len(body) - len(there.data or b"" if there else b"") > self.total:
            return failed_write("insufficient_space")
        return told(self._about(self._store(path, body), tag=False))

    def _download(self, call: DropboxCall) -> Answer:
        entry = self._find(call.argument["path"], "path")
        if entry.data is None:
            return error(409, "path", "not_file")
        headers = {
            "Content-Type": "application/octet-stream",
            "Dropbox-API-Result": json.dumps(self._about(entry, tag=False)),
        }
        if not call.range:
            return Answer(200, entry.data, headers)
        first, _dash, last = call.range.removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last or len(entry.data)), len(entry.data) - 1)
        if start > end:
            return Answer(416, b"", {"Content-Range": f"bytes */{len(entry.data)}"})
        headers["Content-Range"] = f"bytes {start}-{end}/{len(entry.data)}"
        return Answer(206, entry.data[start : end + 1], headers)

    def _files_get_metadata(self, argument: dict[str, Any]) -> Answer:
        if not argument["path"].strip("/"):
            return Answer(400, b"The root folder is unsupported.", {"Content-Type": "text/plain"})
        return told(self._about(self._find(argument["path"], "path")))

    def _files_delete_v2(self, argument: dict[str, Any]) -> Answer:
        entry = self._find(argument["path"], "path_lookup")
        if argument.get("parent_rev") not in (None, entry.rev):
            return error(409, "path_write", "conflict", "file")
        self._remove(argument["path"].lower())
        return told({"metadata": self._about(entry)})

    def _files_create_folder_v2(self, argument: dict[str, Any]) -> Answer:
        path = argument["path"]
        if found := self.entries.get(path.lower()):
            return error(409, "path", "conflict", "folder" if found.data is None else "file")
        for number in range(2, len(path.split("/")) + 1):
            self._folder("/".join(path.split("/")[:number]))
        about = self._about(self.entries[path.lower()])
        del about[".tag"]
        return told({"metadata": about})

    def _files_list_folder(self, argument: dict[str, Any]) -> Answer:
        path = argument["path"].lower()
        assert not path.endswith("/"), "Dropbox takes no slash at the end"
        if path and self._find(path, "path").data is not None:
            return error(409, "path", "not_folder")
        found = sorted(key for key in self.entries if key == path or key.startswith(f"{path}/"))
        if not argument.get("recursive"):
            found = [key for key in found if key != path and "/" not in key[len(path) + 1 :]]
        assert 1 <= argument.get("limit", 2000) <= 2000
        return self._page(found, min(argument.get("limit", 2000), self.most_entries))

    def _files_list_folder_continue(self, argument: dict[str, Any]) -> Answer:
        if argument["cursor"] not in self._cursors:
            return error(409, "reset")
        found = self._cursors[argument["cursor"]]
        return self._page(found, int(argument["cursor"].partition("-")[0]))

    def _page(self, found: list[str], size: int) -> Answer:
        cursor = f"{size}-{next(self._numbers)}"
        self._cursors[cursor] = found[size:]
        entries = [self._about(self.entries[key]) for key in found[:size] if key in self.entries]
        gone = [
            {".tag": "deleted", "name": key.rpartition("/")[2], "path_lower": key, "path_display": key}
            for key in found[:size]
            if key not in self.entries
        ]
        return told({"entries": entries + gone, "cursor": cursor, "has_more": len(found) > size})

    def forget_cursors(self) -> None:
        self._cursors.clear()

    def _users_get_space_usage(self, argument: None) -> Answer:
        assert argument is None
        allocation = {".tag": "individual", "allocated": self.total}
        if self.team is not None:
            allocation = {".tag": "team", **self.team}
        return told({"used": self.used, "allocation": allocation})

    def tokens_used(self) -> Counter[str]:
        return Counter(call.token for call in self.calls if call.token)


def session_to(url: Callable[[], str]) -> Callable[[], Any]:
    """What makes the SDK's sessions, each sent to a server on this machine."""
    new_session = dropbox_client.new_session

    def session() -> Any:
        made = new_session()
        made.mount("https://", _ToHere(url()))
        return made

    return session


class _ToHere(HTTPAdapter):
    """Sends requests for any host to a server on this machine, the host as the first part of the path."""

    def __init__(self, url: str) -> None:
        super().__init__(pool_maxsize=32, max_retries=0)
        self._url = url

    def send(self, request: Any, *arguments: Any, **more: Any) -> Any:
        parts = urlsplit(request.url)
        assert parts.scheme == "https"
        request.url = f"{self._url}/{parts.netloc}{parts.path}"
        return super().send(request, *arguments, **more)

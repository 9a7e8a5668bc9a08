"""A MEGA account over mega.py: its session, its commands, its files.

`Mega` logs in and knows the commands and the ciphers. What it does not do well is done here: deadlines, bounded
repetition of "ask again" (-3), the proof of work of HTTP 402, renewal of an ended session, one session for all
threads, every answer that is an error, files in memory, ranges, hard sizes, keys from the system's generator.

One `Account` for each address and password in a process: a login takes seconds, and MEGA counts them. A forked
child logs in for itself.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import secrets
import struct
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from brokers import clock, entropy
from brokers.driver import MAX_OBJECT_SIZE
from brokers.drivers.mega_cipher import FileKey, attributes, name_in, prove
from brokers.drivers.mega_errors import EAGAIN, ESID, LOGIN, named
from brokers.drivers.mega_http import Wire, check_status, seconds_left
from brokers.drivers.mega_library import Mega, crypto
from brokers.errors import (
    BrokerError,
    Corrupt,
    Misconfigured,
    NotFound,
    RangeError,
    RateLimited,
    Timeout,
    Unauthorized,
    Unavailable,
)

LOGIN_SECONDS = 60.0
# After a refused login the next ones are refused here: MEGA locks accounts that are tried too often.
REFUSED_SECONDS = 60.0
FIRST_WAIT = 0.25
LONGEST_WAIT = 8.0
CHALLENGES = 3
# The tree of an account with a million files has a few hundred megabytes.
LONGEST_ANSWER = 512 * 1024 * 1024
SID_BYTES = 43
RAW_TOKEN = 36
FILE, FOLDER, ROOT = 0, 1, 2
_TOKEN = re.compile(rb"[A-Za-z0-9_-]{20,80}\Z")
_ERROR_TEXT = re.compile(rb"-[0-9]{1,4}\Z")


@dataclass(frozen=True, slots=True)
class Node:
    """A file: its handle, name, size, time (seconds since 1970) and its node key as MEGA stores it."""

    handle: str
    name: str
    size: int
    stamp: int
    key: str


@contextmanager
def _sensible() -> Iterator[None]:
    """Whatever goes wrong while an answer is taken apart: it was none of MEGA's."""
    try:
        yield
    except BrokerError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, struct.error) as error:
        raise Unavailable(f"not an answer of MEGA's ({type(error).__name__})") from None


class Account(Mega):
    """A session that logs in when it is first needed. Safe to use from many threads; each call is made inside
    `within(seconds)`. Raises BrokerError only."""

    # Tests put a server of their own here.
    endpoint: ClassVar[str] = "https://g.api.mega.co.nz/cs"

    def __init__(self, email: str, password: str) -> None:
        super().__init__()
        self._email = email
        self._password = password
        self._wire = Wire()
        self._login_lock = threading.Lock()
        self._refused: tuple[float, BrokerError] | None = None
        # MEGA gives its earlier answer to a number that it has seen: a request that is sent again keeps its own.
        self._numbers = itertools.count(secrets.randbelow(1 << 32))
        self.request_id = secrets.token_hex(5)

    def __repr__(self) -> str:
        return "<Account>"

    def within(self, seconds: float) -> AbstractContextManager[None]:
        """What this thread asks inside ends in so many seconds."""
        return self._wire.within(seconds)

    # -- the session --------------------------------------------------------------------------------------

    def _session(self, ended: str | None = None) -> str:
        """The session's id, after a login if there is none, or only the `ended` one."""
        sid = self.sid
        if sid and sid != ended:
            return str(sid)
        if not self._login_lock.acquire(timeout=self._wire.left()):
            raise Timeout("the login at MEGA takes too long")
        try:
            if not self.sid or self.sid == ended:
                self._log_in()
            return str(self.sid)
        finally:
            self._login_lock.release()

    def _log_in(self) -> None:
        if self._refused:
            until, error = self._refused
            left = until - clock.monotonic()
            if left > 0:
                raise (
                    RateLimited(str(error), left)
                    if isinstance(error, RateLimited)
                    else type(error)(str(error))
                )
        self.sid, self._refused = None, None
        try:
            # Its own time: the caller may give up meanwhile, and the next one finds the session ready.
            with self.within(LOGIN_SECONDS), _sensible():
                self._login_user(self._email, self._password)
            if not self.sid:
                raise Unauthorized("MEGA's answer to the login does not fit the password")
        except (Unauthorized, Misconfigured, RateLimited) as error:
            pause = error.retry_after if isinstance(error, RateLimited) else None
            self._refused = (clock.monotonic() + max(REFUSED_SECONDS, pause or 0.0), error)
            raise

    def _login_user(self, email: str, password: str) -> None:
        try:
            super()._login_user(email, password)
        except UnicodeEncodeError:  # the library's hash of accounts from before 2018 knows Latin-1 only
            raise Misconfigured("change the account's password once on MEGA's website") from None

    def _login_process(self, resp: dict[str, Any], password: tuple[int, ...]) -> None:
        """As the library, but right for session ids that begin with zeros, and without checking a key that the
        password itself has opened."""
        master_key = crypto.decrypt_key(crypto.base64_to_a32(resp["k"]), password)
        if "csid" not in resp:
            super()._login_process(resp, password)
            return
        private = crypto.a32_to_str(crypto.decrypt_key(crypto.base64_to_a32(resp["privk"]), master_key))
        p, rest = _number(private)
        q, rest = _number(rest)
        d, _rest = _number(rest)
        if p < 3 or q < 3:
            raise Unauthorized("MEGA's answer to the login does not fit the password")
        plain = pow(crypto.mpi_to_int(crypto.base64_url_decode(resp["csid"])), d, p * q)
        width = _bytes(p) + _bytes(q) - 2
        sid = plain.to_bytes(max(width, _bytes(plain)), "big")[:SID_BYTES]
        self.master_key = master_key
        self.sid = crypto.base64_url_encode(sid)

    # -- commands -----------------------------------------------------------------------------------------

    def _api_request(self, data: dict[str, Any] | list[dict[str, Any]]) -> Any:
        """The answer to a command, or to the first of several. The hook of the library's own methods.

        Asks again while MEGA says -3 and there is time, and once with a new session when the old one has ended."""
        commands = data if isinstance(data, list) else [data]
        command = str(commands[0].get("a"))
        body = json.dumps(commands).encode("ascii")
        ended: str | None = None
        wait = FIRST_WAIT
        number = next(self._numbers)
        while True:
            sid = None if command in LOGIN else self._session(ended)
            answer = self._post(number, sid, body)
            code = _code(answer)
            if code == EAGAIN:
                pause = wait * (0.5 + 0.5 * entropy.uniform())
                if pause >= self._wire.left():
                    raise named(code, command)
                clock.sleep(pause)
                wait = min(2 * wait, LONGEST_WAIT)
            elif code == ESID and sid and ended is None:
                ended, number = sid, next(self._numbers)
            elif code is not None and code < 0:
                raise named(code, command)
            elif code == 0:
                return 0
            elif isinstance(answer, list) and len(answer) == len(commands):
                return answer[0]
            else:
                raise Unavailable("MEGA answered something else than was asked")

    def _post(self, number: int, sid: str | None, body: bytes) -> Any:
        """One request with its proof of work, where MEGA asks for one: -> the parsed answer."""
        parameters: dict[str, Any] = {"id": number}
        if sid:
            parameters["sid"] = sid
        headers = {"Content-Type": "application/json"}
        for _ in range(CHALLENGES + 1):
            reply = self._wire.send(
                "POST",
                self.endpoint,
                params=parameters,
                data=body,
                headers=headers,
                most=LONGEST_ANSWER,
            )
            challenge = reply.headers.get("X-Hashcash")
            if reply.status != 402 or not challenge:
                break
            try:
                headers["X-Hashcash"] = prove(challenge, self._wire.left)
            except ValueError:
                raise Unavailable("MEGA asks for an unknown kind of proof of work") from None
        check_status(reply, "MEGA", api=True)
        try:
            return json.loads(reply.body)
        except ValueError:
            raise Unavailable("not an answer of MEGA's") from None

    def ask(self, **command: Any) -> dict[str, Any]:
        """The answer to one command, which is a mapping. Raises what MEGA's error number means."""
        found = self._api_request(command)
        if not isinstance(found, dict):
            raise Unavailable("not an answer of MEGA's")
        return found

    # -- the account --------------------------------------------------------------------------------------

    def tree(self) -> list[dict[str, Any]]:
        """All nodes of the account as MEGA tells them now."""
        found = self.ask(a="f", c=1, r=1).get("f")
        if not isinstance(found, list) or not all(isinstance(node, dict) for node in found):
            raise Unavailable("not a listing of MEGA's")
        if not any(node.get("t") == ROOT for node in found):
            raise Unavailable("a listing of MEGA's without its root")
        return found

    def room(self) -> tuple[int, int]:
        """Bytes: (total, used)."""
        with _sensible():
            found = self.get_storage_space()
            return int(found["total"]), int(found["used"])

    # -- folders and files --------------------------------------------------------------------------------

    def folder_name(self, node: dict[str, Any]) -> str | None:
        """The name of a folder of this account; None for what it cannot open."""
        try:
            words = crypto.base64_to_a32(_own_key(node))
            if len(words) != 4:
                return None
            return name_in(node["a"], crypto.decrypt_key(words, self.master_key))
        except (KeyError, TypeError, ValueError, AttributeError):
            return None

    def file(self, node: dict[str, Any]) -> Node | None:
        """A file of this account out of the tree; None for what it cannot open."""
        try:
            sealed = _own_key(node)
            name = name_in(node["a"], FileKey.opened(sealed, self.master_key).words)
            if name is None:
                return None
            return Node(str(node["h"]), name, int(node["s"]), int(node.get("ts") or 0), sealed)
        except (KeyError, TypeError, ValueError, AttributeError):
            return None

    def make_folder(self, name: str, parent: str) -> str:
        """A new folder: -> its handle. MEGA permits several of one name."""
        self._session()
        key = crypto.str_to_a32(entropy.token_bytes(16))
        sealed = crypto.a32_to_base64(crypto.encrypt_key(key, self.master_key))
        made = {"h": "xxxxxxxx", "t": FOLDER, "a": attributes(name, key), "k": sealed}
        return str(self._put_node(parent, made)["h"])

    def upload(self, data: bytes, name: str, parent: str) -> Node:
        """Store bytes as a new file, in one request (a file may be sent in any pieces that end on a chunk's end).
        Returns when the file stands in the folder; before that nothing of it can be seen."""
        self._session()
        bare = FileKey.fresh()
        key = FileKey(bare.aes, bare.nonce, bare.mac_of(data))
        address = self.ask(a="u", s=len(data), ssl=2).get("p")
        reply = self._wire.send("POST", f"{address}/0", data=key.crypt(data), most=1024)
        check_status(reply, "MEGA's storage", api=False)
        token = _token(reply.body)
        sealed = key.sealed(self.master_key)
        made = {
            "h": token,
            "t": FILE,
            "a": attributes(name, key.words),
            "k": sealed,
        }
        node = self._put_node(parent, made)
        with _sensible():
            stored = Node(
                str(node["h"]), name, int(node.get("s", len(data))), int(node.get("ts") or 0), sealed
            )
        if stored.size != len(data):
            self.remove(stored.handle)
            raise Corrupt(f"MEGA stored {stored.size} bytes where {len(data)} were sent")
        return stored

    def _put_node(self, parent: str, made: dict[str, Any]) -> dict[str, Any]:
        answer = self.ask(a="p", t=parent, n=[made], i=self.request_id)
        with _sensible():
            node = answer["f"][0]
            if not isinstance(node, dict) or not isinstance(node["h"], str):
                raise ValueError("no node")
            return node

    def holds(self, node: Node, data: bytes) -> bool:
        """Whether a file has these bytes: its size and MAC tell, nothing is moved."""
        if node.size != len(data):
            return False
        key = FileKey.opened(node.key, self.master_key)
        return key.mac_of(data) == key.mac

    def size_of(self, handle: str) -> int:
        """The size of a file. Raises NotFound when there is no such node."""
        return self._about(handle)[0]

    def download(self, handle: str, sealed_key: str, start: int, length: int | None) -> bytes:
        """The bytes of a file from `start`. A whole file is checked against its MAC; for a part there is none.
        Raises NotFound, RangeError, Corrupt."""
        size, address = self._about(handle, g=1)
        if length is None and size - start > MAX_OBJECT_SIZE:
            raise Corrupt(f"the file has {size} bytes, more than an object may have")
        if start and start >= size:
            raise RangeError(f"the object has {size} bytes")
        count = size - start if length is None else min(length, size - start)
        if count <= 0:
            return b""
        try:
            key = FileKey.opened(sealed_key, self.master_key)
        except ValueError:
            raise Corrupt("the locator's key is none") from None
        reply = self._wire.send(
            "GET",
            f"{address}/{start}-{start + count - 1}",
            headers={"Accept-Encoding": "identity"},
            most=max(count, 4096),
        )
        check_status(reply, "MEGA's storage", api=False)
        if len(reply.body) != count:
            if _ERROR_TEXT.match(reply.body.strip()):
                raise named(int(reply.body), "download", seconds_left(reply.headers))
            raise Unavailable(f"{len(reply.body)} bytes came where {count} were asked for")
        plain = key.crypt(reply.body, start)
        if count == size and key.mac_of(plain) != key.mac:
            raise Corrupt("the file does not fit its MAC")
        return plain

    def _about(self, handle: str, **more: Any) -> tuple[int, str]:
        """(size, address of the bytes) of a file."""
        answer = self.ask(a="g", n=handle, ssl=2, **more)
        code, left = answer.get("e"), answer.get("tl")
        if isinstance(code, int) and code < 0:
            raise named(code, "g", float(left) if isinstance(left, int) else None)
        size, address = answer.get("s"), answer.get("g", "")
        if not isinstance(size, int) or size < 0 or not isinstance(address, str) or (more and not address):
            raise Unavailable("MEGA does not give the file at this time")
        return size, address

    def remove(self, handle: str) -> None:
        """Delete a node for good, not into the rubbish bin. Deleting what is not there is success."""
        try:
            answer = self.destroy(handle)
        except NotFound:
            return
        if answer != 0 and not isinstance(answer, dict):
            raise Unavailable("not an answer of MEGA's")

    def close(self) -> None:
        self._wire.close()


def _own_key(node: dict[str, Any]) -> str:
    """The owner's of the keys `<user or share>:<key>/...` of a node."""
    keys = dict(part.split(":", 1) for part in node["k"].split("/") if ":" in part)
    found: str = keys[node["u"]]
    return found


def _token(body: bytes) -> str:
    """What stands for the uploaded bytes in the command that makes a file of them: told as text, or (told by a
    last byte of 1) as 36 bytes. Raises what an error number instead of it means."""
    if len(body) == RAW_TOKEN and body[-1] == 1:
        return str(crypto.base64_url_encode(body))
    text = body.strip()
    if _ERROR_TEXT.match(text):
        raise named(int(text), "upload")
    if not _TOKEN.match(text):
        raise Unavailable("MEGA's storage did not take the upload")
    return text.decode("ascii")


def _code(answer: Any) -> int | None:
    """The error number (or 0) in an answer: alone, in a list, or as `{"err": -9}`."""
    first = answer[0] if isinstance(answer, list) and answer else answer
    if isinstance(first, dict) and set(first) <= {"err", "value", "time"}:
        first = first.get("err")
    return first if isinstance(first, int) and not isinstance(first, bool) else None


def _number(data: bytes) -> tuple[int, bytes]:
    """The first multi-precision integer (two bytes of length in bits, then its bytes), and the rest."""
    end = 2 + (int.from_bytes(data[:2], "big") + 7) // 8
    return int.from_bytes(data[2:end], "big"), data[end:]


def _bytes(number: int) -> int:
    return (number.bit_length() + 7) // 8


_lock = threading.Lock()
_accounts: dict[tuple[str, str, bytes], Account] = {}
_inherited: list[Any] = []  # a parent's: kept from being collected, which would close its connections


def _after_fork() -> None:
    global _lock, _accounts
    _lock = threading.Lock()
    _inherited.append(_accounts)
    _accounts = {}


os.register_at_fork(after_in_child=_after_fork)


def account(email: str, password: str) -> Account:
    """This process's account for an address and a password; asks nothing yet."""
    key = (
        Account.endpoint,
        email.lower(),
        hashlib.sha256(password.encode("utf-8", "surrogatepass")).digest(),
    )
    with _lock:
        found = _accounts.get(key)
        if found is None:
            found = _accounts[key] = Account(email, password)
        return found


def forget() -> None:
    """Drop every session of this process; the next use logs in again."""
    with _lock:
        dropped = list(_accounts.values())
        _accounts.clear()
    for one in dropped:
        one.close()

"""A server that speaks MEGA's protocol: sessions, the node tree, encrypted bytes, quota, proof of work.

    with FakeMega().running() as mega:
        monkeypatch.setattr(Account, "endpoint", mega.endpoint)

It knows its one user's password and checks what MEGA's own programs would stumble over: that attributes and keys
open, that a file's MAC fits its bytes, that pieces lie on chunk boundaries. A request that is sent again with its
number gets the earlier answer. Written from the protocol, without the driver's code.

A rule sees each call and answers None (the next rule is asked, at last the server answers), an error number, or an
`Answer` in the server's place; "drop" does the work and closes the connection without the answer.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler
from itertools import pairwise
from typing import Any
from urllib.parse import parse_qs, urlsplit

from Crypto.Cipher import AES
from Crypto.PublicKey import RSA

from tests.servers.faults import Answer, FaultServer

EMAIL = "drive@example.com"
PASSWORD = "canary-mega-password"
ROOT, INBOX, BIN, USER = "ROOThndl", "INBXhndl", "RUBBhndl", "USERhandle1"
GIBIBYTE = 1 << 30
SALT = hashlib.sha256(b"salt").digest()


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def ecb(key: bytes) -> Any:
    return AES.new(key, AES.MODE_ECB)


def cbc(key: bytes, iv: bytes = bytes(16)) -> Any:
    return AES.new(key, AES.MODE_CBC, iv=iv)


def mpi(number: int) -> bytes:
    return struct.pack(">H", number.bit_length()) + number.to_bytes((number.bit_length() + 7) // 8, "big")


def boundaries(size: int) -> set[int]:
    """Where a piece may begin or end: after 128 KiB, 384 KiB, ... in steps that grow to 1 MiB."""
    found, at, step = {0, size}, 0, 128 * 1024
    while at + step < size:
        at += step
        found.add(at)
        step = min(step + 128 * 1024, 1024 * 1024)
    return found


def file_mac(aes: bytes, nonce: bytes, plain: bytes) -> bytes:
    mac, edges = bytes(16), sorted(boundaries(len(plain)))
    for start, end in pairwise(edges):
        chunk = plain[start:end] + bytes(-(end - start) % 16)
        last = cbc(aes, nonce * 2).encrypt(chunk)[-16:]
        mac = ecb(aes).encrypt(bytes(a ^ b for a, b in zip(mac, last, strict=True)))
    a, b, c, d = struct.unpack(">4I", mac)
    return struct.pack(">2I", a ^ b, c ^ d)


@cache
def rsa_key() -> RSA.RsaKey:
    return RSA.generate(1024)


@dataclass(frozen=True)
class MegaCall:
    """What came: an API command ("us0", "p", ...), "upload" or "download"; `number` counts those of its kind."""

    command: str
    number: int
    body: dict[str, Any] = field(default_factory=dict)
    sid: str = ""


Rule = Callable[[MegaCall], "Answer | int | str | None"]


class FakeMega(FaultServer):
    def __init__(self, *, version: int = 2, total: int = 20 * GIBIBYTE) -> None:
        super().__init__()
        self.endpoint = f"{self.url}/cs"
        self._mutex = threading.RLock()
        self.master = hashlib.sha256(b"master").digest()[:16]
        self.sessions: set[str] = set()
        self._made = 0
        self.reset(version=version, total=total)

    def reset(self, *, version: int = 2, total: int = 20 * GIBIBYTE) -> None:
        """An empty account, no rules, nothing recorded; sessions go on."""
        with self._mutex:
            self.version = version
            self.total = total
            self.mfa = False
            # Proof of work for the next so many API requests, and how easy it is.
            self.challenges = 0
            self.easiness = 255
            self.proofs: list[str] = []
            self.leading_zero = False
            # Tokens of uploads as bytes, which newer servers give.
            self.raw_tokens = False
            self.rules: list[Rule] = []
            self.calls: list[MegaCall] = []
            self.ids: list[str] = []
            self.replayed = 0
            self.release.clear()
            self.nodes: dict[str, dict[str, Any]] = {}
            self._bytes: dict[str, bytes] = {}
            self._uploads: dict[str, tuple[int, dict[int, bytes]]] = {}
            self._tokens: dict[str, bytes] = {}
            self._answered: dict[tuple[str, str], Any] = {}
            for kind, handle in ((2, ROOT), (3, INBOX), (4, BIN)):
                self.nodes[handle] = {"h": handle, "t": kind, "p": "", "u": USER, "a": "", "k": "", "ts": 1}

    # -- what tests look at --------------------------------------------------------------------------------

    def count(self, command: str) -> int:
        return sum(call.command == command for call in self.calls)

    @property
    def used(self) -> int:
        return sum(len(data) for data in self._bytes.values())

    def name_of(self, handle: str) -> str:
        return str(self._attributes(self.nodes[handle])["n"])

    def children(self, parent: str) -> dict[str, str]:
        """Handle -> name."""
        return {h: self.name_of(h) for h, node in self.nodes.items() if node["p"] == parent}

    def folder(self, name: str, parent: str = ROOT) -> str:
        return next(h for h, found in self.children(parent).items() if found == name)

    def plain(self, handle: str) -> bytes:
        key = self._node_key(self.nodes[handle])
        aes = bytes(a ^ b for a, b in zip(key[:16], key[16:], strict=True))
        return AES.new(aes, AES.MODE_CTR, nonce=key[16:24], initial_value=0).decrypt(self._bytes[handle])

    def flip(self, handle: str, at: int) -> None:
        """Damage a stored byte."""
        data = bytearray(self._bytes[handle])
        data[at] ^= 1
        self._bytes[handle] = bytes(data)

    def plant(self, name: str, parent: str = ROOT, *, stamp: int = 2, kind: int = 1) -> str:
        """A folder that somebody else's program made."""
        key = hashlib.sha256(name.encode()).digest()[:16]
        text = b"MEGA" + json.dumps({"n": name}).encode()
        node = {
            "t": kind,
            "a": b64(cbc(key).encrypt(text + bytes(-len(text) % 16))),
            "k": f"{USER}:{b64(ecb(self.master).encrypt(key))}",
        }
        return self._add(parent, node, stamp)

    # -- keys ------------------------------------------------------------------------------------------------

    def _node_key(self, node: dict[str, Any]) -> bytes:
        return ecb(self.master).decrypt(unb64(node["k"].split(":")[1]))

    def _attributes(self, node: dict[str, Any]) -> dict[str, Any]:
        key = self._node_key(node)
        aes = bytes(a ^ b for a, b in zip(key[:16], key[16:], strict=True)) if len(key) == 32 else key
        text = cbc(aes).decrypt(unb64(node["a"])).rstrip(b"\0")
        assert text.startswith(b'MEGA{"'), "attributes that do not open"
        return json.loads(text[4:])

    def _password_keys(self) -> tuple[bytes, str]:
        """(what the master key is encrypted with, the hash that proves the password)."""
        return _new_keys() if self.version == 2 else _old_keys()

    # -- the API ---------------------------------------------------------------------------------------------

    def reply(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        parts = urlsplit(handler.path)
        if parts.path == "/cs":
            self._api(handler, parse_qs(parts.query), body)
            return
        kind, rest = parts.path.split("/", 2)[1:]
        with self._mutex:
            answer: Any = self._ruled({"ul": "upload", "dl": "download"}[kind], {}, "")
            if answer is None or answer == "drop":
                done = self._upload(rest, body) if kind == "ul" else self._download(rest)
                answer = Answer(special="reset") if answer == "drop" else done
            elif isinstance(answer, int):
                answer = Answer(200, str(answer).encode())
        self.give(handler, answer)

    def _ruled(self, command: str, body: dict[str, Any], sid: str) -> Answer | int | str | None:
        call = MegaCall(command, self.count(command) + 1, body, sid)
        self.calls.append(call)
        return next((v for v in (rule(call) for rule in list(self.rules)) if v is not None), None)

    def _api(self, handler: BaseHTTPRequestHandler, query: dict[str, list[str]], body: bytes) -> None:
        with self._mutex:
            answer = self._answer(query, body, handler.headers.get("X-Hashcash") or "")
        self.give(handler, answer)

    def _answer(self, query: dict[str, list[str]], body: bytes, proof: str) -> Answer:
        if self.challenges and not self._proven(proof):
            token = b64(hashlib.sha384(str(len(self.proofs)).encode()).digest())
            self.proofs.append(token)
            return Answer(402, b"", {"X-Hashcash": f"1:{self.easiness}:1731410499:{token}"})
        sid, number = query.get("sid", [""])[0], query.get("id", [""])[0]
        self.ids.append(number)
        commands = json.loads(body)
        again = self._answered.get((sid, number))
        verdict = self._ruled(commands[0]["a"], commands[0], sid)
        if isinstance(verdict, Answer):
            return verdict
        if isinstance(verdict, int):
            told: Any = verdict if verdict in (-3, -15) else [verdict]
        elif again is not None:
            self.replayed += 1
            told = again
        elif commands[0]["a"] not in ("us0", "us") and sid not in self.sessions:
            told = -15
        else:
            told = [getattr(self, f"_{command['a']}")(command) for command in commands]
            self._answered[sid, number] = told
        if verdict == "drop":
            return Answer(special="reset")
        return Answer(200, json.dumps(told).encode(), {"Content-Type": "application/json"})

    def _proven(self, header: str) -> bool:
        version, _, rest = header.partition(":")
        token, _, prefix = rest.partition(":")
        if version != "1" or token not in self.proofs[-1:]:
            return False
        area = unb64(prefix) + unb64(token) * 262_144
        limit = (((self.easiness & 63) << 1) + 1) << ((self.easiness >> 6) * 7 + 3)
        if int.from_bytes(hashlib.sha256(area).digest()[:4], "big") > limit:
            return False
        self.challenges -= 1
        return True

    def _us0(self, command: dict[str, Any]) -> Any:
        if command["user"] != EMAIL:
            return -9
        return {"v": 2, "s": b64(SALT)} if self.version == 2 else {"v": 1}

    def _us(self, command: dict[str, Any]) -> Any:
        key, proof = self._password_keys()
        if command["user"] != EMAIL or command["uh"] != proof:
            return -9
        if self.mfa:
            return -26
        rsa = rsa_key()
        private = b"".join(mpi(n) for n in (rsa.p, rsa.q, rsa.d, rsa.u))
        private += bytes(-len(private) % 16)
        self._made += 1
        sid = hashlib.sha512(str(self._made).encode()).digest()[:43]
        sid = (b"\0\0" if self.leading_zero else b"\x41\x42") + sid[2:]
        self.sessions.add(b64(sid))
        width = len(mpi(rsa.p)) + len(mpi(rsa.q)) - 4 - 2
        plain = int.from_bytes(sid.ljust(width, b"\x55"), "big")
        return {
            "u": USER,
            "k": b64(ecb(key).encrypt(self.master)),
            "privk": b64(ecb(self.master).encrypt(private)),
            "csid": b64(mpi(pow(plain, rsa.e, rsa.n))),
        }

    def _uq(self, _command: dict[str, Any]) -> Any:
        return {"cstrg": self.used, "mstrg": self.total}

    def _f(self, _command: dict[str, Any]) -> Any:
        return {"f": [dict(node) for node in self.nodes.values()], "ok": [], "s": [], "u": [], "sn": "sn"}

    def _u(self, command: dict[str, Any]) -> Any:
        if self.used + command["s"] > self.total:
            return -17
        self._made += 1
        self._uploads[f"u{self._made}"] = (command["s"], {})
        return {"p": f"{self.url}/ul/u{self._made}"}

    def _upload(self, path: str, body: bytes) -> Answer:
        name, _, start = path.partition("/")
        size, pieces = self._uploads[name]
        edges = boundaries(size)
        if int(start) not in edges or int(start) + len(body) not in edges:
            return Answer(200, b"-7")
        pieces[int(start)] = body
        if sum(map(len, pieces.values())) < size:
            return Answer(200, b"")
        digest = hashlib.sha384(name.encode()).digest()
        token = digest[:35] + b"\1" if self.raw_tokens else b64(digest[:27]).encode()
        text = b64(token) if self.raw_tokens else token.decode()
        self._tokens[text] = b"".join(pieces[at] for at in sorted(pieces))
        del self._uploads[name]
        return Answer(200, token)

    def _p(self, command: dict[str, Any]) -> Any:
        if self.nodes.get(command["t"], {"t": 0})["t"] == 0:
            return -9
        made = []
        for given in command["n"]:
            node = {"t": given["t"], "a": given["a"], "k": f"{USER}:{given['k']}"}
            self._attributes(node)
            if given["t"] == 0:
                data = self._tokens.pop(given["h"], None)
                if data is None:
                    return -9
                key = self._node_key(node)
                aes = bytes(a ^ b for a, b in zip(key[:16], key[16:], strict=True))
                plain = AES.new(aes, AES.MODE_CTR, nonce=key[16:24], initial_value=0).decrypt(data)
                assert file_mac(aes, key[16:24], plain) == key[24:], "a MAC that does not fit"
                node["s"] = len(data)
            handle = self._add(command["t"], node, int(time.time()))
            if given["t"] == 0:
                self._bytes[handle] = data
            made.append(dict(self.nodes[handle]))
        return {"f": made}

    def _add(self, parent: str, node: dict[str, Any], stamp: int) -> str:
        self._made += 1
        handle = b64(hashlib.sha256(f"node{self._made}".encode()).digest()[:6])
        self.nodes[handle] = {"h": handle, "p": parent, "u": USER, "ts": stamp, **node}
        return handle

    def _g(self, command: dict[str, Any]) -> Any:
        node = self.nodes.get(command["n"])
        if node is None or node["t"] != 0:
            return -9
        found = {"s": node["s"], "at": node["a"]}
        if command.get("g"):
            found["g"] = f"{self.url}/dl/{node['h']}"
        return found

    def _download(self, path: str) -> Answer:
        handle, _, span = path.partition("/")
        data = self._bytes.get(handle)
        if data is None:
            return Answer(404)
        if span:
            start, end = map(int, span.split("-"))
            data = data[start : end + 1]
        return Answer(200, data, {"Content-Type": "application/octet-stream"})

    def _d(self, command: dict[str, Any]) -> Any:
        handle = command["n"]
        if handle not in self.nodes:
            return -9
        for child in [h for h, node in self.nodes.items() if node["p"] == handle]:
            self._d({"n": child})
        del self.nodes[handle]
        self._bytes.pop(handle, None)
        return 0

    def _m(self, command: dict[str, Any]) -> Any:
        if command["n"] not in self.nodes or command["t"] not in self.nodes:
            return -9
        self.nodes[command["n"]]["p"] = command["t"]
        return 0

    def _a(self, command: dict[str, Any]) -> Any:
        if command["n"] not in self.nodes:
            return -9
        self.nodes[command["n"]]["a"] = command["attr"]
        return 0

    def _l(self, command: dict[str, Any]) -> Any:
        return b64(hashlib.sha256(command["n"].encode()).digest()[:6]) if command["n"] in self.nodes else -9


@cache
def _new_keys() -> tuple[bytes, str]:
    both = hashlib.pbkdf2_hmac("sha512", PASSWORD.encode(), SALT, 100_000, 32)
    return both[:16], b64(both[16:])


@cache
def _old_keys() -> tuple[bytes, str]:
    """As accounts from before 2018 have them: 65536 rounds over the password, 16384 over the address."""
    key = bytes.fromhex("93C467E37DB0C7A4D1BE3F810152CB56")
    text = PASSWORD.encode()
    text += bytes(-len(text) % 4)
    ciphers = [ecb(text[at : at + 16].ljust(16, b"\0")) for at in range(0, len(text), 16)]
    for _ in range(0x10000):
        for cipher in ciphers:
            key = cipher.encrypt(key)
    mixed = bytearray(16)
    for at, byte in enumerate(EMAIL.encode()):
        mixed[at % 16] ^= byte
    hashed = bytes(mixed)
    for _ in range(0x4000):
        hashed = ecb(key).encrypt(hashed)
    return key, b64(hashed[:4] + hashed[8:12])

"""The doors of the product as a client uses them, each with what it told: done, or an explicit refusal."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.contrib.messages import get_messages
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client

from accounts import tokens
from accounts.models import User
from replication.errors import ContentDamaged, ContentUnavailable
from tests.machine.tree import Names

FILES = "/api/v1/files"
# What a read may end in while providers fail; each says so to the client.
REFUSED_READS = (502, 503)


@dataclass(frozen=True)
class Told:
    """The answer: its status, and the code of the problem when it is none of success."""

    status: int
    code: str = ""

    @property
    def done(self) -> bool:
        return 200 <= self.status < 300


@dataclass(frozen=True)
class Read:
    """What came of a download: the bytes that arrived, and whether the answer was whole."""

    status: int
    body: bytes
    whole: bool


def address(names: Names) -> str:
    return "/".join((FILES, *names))


class Drive:
    """One user at the doors."""

    def __init__(self, user: User) -> None:
        self._api = Client(
            headers={"Authorization": f"Bearer {tokens.create(user, 'machine', tokens.SCOPES)[1]}"}
        )
        self._browser = Client()
        self._browser.force_login(user)

    @staticmethod
    def _told(response: Any) -> Told:
        if response.status_code < 400:
            return Told(response.status_code)
        assert response.headers["Content-Type"] == "application/problem+json", response.content[:500]
        return Told(response.status_code, json.loads(response.content)["code"])

    # -- uploads ------------------------------------------------------------------------------------------

    def put(self, names: Names, data: bytes, *, digest: bool = False) -> Told:
        """Raw bytes by path, as `curl -T`."""
        headers = {"Content-Length": str(len(data))}
        if digest:
            encoded = base64.b64encode(hashlib.sha256(data).digest()).decode()
            headers["Repr-Digest"] = f"sha-256=:{encoded}:"
        response = self._api.generic("PUT", address(names), data, "application/octet-stream", headers=headers)
        told = self._told(response)
        if told.done:
            assert response.json()["sha256"] == hashlib.sha256(data).hexdigest()
        return told

    def form(self, folder: uuid.UUID, files: Sequence[tuple[str, bytes]]) -> Told:
        """The REST API's multipart form: all files, or none."""
        parts = [SimpleUploadedFile(name, data) for name, data in files]
        return self._told(self._api.post(f"/api/v1/nodes/{folder}/files", {"file": parts}))

    def page(self, folder: uuid.UUID, files: Sequence[tuple[str, bytes]]) -> Told:
        """The dashboard's form. It redirects either way; the message says what happened."""
        self._browser.cookies.pop("messages", None)
        parts = [SimpleUploadedFile(name, data) for name, data in files]
        response = self._browser.post(f"/folders/{folder}/upload", {"file": parts})
        assert response.status_code == 302, response.content[:500]
        said = [str(message) for message in get_messages(response.wsgi_request)]
        assert len(said) == 1, said
        if said[0].startswith("Uploaded:"):
            return Told(201)
        assert said[0].startswith("Nothing was uploaded."), said
        for words, status, code in (
            ("Not enough brokers", 503, "write_refused"),
            ("There is not enough space", 413, "quota_exceeded"),
            ("There is a folder of this name", 409, "is_a_folder"),
        ):
            if words in said[0]:
                return Told(status, code)
        raise AssertionError(said)

    # -- downloads ----------------------------------------------------------------------------------------

    def open(self, names: Names, byte_range: str = "") -> Any:
        """The response to a GET, its bytes not read yet."""
        return self._api.get(address(names), headers={"Range": byte_range} if byte_range else {})

    def get(self, names: Names, byte_range: str = "") -> Read:
        response = self.open(names, byte_range)
        if not response.streaming:
            return Read(response.status_code, response.content, whole=True)
        body = bytearray()
        try:
            for piece in response:
                body += piece
        except (ContentUnavailable, ContentDamaged):  # the server breaks the connection off
            return Read(response.status_code, bytes(body), whole=False)
        whole = len(body) == int(response.headers["Content-Length"])
        return Read(response.status_code, bytes(body), whole)

    def head(self, names: Names) -> tuple[int, str]:
        response = self._api.head(address(names))
        return response.status_code, response.headers.get("ETag", "").strip('"')

    # -- folders and deleting -----------------------------------------------------------------------------

    def mkdir(self, names: Names) -> Told:
        body = json.dumps({"path": "/" + "/".join(names)})
        return self._told(self._api.post("/api/v1/folders", body, "application/json"))

    def delete(self, names: Names, *, purge: bool = False) -> Told:
        return self._told(self._api.delete(address(names) + ("?purge=true" if purge else "")))

    def delete_page(self, node: uuid.UUID) -> Told:
        return Told(204 if self._browser.post(f"/nodes/{node}/delete").status_code == 302 else 404)

    def purge_trashed(self, node: uuid.UUID) -> Told:
        return self._told(self._api.delete(f"/api/v1/trash/{node}"))


def bytes_of(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)

"""The limit of our own web server: the same Granian and threads as cloudstore/web.py, with a bare handler in place of
the product. Reads the body in pieces of 256 KiB and writes two plain files.

`python -m bench.apps.plain PORT FOLDER SYNC`, SYNC one of `none` (two whole files) and `data` (both copies in files of
8 MiB, the size of a stored object, each with fdatasync before the answer, four writer threads).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

PIECE = 256 * 1024
OBJECT = 8 * 1024 * 1024
WRITERS = 4

FOLDER = Path(os.environ.get("BENCH_PLAIN_FOLDER", "."))
SYNC = os.environ.get("BENCH_PLAIN_SYNC", "none")
_pool = ThreadPoolExecutor(WRITERS)


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    name = Path(environ["PATH_INFO"]).name
    folders = [FOLDER / "a", FOLDER / "b"]
    method = environ["REQUEST_METHOD"]
    if method == "PUT":
        (receive_synced if SYNC == "data" else receive)(environ, [folder / name for folder in folders])
        start_response("201 Created", [("Content-Length", "0")])
        return [b""]
    if method == "DELETE":
        for folder in folders:
            for path in folder.glob(f"{name}*"):
                path.unlink()
        start_response("204 No Content", [])
        return [b""]
    path = folders[0] / name
    start_response("200 OK", [("Content-Length", str(path.stat().st_size))])
    return pieces(path)


def pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as file:
        while piece := file.read(PIECE):
            yield piece


def receive(environ: dict[str, Any], paths: list[Path]) -> None:
    body, left = environ["wsgi.input"], int(environ["CONTENT_LENGTH"])
    files = [path.open("wb", buffering=0) for path in paths]
    while left:
        piece = body.read(min(PIECE, left))
        if not piece:
            raise EOFError
        left -= len(piece)
        for file in files:
            file.write(piece)
    for file in files:
        file.close()


def receive_synced(environ: dict[str, Any], paths: list[Path]) -> None:
    """At most WRITERS + 2 objects are in memory; the body is read on while earlier ones reach the disk."""
    body, left, number = environ["wsgi.input"], int(environ["CONTENT_LENGTH"]), 0
    running: list[Future[None]] = []
    while left:
        parts: list[bytes] = []
        room = min(OBJECT, left)
        while room:
            piece = body.read(min(PIECE, room))
            if not piece:
                raise EOFError
            parts.append(piece)
            room -= len(piece)
            left -= len(piece)
        running += [_pool.submit(write_synced, Path(f"{path}.{number:06d}"), parts) for path in paths]
        number += 1
        while len(running) > WRITERS + 2:
            running.pop(0).result()
    for write in running:
        write.result()


def write_synced(path: Path, parts: list[bytes]) -> None:
    with path.open("wb", buffering=0) as file:
        for part in parts:
            file.write(part)
        os.fdatasync(file.fileno())


def main() -> None:
    from granian import Granian
    from granian.constants import Interfaces

    port, folder, sync = sys.argv[1:]
    for name in ("a", "b"):
        (Path(folder) / name).mkdir(parents=True, exist_ok=True)
    os.environ.update({"BENCH_PLAIN_FOLDER": folder, "BENCH_PLAIN_SYNC": sync, "MALLOC_ARENA_MAX": "2"})
    Granian(
        "bench.apps.plain:application",
        address="127.0.0.1",
        port=int(port),
        interface=Interfaces.WSGI,
        workers=1,
        blocking_threads=16,
        backlog=1024,
        websockets=False,
        log_access=False,
    ).serve()


if __name__ == "__main__":
    main()

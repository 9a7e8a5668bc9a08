"""Makes the virtual environment and installs one of the pinned requirement sets: `environment.py base|test|bench`.

Needs nothing but Python and its standard library. A set is installed again only when its file has changed:
a copy of the installed file lies in the environment, written last. Two runs at the same time take turns.
"""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

OLDEST = (3, 11)
ROOT = Path(__file__).resolve().parent.parent
VENV = Path(os.environ.get("VENV") or ROOT / ".venv").resolve()


def say(message):
    print(message, file=sys.stderr, flush=True)


def fail(message):
    say(message)
    sys.exit(1)


def works(*arguments):
    """Whether the environment's Python exists, is new enough and can run these arguments."""
    test = f"import sys; sys.exit(sys.version_info < {OLDEST})"
    for line in (["-c", test], list(arguments)):
        try:
            done = subprocess.run([VENV / "bin" / "python", *line], capture_output=True, check=False)
        except OSError:
            return False
        if done.returncode:
            return False
    return True


def make_venv():
    if works("-m", "pip", "--version"):
        return
    say(f"Making the virtual environment in {VENV.name}/")
    command = [sys.executable, "-m", "venv", "--clear", str(VENV)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not works("-m", "pip", "--version"):
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        fail(
            f"{done.stdout}{done.stderr}\n"
            f"Python {version} could not make a virtual environment with pip. On Debian and Ubuntu install\n"
            f"`apt install python{version}-venv`; on Alpine `apk add py3-pip`; then run make again."
        )


def install(name):
    wanted = ROOT / "requirements" / f"{name}.txt"
    stamp = VENV / f".installed-{name}.txt"
    if stamp.exists() and stamp.read_bytes() == wanted.read_bytes() and works("-c", "import pip"):
        return
    make_venv()
    content = wanted.read_bytes()
    stamp.unlink(missing_ok=True)
    say(f"Installing requirements/{name}.txt (a minute or two the first time)")
    pip = [VENV / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "--no-input", "-qq"]
    options = ["install", "--no-warn-script-location", "--require-hashes", "-r", str(wanted)]
    done = subprocess.run([*pip, *options], env={**os.environ, "PIP_ROOT_USER_ACTION": "ignore"}, check=False)
    if done.returncode:
        fail(f"pip could not install requirements/{name}.txt (see above). Run make again to retry.")
    part = stamp.with_suffix(".part")
    part.write_bytes(content)
    part.replace(stamp)


def main():
    if sys.version_info < OLDEST:
        version = ".".join(map(str, sys.version_info[:3]))
        fail(
            f"CloudStore needs Python 3.11 or newer; {sys.executable} is {version}. Try make PYTHON=python3.12"
        )
    names = sys.argv[1:]
    if not names or not all((ROOT / "requirements" / f"{name}.txt").is_file() for name in names):
        fail("usage: environment.py base|test|prod|bench ...")
    VENV.parent.mkdir(parents=True, exist_ok=True)
    with (VENV.parent / f"{VENV.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Waiting for another make that is installing...")
            fcntl.flock(lock, fcntl.LOCK_EX)
        for name in names:
            install(name)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)

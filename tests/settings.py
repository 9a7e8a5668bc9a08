"""Settings of the test suite: the product's own, with throw-away secrets and a throw-away data folder."""

import atexit
import base64
import os
import shutil
import tempfile

os.environ.setdefault("SECRET_KEY", "tests-only-" + "k" * 50)
os.environ.setdefault(
    "CLOUDSTORE_MASTER_KEYS", "1:" + base64.b64encode(b"tests-only master key number one").decode()
)
if "CLOUDSTORE_DATA" not in os.environ:  # the processes of pytest-xdist take over that of the first
    os.environ["CLOUDSTORE_DATA"] = tempfile.mkdtemp(prefix="cloudstore-tests-")
    atexit.register(shutil.rmtree, os.environ["CLOUDSTORE_DATA"], ignore_errors=True)
os.environ.setdefault("CLOUDSTORE_SECRETS", "/nonexistent/secrets.env")
os.environ.setdefault("ENV_FILE", "/nonexistent/.env")  # not the developer's

from cloudstore.settings import *  # noqa: F403

# A file, not :memory:, so that threads share it the way the product's do.
if DATABASES["default"]["ENGINE"].endswith("sqlite3"):  # noqa: F405
    DATABASES["default"]["TEST"] = {"NAME": str(CLOUDSTORE_DATA / "test.sqlite3")}  # noqa: F405
STORAGES["staticfiles"] = {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"}  # noqa: F405
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher", *PASSWORD_HASHERS]  # noqa: F405
# Tests write the history themselves: a thread would write into their transactions.
CLOUDSTORE_HISTORY_SECONDS = 0
# A queue in memory: hints go nowhere, as when every worker is down. The sweep must find all work.
CELERY_BROKER_URL = "memory://localhost"
STATIC_ROOT.mkdir(parents=True, exist_ok=True)  # noqa: F405
LOGGING["root"]["level"] = "DEBUG"  # noqa: F405

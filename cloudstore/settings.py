"""Django settings. Values come from the environment and `.env`; `.env.example` explains each of them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from csp.constants import NONE, SELF

from cloudstore.config import BASE_DIR, WrongConfiguration, keys_in_file, load, queue_socket

# The secrets' file is made by `python -m cloudstore.secretfile`; the environment wins over it.
config, CLOUDSTORE_DATA, SECRETS_FILE = load()

DEBUG = config.flag("DEBUG", False)
SECRET_KEY = config.text("SECRET_KEY")
CLOUDSTORE_MASTER_KEYS = config.master_keys("CLOUDSTORE_MASTER_KEYS")
# Read again when a key is met that was not there at the start (brokers/keyring.py).
CLOUDSTORE_READ_MASTER_KEYS = partial(keys_in_file, SECRETS_FILE)
HOST = config.text("HOST", "127.0.0.1")
PORT = config.integer("PORT", 5000, low=1, high=65535)
WEB_THREADS = config.integer("WEB_THREADS", 16, low=1, high=256)
WORKER_PROCESSES = config.integer("WORKER_PROCESSES", 2, low=1, high=64)
SITE_URL = config.url("SITE_URL", f"http://localhost:{PORT}", {"http", "https"})
SECURE = SITE_URL.startswith("https://")
ALLOWED_HOSTS = config.items(
    "ALLOWED_HOSTS", sorted({"localhost", "127.0.0.1", "[::1]", urlsplit(SITE_URL).hostname or "localhost"})
)

INSTALLED_APPS = [
    "whitelabel",
    "accounts",
    "brokers",
    "replication",
    "vfs",
    "console",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "csp",
    "rest_framework",
    "drf_spectacular",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "csp.middleware.CSPMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "cloudstore.urls"
WSGI_APPLICATION = "cloudstore.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "whitelabel.context.brand",
            ]
        },
    }
]

# Database: design rules of docs/architecture.md, "State". IMMEDIATE takes the write lock at BEGIN, so a
# transaction that reads and then writes cannot lose an update; FULL keeps acknowledged commits at power loss.
SQLITE_OPTIONS: dict[str, Any] = {
    "transaction_mode": "IMMEDIATE",
    "timeout": config.integer("CLOUDSTORE_SQLITE_TIMEOUT", 30, low=1, high=600),
    "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON;",
}
DATABASES = {"default": config.database("DATABASE_URL", CLOUDSTORE_DATA / "cloudstore.sqlite3")}
if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    DATABASES["default"].setdefault("OPTIONS", {}).update(SQLITE_OPTIONS)
else:
    DATABASES["default"].setdefault("CONN_HEALTH_CHECKS", True)
    DATABASES["default"].setdefault("OPTIONS", {}).setdefault("connect_timeout", 5)
# Opening costs more than most requests, and the last connection that closes empties SQLite's log into its file.
DATABASES["default"].setdefault("CONN_MAX_AGE", 60)
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

AUTH_USER_MODEL = "accounts.User"
LOGIN_URL = "accounts:sign-in"
LOGIN_REDIRECT_URL = "vfs:dashboard"
LOGOUT_REDIRECT_URL = "accounts:sign-in"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.Argon2PasswordHasher"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]

# Mail. Without EMAIL_URL it goes to the server of this machine.
for _name, _value in config.mail("EMAIL_URL", "smtp://localhost:25").items():
    if _name.startswith("EMAIL_") and _value is not None:
        globals()[_name] = _value
EMAIL_TIMEOUT = 15
DEFAULT_FROM_EMAIL = SERVER_EMAIL = config.text(
    "DEFAULT_FROM_EMAIL", f"cloudstore@{urlsplit(SITE_URL).hostname or 'localhost'}"
)

LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_I18N = True
USE_TZ = True

STATIC_URL = "/static/"
STATIC_ROOT = CLOUDSTORE_DATA / "static"
STATICFILES_DIRS = [BASE_DIR / "static"]
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.InMemoryStorage"},
    "staticfiles": {"BACKEND": "whitenoise.storage.CompressedManifestStaticFilesStorage"},
}
# User bytes never touch this process's disk: the byte doors stream (vfs/upload.py). What is left to
# Django's own parser is small forms.
FILE_UPLOAD_HANDLERS = ["django.core.files.uploadhandler.MemoryFileUploadHandler"]
DATA_UPLOAD_MAX_MEMORY_SIZE = 2 * 1024 * 1024

SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = SECURE
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = CSRF_COOKIE_SAMESITE = "Lax"
SESSION_COOKIE_NAME = "__Host-session" if SECURE else "session"
CSRF_COOKIE_NAME = "__Host-csrf" if SECURE else "csrf"
CSRF_TRUSTED_ORIGINS = [SITE_URL]
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
SECURE_SSL_REDIRECT = SECURE
SECURE_REDIRECT_EXEMPT = ["^healthz$"]  # asked from within
SECURE_HSTS_SECONDS = 31_536_000 if SECURE else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = SECURE
if config.flag("BEHIND_TLS_PROXY", False):
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
# Whose X-Forwarded-For is believed: networks, as 10.0.0.0/8 (accounts/address.py).
CLOUDSTORE_TRUSTED_PROXIES = config.networks("CLOUDSTORE_TRUSTED_PROXIES")
X_FRAME_OPTIONS = "DENY"
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [NONE],
        "script-src": [SELF],
        "style-src": [SELF],
        "img-src": [SELF, "data:"],
        "font-src": [SELF],
        "connect-src": [SELF],
        "form-action": [SELF],
        "base-uri": [NONE],
        "frame-ancestors": [NONE],
    }
}

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "accounts.authentication.TokenAuthentication",
        "accounts.authentication.SessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "EXCEPTION_HANDLER": "vfs.api.problems.exception_handler",
    "TEST_REQUEST_DEFAULT_FORMAT": "json",
}
SPECTACULAR_SETTINGS = {"TITLE": "CloudStore", "VERSION": "1", "SERVE_INCLUDE_SCHEMA": False}

# The queue (Redis protocol). Embedded by default: a Valkey child process on a unix socket.
QUEUE_SOCKET = queue_socket(CLOUDSTORE_DATA)
EMBEDDED_QUEUE_URL = f"redis+socket://{QUEUE_SOCKET}"
REDIS_URL = config.url("REDIS_URL", EMBEDDED_QUEUE_URL, {"redis", "rediss", "redis+socket"})
EMBEDDED_QUEUE = REDIS_URL == EMBEDDED_QUEUE_URL
CELERY_BROKER_URL = REDIS_URL
# Short times and one try: who publishes is often a web request, and a hint is not worth its waiting.
CELERY_BROKER_CONNECTION_TIMEOUT = 1
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "visibility_timeout": 3600,
    "unacked_restore_interval": 2,
    "unacked_restore_throttle": 1,
    "socket_connect_timeout": 1,
    "socket_timeout": 3,
    "max_retries": 0,
}
CELERY_BROKER_CONNECTION_MAX_RETRIES = None  # the worker, in contrast, waits for the queue for ever
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_TASK_PUBLISH_RETRY = False  # a hint that cannot be sent is dropped: the sweep finds the work anyway
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_REJECT_ON_WORKER_LOST = True
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_TASK_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_TIMEZONE = "UTC"
CELERY_WORKER_HIJACK_ROOT_LOGGER = False

# whitelabel
CLOUDSTORE_NAME = config.text("CLOUDSTORE_NAME", "CloudStore")
# brokers
CLOUDSTORE_BROKERS: dict[str, str] = {}
CLOUDSTORE_HEALTH_INTERVAL = config.integer("CLOUDSTORE_HEALTH_INTERVAL", 300, low=5, high=86_400)
CLOUDSTORE_BLANK_DWELL = config.integer("CLOUDSTORE_BLANK_DWELL", 120, low=0, high=604_800)
CLOUDSTORE_LOCAL_ROOTS = [CLOUDSTORE_DATA / "brokers", *map(Path, config.items("CLOUDSTORE_LOCAL_ROOTS", []))]
# Whether brokers may lie at loopback and private addresses, as they do where operators run their own servers.
CLOUDSTORE_PRIVATE_ENDPOINTS = config.flag("CLOUDSTORE_PRIVATE_ENDPOINTS", True)
# How many processes share the limits of each broker: those that `make run` keeps, unless told otherwise.
CLOUDSTORE_LIMIT_SHARES = config.integer("CLOUDSTORE_LIMIT_SHARES", 1 + WORKER_PROCESSES, low=1, high=10_000)
# How often each process writes down what it counted of the brokers' calls; 0 for never.
CLOUDSTORE_HISTORY_SECONDS = 60
# Whom to tell of changes of the brokers' states.
CLOUDSTORE_ALERT_MAIL = config.items("CLOUDSTORE_ALERT_MAIL", [])
CLOUDSTORE_ALERT_WEBHOOK = config.url("CLOUDSTORE_ALERT_WEBHOOK", "", {"http", "https"}, secret=True)
CLOUDSTORE_ALERT_SECRET = config.text("CLOUDSTORE_ALERT_SECRET")
# replication
CLOUDSTORE_REPAIR_DWELL = config.seconds("CLOUDSTORE_REPAIR_DWELL", 900, low=0, high=2_592_000)
CLOUDSTORE_TRIM_DWELL = config.seconds("CLOUDSTORE_TRIM_DWELL", 900, low=0, high=2_592_000)
CLOUDSTORE_COLLECT_GRACE = config.seconds("CLOUDSTORE_COLLECT_GRACE", 86_400, low=0, high=31_536_000)
CLOUDSTORE_ORPHAN_AGE = config.seconds("CLOUDSTORE_ORPHAN_AGE", 172_800, low=0, high=31_536_000)
# Bytes per second that a rebalance moves at most.
CLOUDSTORE_REBALANCE_RATE = config.integer(
    "CLOUDSTORE_REBALANCE_RATE", 20_000_000, low=1, high=100_000_000_000
)
CLOUDSTORE_REPAIR_LEASE = config.seconds("CLOUDSTORE_REPAIR_LEASE", 600, low=5, high=86_400)
CLOUDSTORE_SWEEP_INTERVAL = config.integer("CLOUDSTORE_SWEEP_INTERVAL", 30, low=1, high=3600)
CLOUDSTORE_EPOCH_INTERVAL = config.integer("CLOUDSTORE_EPOCH_INTERVAL", 600, low=10, high=86_400)
# console
CLOUDSTORE_SNAPSHOT_INTERVAL = config.integer("CLOUDSTORE_SNAPSHOT_INTERVAL", 3600, low=60, high=604_800)
CLOUDSTORE_SNAPSHOT_KEEP = config.integer("CLOUDSTORE_SNAPSHOT_KEEP", 24, low=1, high=10_000)
CLOUDSTORE_SNAPSHOT_DAYS = config.integer("CLOUDSTORE_SNAPSHOT_DAYS", 30, low=0, high=3650)
# vfs
CLOUDSTORE_UPLOAD_EXPIRY = config.seconds("CLOUDSTORE_UPLOAD_EXPIRY", 7200, low=60, high=604_800)

# How often each sweep runs, in seconds. A message that nobody took by the next turn is dropped.
CELERY_BEAT_SCHEDULE = {
    name: {"task": task, "schedule": float(seconds), "options": {"expires": float(seconds)}}
    for name, task, seconds in (
        ("poll-brokers", "brokers.tasks.poll_brokers", min(15, CLOUDSTORE_HEALTH_INTERVAL)),
        ("watch-brokers", "brokers.tasks.watch_brokers", 30),
        ("send-alerts", "brokers.tasks.send_alerts", 15),
        ("compact-history", "brokers.tasks.compact_history", 3600),
        ("sweep", "replication.tasks.sweep", CLOUDSTORE_SWEEP_INTERVAL),
        ("scrub", "replication.tasks.scrub", 300),
        ("expire-uploads", "vfs.tasks.expire_uploads", CLOUDSTORE_SWEEP_INTERVAL),
        ("collect", "replication.tasks.collect", CLOUDSTORE_SWEEP_INTERVAL),
        ("find-orphans", "replication.tasks.find_orphans", 86_400),
        ("epoch", "console.tasks.advance_epoch", CLOUDSTORE_EPOCH_INTERVAL),
        ("jobs", "console.tasks.run_jobs", CLOUDSTORE_SWEEP_INTERVAL),
        ("snapshot", "console.tasks.snapshot", CLOUDSTORE_SNAPSHOT_INTERVAL),
    )
}

LOG_LEVEL = config.choice("LOG_LEVEL", "INFO", {"DEBUG", "INFO", "WARNING", "ERROR"})
# One set-up for web, worker, scheduler and commands (cloudstore/celery.py and cloudstore/web.py pass it on).
LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(levelname)s %(name)s: %(message)s"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["console"], "level": LOG_LEVEL},
    "loggers": {
        "django.server": {"handlers": ["console"], "level": "WARNING", "propagate": False},
        "botocore": {"level": "WARNING"},
        "urllib3.connectionpool": {"level": "INFO"},  # addresses may carry secrets
        "python_multipart": {"level": "ERROR"},  # a client's malformed body is the client's trouble
        "celery.worker.strategy": {"level": "WARNING"},  # a line for each task that arrives
        "celery.beat": {"level": "WARNING"},
    },
}

config.finish()
if not SECRET_KEY or not CLOUDSTORE_MASTER_KEYS:
    missing = [n for n in ("SECRET_KEY", "CLOUDSTORE_MASTER_KEYS") if not globals()[n]]
    raise WrongConfiguration(
        f"{' and '.join(missing)} not set: `make run` writes them to {SECRETS_FILE.name} in the data folder; "
        "in production give them in the environment"
    )

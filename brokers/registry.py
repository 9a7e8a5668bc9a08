"""Which kinds of brokers there are: the shipped ones, those of installed packages (entry-point group
`cloudstore.brokers`), and those of the settings (`CLOUDSTORE_BROKERS = {"custom": "dotted.path.Class"}`).

Later ones win over earlier ones. Nothing is imported before it is asked for, so that a missing SDK only concerns
who uses it.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from django import forms
from django.conf import settings

from brokers.driver import CloudBroker, NoOptions
from brokers.errors import BrokerError, Misconfigured

GROUP = "cloudstore.brokers"
BUILT_IN = {
    "local": "brokers.drivers.local.LocalBroker",
    "s3": "brokers.drivers.s3.S3Broker",
    "gcs": "brokers.drivers.gcs.GoogleCloudBroker",
    "storage": "brokers.drivers.storage.StorageBroker",
    "dropbox": "brokers.drivers.dropbox.DropboxBroker",
    "mega": "brokers.drivers.mega.MegaBroker",
    "memory": "brokers.drivers.memory.MemoryBroker",
}
# Usable by name, but not offered: what it holds is gone with the process.
HIDDEN = frozenset({"memory"})
FIVE_METHODS = ("upload_file", "download_file", "delete_file", "list_files", "get_storage_info")
SECRET_WORDS = ("secret", "password", "token", "key", "credential")


@dataclass(frozen=True)
class Kind:
    """A kind of broker: its class, and what the admin's page and the API need to know of it."""

    slug: str
    label: str
    cls: type
    form: type[forms.Form]
    secret_options: frozenset[str]


def paths() -> dict[str, str]:
    """Every registered slug and the dotted path of its class."""
    found = dict(BUILT_IN)
    found.update(_installed(tuple(sys.path)))
    found.update(getattr(settings, "CLOUDSTORE_BROKERS", {}))
    return found


@lru_cache(maxsize=2)
def _installed(_where: tuple[str, ...]) -> dict[str, str]:
    """Looking through all packages takes 30 ms, and each new connection would."""
    return {entry.name: entry.value.replace(":", ".") for entry in entry_points(group=GROUP)}


def get(slug: str) -> Kind:
    """The kind registered as `slug`. Raises Misconfigured that says what is missing."""
    path = paths().get(slug)
    if path is None:
        raise Misconfigured(f"no driver is registered as {slug!r}; there are: {', '.join(sorted(paths()))}")
    return _kind(slug, _load(slug, path))


def choices() -> list[tuple[str, str]]:
    """(slug, label) of what an operator can choose, by label. A driver that cannot be loaded is listed with the
    reason, so that it does not silently disappear."""
    found = []
    for slug in paths():
        if slug in HIDDEN:
            continue
        try:
            found.append((slug, get(slug).label))
        except Misconfigured as error:
            found.append((slug, f"{slug} (not usable: {error})"))
    return sorted(found, key=lambda choice: choice[1].lower())


def construct(slug: str, options: Mapping[str, Any]) -> Any:
    """A driver with these options and secrets. For `brokers/open.py` alone. Raises Misconfigured."""
    kind = get(slug)
    try:
        if issubclass(kind.cls, CloudBroker):
            return kind.cls(options)
        return kind.cls(**_arguments(kind.cls, options))
    except BrokerError:
        raise
    except ImportError as error:
        raise Misconfigured(_missing(slug, error)) from error
    except Exception as error:  # the message may quote an option, which may be a secret
        raise Misconfigured(f"the driver {slug!r} does not start ({type(error).__name__})") from error


def _load(slug: str, path: str) -> type:
    module_path, _dot, name = path.rpartition(".")
    try:
        module = import_module(module_path)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name and module_path.startswith(error.name):
            raise Misconfigured(
                f"driver {slug!r}: there is no module {error.name!r} (path {path!r})"
            ) from None
        raise Misconfigured(_missing(slug, error)) from error
    except ValueError:
        raise Misconfigured(f"driver {slug!r}: {path!r} is not a dotted path") from None
    found = getattr(module, name, None)
    if not inspect.isclass(found):
        raise Misconfigured(f"driver {slug!r}: there is no class {name!r} in {module_path!r}")
    lacking = [m for m in FIVE_METHODS if not callable(getattr(found, m, None))]
    if lacking:
        raise Misconfigured(f"driver {slug!r}: {path!r} has no method {', '.join(lacking)}")
    return found


def _missing(slug: str, error: ImportError) -> str:
    name = error.name or "a module"
    return f"driver {slug!r} needs the Python package that provides {name!r}; install it and start again"


def _kind(slug: str, cls: type) -> Kind:
    label = str(getattr(cls, "label", "") or slug)
    if issubclass(cls, CloudBroker):
        return Kind(slug, label, cls, cls.OptionsForm, cls.secret_options)
    form = getattr(cls, "OptionsForm", None) or _form_of(cls)
    secret = getattr(cls, "secret_options", None)
    if secret is None:
        secret = {n for n in form.base_fields if any(word in n.lower() for word in SECRET_WORDS)}
    return Kind(slug, label, cls, form, frozenset(secret))


def _parameters(cls: type) -> list[inspect.Parameter]:
    try:
        found = list(inspect.signature(cls).parameters.values())
    except (TypeError, ValueError):
        return []
    return [p for p in found if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def _form_of(cls: type) -> type[forms.Form]:
    """An options form after the parameters of a class that declares none."""
    fields: dict[str, forms.Field] = {}
    for parameter in _parameters(cls):
        required = parameter.default is inspect.Parameter.empty
        initial = None if required else parameter.default
        sample = (
            parameter.annotation if parameter.annotation is not inspect.Parameter.empty else type(initial)
        )
        if sample in (bool, "bool"):
            fields[parameter.name] = forms.BooleanField(required=False, initial=initial)
        elif sample in (int, "int"):
            fields[parameter.name] = forms.IntegerField(required=required, initial=initial)
        else:
            fields[parameter.name] = forms.CharField(required=required, initial=initial)
    return type("OptionsForm", (NoOptions,), fields)


def _arguments(cls: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """What the class takes of the options; an empty option leaves the class its own default."""
    return {p.name: options[p.name] for p in _parameters(cls) if options.get(p.name) not in (None, "")}

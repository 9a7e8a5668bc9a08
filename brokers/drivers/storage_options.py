"""The options of the broker "storage": a storage class by its dotted path, and what it is constructed with."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from django import forms
from django.core.exceptions import ImproperlyConfigured
from django.core.files.storage import FileSystemStorage, InMemoryStorage, Storage

from brokers.endpoint import clean_prefix, never_a_provider
from brokers.errors import Misconfigured

_PATH = re.compile(r"[A-Za-z][A-Za-z0-9_]*(\.[A-Za-z][A-Za-z0-9_]*)+\Z")
_HOST = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s;,'\"]+", re.IGNORECASE)

# Classes that cannot keep the contract, and what to use instead.
_REFUSED = {
    "storages.backends.dropbox.DropboxStorage": "its listings end after one page; use the driver 'dropbox'",
}


def load(path: str) -> type[Storage]:
    """The storage class with this dotted path. Raises Misconfigured that says what is wrong with it: anything that
    is not a subclass of Django's Storage is refused, and is never called."""
    if not _PATH.match(path):
        raise Misconfigured(
            "give the dotted path of a class, like storages.backends.azure_storage.AzureStorage"
        )
    module, _dot, name = path.rpartition(".")
    try:
        found = getattr(import_module(module), name, None)
    except ImportError as error:
        raise Misconfigured(
            f"{module} needs the Python package that provides {error.name or 'a module'!r}; install it and start again"
        ) from None
    except ImproperlyConfigured:
        raise Misconfigured(f"{module} needs a Python package that is not installed") from None
    except Exception as error:  # noqa: BLE001 - whatever a module does when it is imported
        raise Misconfigured(f"{module} cannot be imported ({type(error).__name__})") from None
    if not inspect.isclass(found) or not issubclass(found, Storage) or found is Storage:
        raise Misconfigured(
            f"{path} is not a storage class (a subclass of django.core.files.storage.Storage)"
        )
    if issubclass(found, FileSystemStorage):
        raise Misconfigured("for folders of this machine use the driver 'local', which writes durably")
    if issubclass(found, InMemoryStorage):
        raise Misconfigured("this class forgets everything with the process")
    for base in found.__mro__:
        if (why := _REFUSED.get(f"{base.__module__}.{base.__qualname__}")) is not None:
            raise Misconfigured(f"{path} cannot be used: {why}")
    return found


def merged(plain: Mapping[str, Any], secret: Mapping[str, Any]) -> dict[str, Any]:
    """Both objects as one; objects inside them are merged alike, secret values win."""
    out = dict(plain)
    for name, value in secret.items():
        below = out.get(name)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        out[name] = merged(below, value) if both else value  # type: ignore[arg-type]
    return out


def parse(text: str) -> dict[str, Any]:
    """A JSON object. Raises ValueError."""
    found = json.loads(text or "{}")
    if not isinstance(found, dict):
        raise ValueError("not an object")
    return found


class StorageOptions(forms.Form):
    class_path = forms.CharField(
        max_length=300,
        label="Class",
        help_text="Dotted path of a Django storage class, such as storages.backends.azure_storage.AzureStorage.",
    )
    class_options = forms.CharField(
        required=False,
        max_length=10_000,
        initial="{}",
        widget=forms.Textarea(attrs={"rows": 6}),
        help_text='What the class is constructed with, as a JSON object: {"azure_container": "drive"}. No secrets '
        "here: they belong below.",
    )
    class_secrets = forms.CharField(
        required=False,
        max_length=20_000,
        widget=forms.PasswordInput,
        help_text='More of it, kept sealed and never shown again: {"account_key": "..."}. It is merged into the '
        "options above.",
    )
    folder = forms.CharField(
        required=False, max_length=200, help_text="Folder inside the place; empty for the whole of it."
    )

    def clean_class_path(self) -> str:
        path = str(self.cleaned_data["class_path"]).strip()
        try:
            load(path)
        except Misconfigured as error:
            raise forms.ValidationError(str(error)) from None
        return path

    def clean_class_options(self) -> str:
        return _clean_object(str(self.cleaned_data["class_options"]))

    def clean_class_secrets(self) -> str:
        text = str(self.cleaned_data["class_secrets"])
        return _clean_object(text) if text.strip() else ""

    def clean_folder(self) -> str:
        return clean_prefix(str(self.cleaned_data["folder"]))


def _clean_object(text: str) -> str:
    """Raises forms.ValidationError, which quotes nothing of the text."""
    try:
        found = parse(text.strip())
    except ValueError:
        raise forms.ValidationError('Give a JSON object: {"name": "value", ...}.') from None
    if found.get("interactive"):
        raise forms.ValidationError("Nobody is there to be asked for a password: leave out “interactive”.")
    for value in _texts(found):
        for address in (value, *_HOST.findall(value)):
            if never_a_provider(_host_of(address)):
                raise forms.ValidationError("No provider lives at one of these addresses.")
    return json.dumps(found)


def _host_of(address: str) -> str:
    try:
        return urlsplit(address).hostname or "" if "://" in address else address.strip("[]")
    except ValueError:
        return ""


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for below in value.values():
            yield from _texts(below)
    elif isinstance(value, list):
        for below in value:
            yield from _texts(below)

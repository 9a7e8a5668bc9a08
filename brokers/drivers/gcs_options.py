"""The options of the broker "gcs"."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

from django import forms

from brokers.endpoint import clean_endpoint, clean_prefix, is_this_machine

ENDPOINT = "https://storage.googleapis.com"
STORAGE_CLASSES = ("STANDARD", "NEARLINE", "COLDLINE", "ARCHIVE")
BUCKET = r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]\Z"


class GoogleCloudOptions(forms.Form):
    bucket = forms.RegexField(BUCKET, max_length=222, help_text="Name of a bucket that exists.")
    prefix = forms.CharField(  # type: ignore[assignment]
        required=False, max_length=200, help_text="Folder inside the bucket; empty for the whole bucket."
    )
    credentials = forms.ChoiceField(
        choices=[
            ("key", "service account key, given below"),
            ("ambient", "those of this machine (Application Default Credentials)"),
            ("none", "none (an emulator)"),
        ],
        initial="key",
        help_text="Who asks: an account of your own for this, or what this machine is.",
    )
    service_account_key = forms.CharField(
        required=False,
        max_length=10_000,
        widget=forms.PasswordInput,
        help_text="The whole text of the JSON file that Google Cloud gives for a service account's key.",
    )
    project = forms.CharField(
        required=False,
        max_length=100,
        help_text="Project that pays for the requests. Only for buckets with “requester pays”.",
    )
    storage_class = forms.ChoiceField(
        required=False,
        choices=[("", "the bucket's own"), *((name, name.capitalize()) for name in STORAGE_CLASSES)],
        help_text="Cold classes bill each read and a shortest time: scrubbing and repair read everything.",
    )
    endpoint_url = forms.CharField(
        required=False,
        max_length=300,
        label="Endpoint URL",
        help_text="Empty for Google. For emulators and private endpoints.",
    )

    def clean_prefix(self) -> str:
        return clean_prefix(str(self.cleaned_data["prefix"]))

    def clean_endpoint_url(self) -> str:
        return clean_endpoint(str(self.cleaned_data["endpoint_url"]), ENDPOINT)

    def clean_service_account_key(self) -> str:
        text = str(self.cleaned_data["service_account_key"]).strip()
        return json.dumps(_service_account(text)) if text else ""

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        kind, endpoint = cleaned.get("credentials"), cleaned.get("endpoint_url", "")
        if kind == "key" and not cleaned.get("service_account_key") and not self.errors:
            self.add_error("service_account_key", "Give the key of a service account.")
        host = urlsplit(endpoint).hostname or ""
        if kind == "none" and not endpoint and not self.errors:
            self.add_error(
                "endpoint_url", "Without credentials only an emulator can be used: give its address."
            )
        if endpoint.startswith("http://") and kind != "none" and not is_this_machine(host):
            self.add_error("endpoint_url", "Credentials are sent by https only.")
        # Whoever may add brokers must not get this machine's own credentials sent to an address of his.
        if kind == "ambient" and endpoint and not f".{host}".endswith(".googleapis.com"):
            self.add_error("endpoint_url", "This machine's credentials are sent to googleapis.com only.")
        return cleaned


def _service_account(text: str) -> dict[str, str]:
    """The parts of a service account's key that are needed. Raises forms.ValidationError, which quotes nothing."""
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        found = json.loads(text)
    except ValueError:
        raise forms.ValidationError("This is not JSON: paste the whole file.") from None
    if not isinstance(found, dict) or found.get("type") != "service_account":
        raise forms.ValidationError("This is not the key of a service account (its type says otherwise).")
    wanted = {name: found.get(name) for name in ("client_email", "private_key", "private_key_id")}
    lacking = [name for name, value in wanted.items() if not isinstance(value, str) or not value]
    if lacking:
        raise forms.ValidationError(f"The key lacks {', '.join(lacking)}: paste the whole file.")
    if found.get("universe_domain", "googleapis.com") != "googleapis.com":
        raise forms.ValidationError("Keys of other clouds than Google's public one cannot be used.")
    try:
        key = load_pem_private_key(str(wanted["private_key"]).encode(), None)
    except Exception:  # noqa: BLE001 - whatever it is, it is not a key
        key = None
    if not isinstance(key, RSAPrivateKey):
        raise forms.ValidationError("The private key inside cannot be read: paste the whole file.")
    return {"type": "service_account", **{name: str(value) for name, value in wanted.items()}}

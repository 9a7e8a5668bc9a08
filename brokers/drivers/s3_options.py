"""The options of the broker "s3", and what is known of the providers that speak S3.

What a provider supports is from its own documentation: Amazon's "Checking object integrity" and "Storage classes",
Backblaze's "S3-Compatible API" (unsupported: x-amz-checksum headers), Cloudflare's "S3 API compatibility", Wasabi's
"S3 API reference"; SeaweedFS as the tests run it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from django import forms

from brokers import endpoint

# A read of these waits for hours, so that no copy on them can be served, verified or repaired from.
ARCHIVES = frozenset({"GLACIER", "DEEP_ARCHIVE"})


Style = Literal["auto", "path", "virtual"]


@dataclass(frozen=True)
class Provider:
    """`endpoint` is its address, with {region} where that belongs into it; empty where the operator gives it. `style`
    is how buckets are addressed unless the operator says otherwise. `checksums`: takes x-amz-checksum-crc32 beside
    Content-MD5. `storage_classes` and `encryption` are those that may be asked for; None for whatever is asked."""

    label: str
    endpoint: str = ""
    example: str = "https://s3.example.com"
    region: str = "us-east-1"
    style: Style = "path"
    checksums: bool = False
    storage_classes: tuple[str, ...] | None = None
    encryption: tuple[str, ...] | None = None


PROVIDERS: Mapping[str, Provider] = {
    "aws": Provider(
        "Amazon S3",
        endpoint="https://s3.{region}.amazonaws.com",
        style="virtual",
        checksums=True,
        storage_classes=("STANDARD", "STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING", "GLACIER_IR"),
        encryption=("AES256", "aws:kms"),
    ),
    "b2": Provider(
        "Backblaze B2",
        endpoint="https://s3.{region}.backblazeb2.com",
        region="",
        style="virtual",
        storage_classes=("STANDARD",),
        encryption=("AES256",),
    ),
    "r2": Provider(
        "Cloudflare R2",
        example="https://ACCOUNT_ID.r2.cloudflarestorage.com",
        region="auto",
        storage_classes=("STANDARD", "STANDARD_IA"),
        encryption=(),
    ),
    "wasabi": Provider(
        "Wasabi",
        endpoint="https://s3.{region}.wasabisys.com",
        style="virtual",
        storage_classes=("STANDARD",),
        encryption=("AES256",),
    ),
    "minio": Provider(
        "MinIO and its likes (Ceph, Garage, RustFS)",
        example="https://minio.example.com:9000",
        storage_classes=("STANDARD", "REDUCED_REDUNDANCY"),
        encryption=("AES256", "aws:kms"),
    ),
    "seaweedfs": Provider(
        "SeaweedFS",
        example="https://seaweedfs.example.com:8333",
        checksums=True,
        storage_classes=("STANDARD",),
        encryption=("AES256",),
    ),
}
# What rows have that were made before there were providers, and what suits most that are not in the list.
OTHER = Provider("another provider", style="auto")


def provider_of(options: Mapping[str, Any]) -> Provider:
    return PROVIDERS.get(str(options.get("provider") or ""), OTHER)


def region_of(options: Mapping[str, Any]) -> str:
    return str(options.get("region") or provider_of(options).region)


def endpoint_of(options: Mapping[str, Any]) -> str | None:
    """The address to ask; None for the one that the SDK knows (Amazon's)."""
    given = str(options.get("endpoint_url") or "")
    known = provider_of(options).endpoint.format(region=region_of(options))
    return given or known or None


def style_of(options: Mapping[str, Any]) -> Style:
    """How buckets are addressed: "path", "virtual", or "auto" for the SDK's choice."""
    given = cast("Style", options.get("addressing_style") or "auto")
    return provider_of(options).style if given == "auto" else given


class S3Options(forms.Form):
    provider = forms.ChoiceField(
        choices=[("other", OTHER.label), *((slug, p.label) for slug, p in PROVIDERS.items())],
        initial="other",
        required=False,
        help_text="Sets what is known of it: address, region, checksums. What is given below wins.",
    )
    bucket = forms.CharField(max_length=255, help_text="A bucket that exists.")
    endpoint_url = forms.CharField(
        required=False,
        max_length=300,
        label="Endpoint URL",
        help_text="Empty for Amazon, Backblaze and Wasabi, where it follows from the region.",
    )
    region = forms.CharField(
        required=False,
        max_length=100,
        help_text="As the provider names it, such as eu-central-1; where it has none leave it empty.",
    )
    access_key = forms.CharField(max_length=200, help_text="The key's id.")
    secret_key = forms.CharField(
        max_length=200, widget=forms.PasswordInput, help_text="Kept sealed, never shown again."
    )
    addressing_style = forms.ChoiceField(
        choices=[("auto", "auto"), ("path", "path"), ("virtual", "virtual host")],
        initial="auto",
        help_text="Where the bucket's name stands in an address; auto is as the provider likes it.",
    )
    prefix = forms.CharField(  # type: ignore[assignment]
        required=False, max_length=200, help_text="Folder inside the bucket; empty for the whole bucket."
    )
    storage_class = forms.CharField(
        required=False,
        max_length=50,
        help_text="Of new objects, such as STANDARD_IA; empty for the bucket's own. Archives are refused.",
    )
    encryption = forms.ChoiceField(
        required=False,
        choices=[("", "the bucket's own"), ("AES256", "AES256"), ("aws:kms", "aws:kms")],
        help_text="What the provider does on top: all that it gets is sealed already.",
    )
    kms_key = forms.CharField(
        required=False, max_length=500, label="KMS key", help_text="For aws:kms: the key's id or ARN."
    )

    def clean_endpoint_url(self) -> str:
        return endpoint.clean_endpoint(str(self.cleaned_data["endpoint_url"]), "https://s3.example.com")

    def clean_region(self) -> str:
        region = str(self.cleaned_data["region"]).strip()
        if not all(part.isalnum() and part.isascii() for part in region.split("-") if part):
            raise forms.ValidationError("A region has letters, digits and hyphens only.")
        return region

    def clean_prefix(self) -> str:
        return endpoint.clean_prefix(str(self.cleaned_data["prefix"]))

    def clean_storage_class(self) -> str:
        name = str(self.cleaned_data["storage_class"]).strip().upper()
        if name in ARCHIVES:
            raise forms.ValidationError(
                "Objects in an archive cannot be read at once, so they are no copies."
            )
        return name

    def clean(self) -> dict[str, Any]:
        found = super().clean() or self.cleaned_data
        kind = provider_of(found)
        if not found.get("endpoint_url") and "endpoint_url" not in self.errors and kind is not OTHER:
            if not kind.endpoint:
                self.add_error("endpoint_url", f"Give the address, like {kind.example}.")
            elif "{region}" in kind.endpoint and not region_of(found):
                self.add_error("region", f"{kind.label} needs the region: it is a part of the address.")
        self._supported("storage_class", kind.storage_classes)
        self._supported("encryption", kind.encryption)
        if found.get("kms_key") and found.get("encryption") != "aws:kms":
            self.add_error("kms_key", "A key is used with aws:kms alone.")
        return found

    def _supported(self, name: str, supported: tuple[str, ...] | None) -> None:
        value, kind = self.cleaned_data.get(name), provider_of(self.cleaned_data)
        if value and supported is not None and value not in supported:
            words = f"it has {', '.join(supported)}" if supported else "leave this empty"
            self.add_error(name, f"{kind.label} does not have {value}; {words}.")

"""The options of the broker "dropbox"."""

from __future__ import annotations

import re
from typing import Any

from django import forms

from brokers.endpoint import clean_prefix

# Keys and tokens go into headers: a line break in one would show the whole in the error that it makes.
_WORD = re.compile(r"[\x21-\x7e]*\Z")
_FOLDER = re.compile(r"[A-Za-z0-9 ._/-]*\Z")


def clean_word(text: str) -> str:
    """A key, token or code without what surrounds it. Raises forms.ValidationError, which quotes nothing."""
    text = text.strip()
    if not _WORD.match(text):
        raise forms.ValidationError(
            "This has spaces or other characters that Dropbox does not use: copy it again."
        )
    return text


class DropboxOptions(forms.Form):
    app_key = forms.CharField(
        required=False, max_length=100, help_text="Of your app at Dropbox. Needed with a refresh token."
    )
    app_secret = forms.CharField(
        required=False,
        max_length=200,
        widget=forms.PasswordInput,
        help_text="May be left out where the refresh token comes from dropbox_connect.",
    )
    refresh_token = forms.CharField(
        required=False,
        max_length=1000,
        widget=forms.PasswordInput,
        help_text="What lasts. The command dropbox_connect, or the page that is linked here, obtains it.",
    )
    access_token = forms.CharField(
        required=False,
        max_length=4000,
        widget=forms.PasswordInput,
        help_text="Only for trying things out: it expires about four hours after Dropbox has made it, and then the "
        "broker goes offline. Not used where there is a refresh token.",
    )
    folder = forms.CharField(
        required=False,
        max_length=200,
        help_text="Folder inside the app's folder; made when missing. Empty for the whole app's folder.",
    )

    def clean_app_key(self) -> str:
        return clean_word(str(self.cleaned_data["app_key"]))

    def clean_app_secret(self) -> str:
        return clean_word(str(self.cleaned_data["app_secret"]))

    def clean_refresh_token(self) -> str:
        return clean_word(str(self.cleaned_data["refresh_token"]))

    def clean_access_token(self) -> str:
        return clean_word(str(self.cleaned_data["access_token"]))

    def clean_folder(self) -> str:
        folder = clean_prefix(str(self.cleaned_data["folder"]))
        if not _FOLDER.match(folder) or any(part != part.strip(" .") for part in folder.split("/")):
            raise forms.ValidationError(
                "Use letters, digits, spaces, dots, hyphens and underscores, with neither space nor dot around them."
            )
        return folder

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        if self.errors:
            return cleaned
        if cleaned.get("refresh_token"):
            cleaned["access_token"] = ""
            if not cleaned.get("app_key"):
                self.add_error("app_key", "Give the key of the app that the refresh token was made for.")
        elif not cleaned.get("access_token"):
            self.add_error("refresh_token", "Give a refresh token (or an access token, for some hours).")
        return cleaned

from __future__ import annotations

from django import forms

from accounts.signin import MAX_LENGTH


class SignInForm(forms.Form):
    username = forms.CharField(
        max_length=MAX_LENGTH,
        widget=forms.TextInput(
            attrs={
                "autocomplete": "username",
                "autocapitalize": "none",
                "spellcheck": "false",
                "autofocus": True,
            }
        ),
    )
    password = forms.CharField(
        max_length=MAX_LENGTH,
        strip=False,
        widget=forms.PasswordInput(attrs={"autocomplete": "current-password"}),
    )

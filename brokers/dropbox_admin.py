"""The operator's page that connects a Dropbox app: its key and secret, then the code. `brokers.dropbox_connect` does
it; what is known between the two steps travels sealed in the page."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.admin import ModelAdmin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.html import format_html
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters

from brokers import dropbox_connect
from brokers.dropbox_connect import Step
from brokers.errors import BrokerError
from brokers.models import Broker
from brokers.services import InvalidOptions

URL = "brokers_broker_dropbox"
PASSWORD = {"autocomplete": "new-password"}


class AppForm(forms.Form):
    app_key = forms.CharField(max_length=100, label="App key")
    app_secret = forms.CharField(
        required=False,
        max_length=200,
        label="App secret",
        widget=forms.PasswordInput(attrs=PASSWORD),
        help_text="Not shown again. May be left empty.",
    )


class CodeForm(forms.Form):
    code = forms.CharField(
        max_length=500,
        label="Code",
        widget=forms.TextInput(attrs={"autocomplete": "off"}),
        help_text="What Dropbox shows after Allow. It is good once, for a few minutes.",
    )


class PlaceForm(forms.Form):
    name = forms.CharField(max_length=100)
    domain = forms.CharField(
        max_length=100, initial="dropbox", help_text="What fails together: all brokers of one account."
    )
    folder = forms.CharField(
        required=False,
        max_length=200,
        help_text="Folder inside the app's folder; made when missing. Empty for the whole app's folder.",
    )


def link(slug: str, broker: Broker | None) -> str:
    """For the form of a broker on Dropbox: where this page is; "" for others."""
    if slug != dropbox_connect.DRIVER:
        return ""
    query = f"?broker={broker.pk}" if broker else ""
    # A refresh token needs the app's key; a broker without one has an access token alone.
    hours = " This broker has an access token alone: it goes offline within hours."
    return format_html(
        '<a href="{}{}">Connect with Dropbox</a>: obtains a refresh token, which lasts.{}',
        reverse(f"admin:{URL}"),
        query,
        hours if broker and not broker.options.get("app_key") else "",
    )


class Page:
    """One request to the page. `broker` is the one to get a new token, None for a new one."""

    def __init__(self, model_admin: ModelAdmin, request: HttpRequest) -> None:
        self._admin = model_admin
        self._request = request
        self._whose = f"user {request.user.pk}"
        number = request.GET.get("broker", "")
        self._broker: Broker | None = None
        if number:
            found = get_object_or_404(Broker, pk=number if number.isdecimal() else 0, driver="dropbox")
            if not model_admin.has_change_permission(request, found):
                raise PermissionDenied
            self._broker = found
        elif not model_admin.has_add_permission(request):
            raise PermissionDenied

    def respond(self) -> HttpResponse:
        if self._request.method != "POST":
            return self._ask_for_app(AppForm(initial=self._known()))
        if "state" not in self._request.POST:
            return self._begin()
        try:
            step = dropbox_connect.unseal(self._request.POST["state"], self._whose)
        except BrokerError as error:
            messages.error(self._request, str(error))
            return self._ask_for_app(AppForm(initial=self._known()))
        return self._finish(step)

    def _known(self) -> dict[str, Any]:
        return {"app_key": self._broker.options.get("app_key", "")} if self._broker else {}

    def _begin(self) -> HttpResponse:
        form = AppForm(self._request.POST)
        if form.is_valid():
            given = form.cleaned_data
            try:
                step = dropbox_connect.begin(given["app_key"], given["app_secret"], self._broker)
            except BrokerError as error:
                _tell(form, error)
            else:
                return self._ask_for_code(step, self._forms(step))
        return self._ask_for_app(form)

    def _finish(self, step: Step) -> HttpResponse:
        shown = self._forms(step, self._request.POST)
        if not all(form.is_valid() for form in shown):
            return self._ask_for_code(step, shown)
        given = {name: value for form in shown for name, value in form.cleaned_data.items()}
        try:
            step = dropbox_connect.exchange(step, given.pop("code", ""))
            if self._broker is not None:
                saved = dropbox_connect.give(step, self._broker.pk)
            else:
                saved = dropbox_connect.add(step, given["name"], given["domain"], folder=given["folder"])
        except BrokerError as error:
            # A code is good once: the step has the token by now, and it is not asked for again.
            shown = self._forms(step, self._request.POST)
            for form in shown:
                form.is_valid()
            _tell_first(shown, error)
            return self._ask_for_code(step, shown, error)
        messages.success(self._request, f"{saved.name} is connected: {saved.get_health_display()}")
        return HttpResponseRedirect(reverse("admin:brokers_broker_change", args=[saved.pk]))

    def _forms(self, step: Step, data: Any = None) -> list[forms.Form]:
        wanted: list[type[forms.Form]] = [] if step.refresh_token else [CodeForm]
        if self._broker is None:
            wanted.append(PlaceForm)
        return [form(data) for form in wanted]

    def _ask_for_app(self, form: forms.Form) -> HttpResponse:
        return self._render({"forms": [form], "scopes": dropbox_connect.SCOPES})

    def _ask_for_code(
        self, step: Step, shown: list[forms.Form], error: BrokerError | None = None
    ) -> HttpResponse:
        return self._render(
            {
                "forms": shown,
                "address": "" if step.refresh_token else step.address,
                "state": dropbox_connect.seal(step, self._whose),
                "problem": error if not shown else None,
            }
        )

    def _render(self, more: dict[str, Any]) -> HttpResponse:
        title = f"Connect {self._broker.name} anew" if self._broker else "Connect Dropbox"
        context = {
            **self._admin.admin_site.each_context(self._request),
            "title": title,
            "opts": self._admin.opts,
            **more,
        }
        return TemplateResponse(self._request, "admin/brokers/broker/dropbox_connect.html", context)


@never_cache
@sensitive_post_parameters()
def page(request: HttpRequest, model_admin: ModelAdmin) -> HttpResponse:
    return Page(model_admin, request).respond()


def _tell(form: forms.Form, error: BrokerError) -> None:
    _tell_first([form], error)


def _tell_first(shown: list[forms.Form], error: BrokerError) -> None:
    """Show an error beside the field that it is about, else above the first form."""
    if isinstance(error, InvalidOptions):
        for name, texts in error.errors.items():
            form = next((form for form in shown if name in form.fields), shown[0] if shown else None)
            if form is not None:
                form.add_error(name if name in form.fields else None, texts)
    elif shown:
        shown[0].add_error(None, f"{error.code.replace('_', ' ').capitalize()}: {error}")

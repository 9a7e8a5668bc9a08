"""Brokers on the operator's pages. Renders and parses; `brokers.services` changes rows."""

from __future__ import annotations

from functools import partial
from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.decorators import method_decorator
from django.views.decorators.csrf import csrf_protect
from django.views.decorators.debug import sensitive_post_parameters

from brokers import degraded, dropbox_admin, health, history, limits, registry, services
from brokers.errors import BrokerError
from brokers.forms import OPTION, form_for
from brokers.models import Broker, BrokerAlert, BrokerEvent
from brokers.state import words_of

SHOWN = [
    "state", "health", "health_reason", "health_detail", "health_since", "checked_at", "latency_ms",
    "p95", "error_rate", "degraded_since", "degraded_reason", "degraded_detail", "incident", "incident_since",
    "total", "used", "available", "held", "measured_at", "traffic_over_until", "blank_adopted_at", "marker",
]  # fmt: skip


@admin.register(Broker)
class BrokerAdmin(admin.ModelAdmin):
    list_display = [
        "name", "driver", "domain", "state", "p95", "error_rate", "room_gb", "weight", "enabled", "checked_at",
    ]  # fmt: skip
    list_filter = ["driver", "health", "enabled"]
    search_fields = ["name", "domain"]
    readonly_fields = ["driver", *SHOWN]
    actions = ["poll_now", "write_marker"]

    @admin.display(description="state", ordering="health")
    def state(self, broker: Broker) -> str:
        return words_of(broker)

    def _recent(self, broker: Broker) -> history.Counts:
        """The last quarter of an hour, read once for a row."""
        found: history.Counts | None = getattr(broker, "_recent_counts", None)
        if found is None:
            found = history.recent([broker.pk], degraded.WINDOW)[broker.pk]
            broker._recent_counts = found  # type: ignore[attr-defined]
        return found

    @admin.display(description="p95 of reads")
    def p95(self, broker: Broker) -> str:
        seconds = self._recent(broker).quantile("get", 0.95)
        return "no reads" if seconds is None else f"{seconds * 1000:.0f} ms"

    @admin.display(description="errors")
    def error_rate(self, broker: Broker) -> str:
        counts = self._recent(broker)
        return f"{counts.error_rate:.1%} of {counts.calls}" if counts.calls else "no calls"

    @admin.display(description="room", ordering="available")
    def room_gb(self, broker: Broker) -> str:
        return "not told" if broker.room is None else f"{broker.room / 1e9:.1f} GB"

    # -- the form -----------------------------------------------------------------------------------------

    def get_form(
        self, request: HttpRequest, obj: Broker | None = None, change: bool = False, **kwargs: Any
    ) -> Any:
        form = form_for(obj.driver if obj else request.GET["driver"], obj)
        if record := self.recorder(request):
            form.record = staticmethod(record)
        return form

    def recorder(self, request: HttpRequest) -> services.Record | None:
        """What writes the audit row of a change; brokers alone know of no audit trail."""
        return None

    def get_fieldsets(self, request: HttpRequest, obj: Broker | None = None) -> Any:
        slug = obj.driver if obj else request.GET["driver"]
        options = [OPTION + name for name in registry.get(slug).form.base_fields]
        own = ["name", "domain", "weight"]
        sets: list[Any] = [(None, {"fields": ["driver", *own, "enabled"] if obj else [*own, "adopt"]})]
        if options:
            more = {"fields": options, "description": dropbox_admin.link(slug, obj)}
            sets.append((f"Options of {registry.get(slug).label}", more))
        sets.append(("Limits", {"fields": list(limits.FIELDS)}))
        if obj:
            sets.append(("Health", {"fields": SHOWN}))
        return sets

    def get_readonly_fields(self, request: HttpRequest, obj: Broker | None = None) -> Any:
        return self.readonly_fields if obj else []

    def has_delete_permission(self, request: HttpRequest, obj: Broker | None = None) -> bool:
        # Its replicas have to go elsewhere first: that is the console's drain, not a delete.
        return False

    def get_urls(self) -> list[URLPattern]:
        page = self.admin_site.admin_view(partial(dropbox_admin.page, model_admin=self))
        return [path("dropbox/", page, name=dropbox_admin.URL), *super().get_urls()]

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        if "driver" not in request.GET:
            return self._choose_driver(request)
        return super().add_view(request, form_url, extra_context)

    def _choose_driver(self, request: HttpRequest) -> HttpResponse:
        if not self.has_add_permission(request):
            raise PermissionDenied
        context = {
            **self.admin_site.each_context(request),
            "title": "Connect a broker",
            "opts": self.opts,
            "choices": registry.choices(),
        }
        return TemplateResponse(request, "admin/brokers/broker/choose_driver.html", context)

    # Django wraps this view in a transaction; connecting a broker talks to the provider, which must not happen
    # inside one. The services keep their own.
    @method_decorator(sensitive_post_parameters())
    @method_decorator(csrf_protect)
    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: Any = None,
    ) -> Any:
        try:
            return self._changeform_view(request, object_id, form_url, extra_context)  # type: ignore[attr-defined]
        except BrokerError as error:
            self.message_user(request, f"{error.code.replace('_', ' ')}: {error}", messages.ERROR)
            return HttpResponseRedirect(reverse("admin:brokers_broker_changelist"))

    def save_model(self, request: HttpRequest, obj: Broker, form: Any, change: bool) -> None:
        """The form has saved by the services already; take over what the row is now."""
        obj.__dict__.update(form.saved.__dict__)

    # -- actions ------------------------------------------------------------------------------------------

    @admin.action(description="Poll now", permissions=["change"])
    def poll_now(self, request: HttpRequest, brokers: QuerySet[Broker]) -> None:
        for broker in brokers:
            polled = health.poll(broker.pk)
            text = f"{polled.name}: {self.state(polled)}" if polled.enabled else f"{polled.name} is disabled"
            self.message_user(request, text, messages.SUCCESS if polled.writable else messages.WARNING)

    @admin.action(description="Write the marker again", permissions=["change"])
    def write_marker(self, request: HttpRequest, brokers: QuerySet[Broker]) -> None:
        for broker in brokers:
            try:
                polled = services.write_marker(broker.pk, record=self.recorder(request))
            except BrokerError as error:
                self.message_user(request, f"{broker.name}: {error}", messages.ERROR)
            else:
                self.message_user(request, f"{broker.name}: marker written; {self.state(polled)}")


class _ReadOnly(admin.ModelAdmin):
    """Rows to look at."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(BrokerEvent)
class BrokerEventAdmin(_ReadOnly):
    list_display = ["at", "broker", "kind", "detail"]
    list_filter = ["kind", "broker"]
    list_select_related = ["broker"]
    date_hierarchy = None


@admin.register(BrokerAlert)
class BrokerAlertAdmin(_ReadOnly):
    list_display = ["at", "name", "before", "after", "reason", "channel", "attempts", "sent_at", "failure"]
    list_filter = ["channel", "after"]

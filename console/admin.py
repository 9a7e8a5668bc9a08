"""The brokers' page of the console: what moves bytes, and what is audited, of which brokers alone know nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import path, reverse
from django.utils.html import format_html

from brokers import trial
from brokers.admin import BrokerAdmin
from brokers.errors import BrokerError
from brokers.models import Broker
from brokers.services import Record
from console import brokers, operations, pages
from console.operations import Who
from console.pages import who
from replication import drain
from replication.drain import Progress
from replication.removal import RemovalRefused

admin.site.unregister(Broker)


@admin.register(Broker)
class OperatedBrokerAdmin(BrokerAdmin):
    list_display = [*BrokerAdmin.list_display, "drains", "objects"]
    actions = [
        *BrokerAdmin.actions, "test", "enable", "disable", "drain", "undo_drain", "remove", "rebalance",
        "stop_rebalance",
    ]  # fmt: skip

    def recorder(self, request: HttpRequest) -> Record:
        return brokers.recorder(who(request))

    @admin.action(description="Test: write, read and delete a small object", permissions=["change"])
    def test(self, request: HttpRequest, chosen: QuerySet[Broker]) -> None:
        for broker in chosen:
            outcome = brokers.test(broker.pk, who(request))
            level = messages.SUCCESS if outcome.ok else messages.ERROR
            self.message_user(request, trial.words_of(outcome), level)

    @admin.action(description="Enable", permissions=["change"])
    def enable(self, request: HttpRequest, chosen: QuerySet[Broker]) -> None:
        for broker in chosen:
            enabled = brokers.set_enabled(broker.pk, True, who(request))
            level = messages.SUCCESS if enabled.readable else messages.WARNING
            self.message_user(request, f"{enabled.name} is enabled: {self.state(enabled)}", level)

    @admin.action(description="Disable: neither read nor written", permissions=["change"])
    def disable(self, request: HttpRequest, chosen: QuerySet[Broker]) -> None:
        for broker in chosen:
            brokers.set_enabled(broker.pk, False, who(request))
            self.message_user(request, f"{broker.name} is disabled")

    def get_urls(self) -> list[Any]:
        def view(request: HttpRequest, broker_id: int) -> HttpResponse:
            return pages.browse_broker(request, self.admin_site, broker_id)

        browse = path(
            "<int:broker_id>/objects/", self.admin_site.admin_view(view), name="brokers_broker_objects"
        )
        return [browse, *super().get_urls()]

    @admin.display(description="objects")
    def objects(self, broker: Broker) -> str:
        return format_html(
            '<a href="{}">browse</a>', reverse("admin:brokers_broker_objects", args=[broker.pk])
        )

    @admin.display(description="drain")
    def drains(self, broker: Broker) -> str:
        return drain.words_of(drain.progress(broker.pk)) if broker.draining else ""

    @admin.action(description="Drain: move everything to the other brokers", permissions=["change"])
    def drain(self, request: HttpRequest, chosen: QuerySet[Broker]) -> None:
        self._each(request, chosen, operations.begin_drain)

    @admin.action(description="Drain: undo", permissions=["change"])
    def undo_drain(self, request: HttpRequest, chosen: QuerySet[Broker]) -> None:
        self._each(request, chosen, operations.undo_drain)

    def _each(
        self, request: HttpRequest, chosen: QuerySet[Broker], act: Callable[[int, Who], Progress]
    ) -> None:
        for broker in chosen:
            progress = act(broker.pk, who(request))
            level = messages.WARNING if progress.blocked and progress.draining else messages.SUCCESS
            self.message_user(request, drain.words_of(progress), level)

    @admin.action(description="Remove, when empty", permissions=["change"])
    def remove(self, request: HttpRequest, chosen: QuerySet[Broker]) -> None:
        for broker in chosen:
            try:
                operations.remove(broker.pk, who(request))
            except (RemovalRefused, BrokerError) as error:
                self.message_user(request, f"{broker.name}: {error}", messages.ERROR)
            else:
                self.message_user(request, f"{broker.name} was removed")

    @admin.action(description="Rebalance all brokers", permissions=["change"])
    def rebalance(self, request: HttpRequest, chosen: QuerySet[Broker]) -> None:
        outlook = operations.begin_rebalance(who(request))
        text = (
            f"{outlook.moves} copies ({outlook.bytes} bytes) will move" if outlook.moves else "nothing moves"
        )
        self.message_user(request, f"{text}. {outlook.blocked}".strip())

    @admin.action(description="Rebalance: stop", permissions=["change"])
    def stop_rebalance(self, request: HttpRequest, chosen: QuerySet[Broker]) -> None:
        operations.stop_rebalance(who(request))
        self.message_user(request, "the rebalance was stopped")

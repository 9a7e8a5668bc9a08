"""Draining and rebalancing on the brokers' page of the console: they move what brokers alone know nothing of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest

from accounts.models import User
from brokers.admin import BrokerAdmin
from brokers.errors import BrokerError
from brokers.models import Broker
from console import operations
from console.operations import Who
from replication import drain
from replication.drain import Progress
from replication.removal import RemovalRefused

admin.site.unregister(Broker)


@admin.register(Broker)
class OperatedBrokerAdmin(BrokerAdmin):
    list_display = [*BrokerAdmin.list_display, "drains"]
    actions = [
        *BrokerAdmin.actions,
        "drain",
        "undo_drain",
        "remove",
        "rebalance",
        "stop_rebalance",
        "confirm_loss",
    ]

    @admin.display(description="drain")
    def drains(self, broker: Broker) -> str:
        return drain.words_of(drain.progress(broker.pk)) if broker.draining else ""

    @admin.action(description="Drain: move everything to the other brokers", permissions=["change"])
    def drain(self, request: HttpRequest, brokers: QuerySet[Broker]) -> None:
        self._each(request, brokers, operations.begin_drain)

    @admin.action(description="Drain: undo", permissions=["change"])
    def undo_drain(self, request: HttpRequest, brokers: QuerySet[Broker]) -> None:
        self._each(request, brokers, operations.undo_drain)

    def _each(
        self, request: HttpRequest, brokers: QuerySet[Broker], act: Callable[[int, Who], Progress]
    ) -> None:
        for broker in brokers:
            progress = act(broker.pk, _who(request))
            level = messages.WARNING if progress.blocked and progress.draining else messages.SUCCESS
            self.message_user(request, drain.words_of(progress), level)

    @admin.action(description="Remove, when empty", permissions=["change"])
    def remove(self, request: HttpRequest, brokers: QuerySet[Broker]) -> None:
        for broker in brokers:
            try:
                operations.remove(broker.pk, _who(request))
            except (RemovalRefused, BrokerError) as error:
                self.message_user(request, f"{broker.name}: {error}", messages.ERROR)
            else:
                self.message_user(request, f"{broker.name} was removed")

    @admin.action(description="Confirm: what is missing is lost", permissions=["change"])
    def confirm_loss(self, request: HttpRequest, brokers: QuerySet[Broker]) -> None:
        for broker in brokers:
            if not broker.incident:
                self.message_user(request, f"{broker.name} has no incident", messages.WARNING)
                continue
            row = operations.confirm_loss(broker.pk, _who(request))
            self.message_user(request, f"{row.name}: what is missing counts as lost; {self.state(row)}")

    @admin.action(description="Rebalance all brokers", permissions=["change"])
    def rebalance(self, request: HttpRequest, brokers: QuerySet[Broker]) -> None:
        outlook = operations.begin_rebalance(_who(request))
        text = (
            f"{outlook.moves} copies ({outlook.bytes} bytes) will move" if outlook.moves else "nothing moves"
        )
        self.message_user(request, f"{text}. {outlook.blocked}".strip())

    @admin.action(description="Rebalance: stop", permissions=["change"])
    def stop_rebalance(self, request: HttpRequest, brokers: QuerySet[Broker]) -> None:
        operations.stop_rebalance(_who(request))
        self.message_user(request, "the rebalance was stopped")


def _who(request: HttpRequest) -> Who:
    user: Any = request.user
    return Who(user if isinstance(user, User) else None, request)

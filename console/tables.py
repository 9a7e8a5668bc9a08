"""Which rows a snapshot of the metadata holds. Every model is either here or on the list of what is left out; a test
fails for one that is on neither."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from django.apps import apps
from django.db import models
from django.db.models import Q

# In the order in which they are written; what a row refers to may come later.
TABLES: tuple[str, ...] = (
    "contenttypes.ContentType",
    "auth.Permission",
    "auth.Group",
    "auth.Group_permissions",
    "accounts.Plan",
    "accounts.User",
    "accounts.User_groups",
    "accounts.User_user_permissions",
    "accounts.Token",
    "accounts.AuditEvent",
    "admin.LogEntry",
    "brokers.MasterKeyCheck",
    "brokers.Broker",
    "brokers.BrokerEvent",
    "replication.Policy",
    "replication.Content",
    "replication.Segment",
    "replication.Replica",
    "replication.Event",
    "vfs.Node",
    "vfs.Version",
    "console.Job",
    "console.ImportedFile",
)

LEFT_OUT: dict[str, str] = {
    "accounts.SignInAttempts": "counts of the last minutes; they begin anew",
    "sessions.Session": "people sign in again",
    "vfs.Upload": "an upload in progress ends with the process that receives it",
    "brokers.BrokerSample": "charts and the month's traffic begin anew",
    "brokers.BrokerAlert": "each broker's state is told by the database that is used",
    "replication.Orphan": "found anew by listing the brokers",
    "replication.Epoch": "the snapshot's own number says it",
    "replication.Snapshot": "found anew by listing the brokers",
    "replication.SnapshotCopy": "found anew by listing the brokers",
}

# What nobody has ever seen comes back, where it is complete, from the objects themselves.
OPEN = "open"
ONLY: dict[str, Q] = {
    "replication.Content": ~Q(state=OPEN),
    "replication.Segment": ~Q(content__state=OPEN),
    "replication.Replica": ~Q(segment__content__state=OPEN),
}


@dataclass(frozen=True)
class Table:
    """One model's rows as lists of field values."""

    label: str

    @cached_property
    def model(self) -> type[models.Model]:
        return apps.get_model(self.label)

    @cached_property
    def fields(self) -> list[models.Field]:
        return list(self.model._meta.concrete_fields)

    @cached_property
    def names(self) -> list[str]:
        return [field.attname for field in self.fields]

    def rows(self) -> Iterator[tuple[object, ...]]:
        """All rows that belong into a snapshot, streamed."""
        found = self.model._base_manager.filter(ONLY.get(self.label, Q()))
        return found.order_by("pk").values_list(*self.names).iterator(chunk_size=2000)


def tables() -> list[Table]:
    return [Table(label) for label in TABLES]


def all_models() -> set[str]:
    """The labels of every model of the product, many-to-many tables included."""
    return {m._meta.label for m in apps.get_models(include_auto_created=True) if m._meta.managed}

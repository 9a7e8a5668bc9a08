"""Pages of the console beside the admin site's own: they parse and render."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.contrib.admin import AdminSite
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.http import urlencode

from accounts.models import User
from brokers.errors import BrokerError
from brokers.models import Broker
from console import brokers, browse, operations
from console.operations import Who
from replication.removal import RemovalRefused
from vfs.errors import BadCursor

PAGE = 100


def who(request: HttpRequest) -> Who:
    user: Any = request.user
    return Who(user if isinstance(user, User) else None, request)


def browse_broker(request: HttpRequest, site: AdminSite, broker_id: int) -> HttpResponse:
    """The raw objects of a broker; chosen orphans are deleted."""
    broker = get_object_or_404(Broker, pk=broker_id)
    if not request.user.has_perm("brokers.view_broker"):
        raise PermissionDenied
    may_delete = request.user.has_perm("replication.delete_orphan")
    if request.method == "POST":
        if not may_delete:
            raise PermissionDenied
        _delete_orphans(request, broker)
        return HttpResponseRedirect(request.get_full_path())
    prefix, kind = request.GET.get("prefix", ""), request.GET.get("kind", "")
    if kind not in browse.KINDS:
        kind = ""
    found, failed = browse.Page([], None), ""
    try:
        found = browse.page(
            broker, prefix=prefix, kind=kind, cursor=request.GET.get("cursor") or None, limit=PAGE
        )
    except BrokerError as error:
        failed = f"{error.code.replace('_', ' ')}: {error}"
    except BadCursor:
        failed = "This page is not there any more; begin at the first one."
    query = {"prefix": prefix, "kind": kind}
    context = {
        **site.each_context(request),
        "title": f"Objects of {broker.name}",
        "opts": Broker._meta,
        "broker": broker,
        "entries": found.entries,
        "failed": failed,
        "prefix": prefix,
        "kind": kind,
        "kinds": browse.KINDS,
        "first": urlencode(query) if request.GET.get("cursor") else "",
        "next": urlencode({**query, "cursor": found.cursor}) if found.cursor else "",
        "may_delete": may_delete and any(entry.kind == browse.ORPHAN for entry in found.entries),
    }
    return TemplateResponse(request, "admin/brokers/broker/browse.html", context)


def remove_broker(request: HttpRequest, site: AdminSite, broker_id: int) -> HttpResponse:
    """What stands against removing a broker, and what is lost; it is removed by its name, typed once more."""
    broker = get_object_or_404(Broker, pk=broker_id)
    if not request.user.has_perm("brokers.delete_broker"):
        raise PermissionDenied
    refused = ""
    if request.method == "POST":
        try:
            if "force" in request.POST:
                operations.remove_by_force(broker.pk, request.POST.get("name", ""), who(request))
            else:
                operations.remove(broker.pk, who(request), leave_objects="leave_objects" in request.POST)
        except (RemovalRefused, BrokerError) as error:
            refused = str(error)
        else:
            messages.success(request, f"{broker.name} was removed.")
            return HttpResponseRedirect(reverse("admin:brokers_broker_changelist"))
    context = {
        **site.each_context(request),
        "title": f"Remove {broker.name}",
        "opts": Broker._meta,
        "broker": broker,
        "standing": operations.look_at_removal(broker.pk),
        "refused": refused,
    }
    return TemplateResponse(request, "admin/brokers/broker/remove.html", context)


def _delete_orphans(request: HttpRequest, broker: Broker) -> None:
    chosen = request.POST.getlist("locator")[:PAGE]
    if not chosen:
        messages.warning(request, "No object was chosen.")
        return
    outcomes = brokers.delete_orphans(broker.pk, chosen, who(request))
    deleted = sum(outcome.deleted for outcome in outcomes)
    if deleted:
        messages.success(request, f"{deleted} of {len(outcomes)} orphans were deleted.")
    for outcome in outcomes:
        if not outcome.deleted:
            messages.warning(request, f"{outcome.locator} was left alone: {outcome.detail}.")

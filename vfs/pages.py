"""The drive's pages. They work without JavaScript; static/src/drive.js adds progress and freshness."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlencode

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET, require_POST

from accounts import quota
from accounts.models import User
from accounts.origin import is_cross_site
from replication.contents import CopyStatus
from vfs import trash, tree
from vfs.access import get_node, get_trashed, locate
from vfs.amounts import amount
from vfs.api.problems import describe
from vfs.api.receive import receive_form
from vfs.errors import BadCursor, NodeNotFound, RootNode, VfsError
from vfs.listing import Shown, show, show_children
from vfs.models import Node
from vfs.names import join_path, split_path, validate_name
from vfs.notices import notices
from vfs.tree import Place

PILLS = {"ok": "ok", "catching_up": "busy", "degraded": "warn", "damaged": "bad"}


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a listing."""

    shown: Shown
    url: str

    @property
    def size(self) -> str:
        return "" if self.shown.size is None else amount(self.shown.size)

    @property
    def pill(self) -> str:
        return PILLS[self.shown.copies.state] if self.shown.copies else ""


def _blank(kind: str) -> Row:
    """An empty line, which drive.js fills."""
    moment = datetime.fromtimestamp(0, UTC)
    copies = CopyStatus(0, 0, (), "catching_up") if kind == Node.Kind.FILE else None
    return Row(Shown(uuid.UUID(int=0), kind, "", "", modified=moment, created=moment, copies=copies), "")


def _user(request: HttpRequest) -> User:
    assert isinstance(request.user, User)  # noqa: S101 - login_required let it pass
    return request.user


def folder_url(names: tuple[str, ...]) -> str:
    return reverse("vfs:dashboard") + "".join(f"{quote(name, safe='')}/" for name in names)


def _row(shown: Shown, names: tuple[str, ...]) -> Row:
    return Row(shown, folder_url(names) if shown.is_folder else f"/api/v1/files{quote(join_path(names))}")


@require_GET
@never_cache
@login_required
def dashboard(request: HttpRequest, folder: str = "") -> HttpResponse:
    """A folder: what is in it, and how its copies stand."""
    user = _user(request)
    try:
        names = split_path(folder, folder=True)
        node = tree.resolve(user, names) if names else tree.root_of(user)
        found = tree.children(node, cursor=request.GET.get("cursor"))
    except VfsError as error:
        raise Http404(str(error)) from None
    if not node.is_folder:
        raise Http404("This is a file.")
    place = Place(node, names)
    rows = [_row(s, (*names, s.name)) for s in show_children(place, found.nodes)]
    context = {
        "folder": node,
        "crumbs": [(name, folder_url(names[: i + 1])) for i, name in enumerate(names)],
        "title": names[-1] if names else "My drive",
        "here": folder_url(names),
        "files_url": f"/api/v1/files{quote(join_path(names)).rstrip('/')}/",
        "rows": rows,
        "cursor": request.GET.get("cursor", ""),
        "next": urlencode({"cursor": found.cursor}) if found.cursor else "",
        "notices": notices(),
        "blank_folder": _blank(Node.Kind.FOLDER),
        "blank_file": _blank(Node.Kind.FILE),
        **_usage(user),
    }
    return render(request, "vfs/dashboard.html", context)


def _usage(user: User) -> dict[str, Any]:
    usage = quota.usage(user)
    taken = usage.used + usage.reserved
    return {
        "usage": usage,
        "usage_max": max(1, usage.limit),
        "usage_text": f"{amount(usage.used)} of {amount(usage.limit)} used",
        "usage_full": taken * 10 >= usage.limit * 9,
    }


@require_GET
@never_cache
@login_required
def trash_page(request: HttpRequest) -> HttpResponse:
    """What was deleted."""
    user = _user(request)
    try:
        found = tree.trash_of(user, cursor=request.GET.get("cursor"))
    except BadCursor as error:
        raise Http404(str(error)) from None
    rows = [Row(s, "") for s in show(map(locate, found.nodes))]
    following = urlencode({"cursor": found.cursor}) if found.cursor else ""
    return render(request, "vfs/trash.html", {"rows": rows, "next": following, **_usage(user)})


@require_POST
@login_required
def new_folder(request: HttpRequest, node_id: uuid.UUID) -> HttpResponse:
    """Make a folder in this one."""
    user = _user(request)
    parent = _folder(user, node_id)
    try:
        name = validate_name(request.POST.get("name", ""))
        tree.create_folder(user, user, (*parent.names, name), request=request)
    except VfsError as error:
        messages.error(request, str(error))
    else:
        messages.success(request, f"The folder “{name}” was made.")
    return redirect(folder_url(parent.names))


@csrf_exempt  # checked below by the request's headers: the middleware would read the whole body for its token
@require_POST
def upload(request: HttpRequest, node_id: uuid.UUID) -> HttpResponse:
    """Files from a form, for browsers without JavaScript."""
    if is_cross_site(request):
        raise PermissionDenied("This request comes from another site.")
    if not request.user.is_authenticated:
        return redirect("accounts:sign-in")
    user = _user(request)
    parent = _folder(user, node_id)
    try:
        outcomes = receive_form(user, parent.node, request)
    except Exception as error:
        known = describe(error)
        if known is None:
            raise
        # What the database did not answer may have been done all the same.
        unknown = known[0]["code"] == "database_unavailable"
        words = "Look whether your files are here." if unknown else "Nothing was uploaded."
        messages.error(request, f"{words} {known[0]['detail']}")
    else:
        names = ", ".join(f"“{outcome.node.name}”" for outcome in outcomes[:5])
        more = f" and {len(outcomes) - 5} more" if len(outcomes) > 5 else ""
        messages.success(request, f"Uploaded: {names}{more}.")
    return redirect(folder_url(parent.names))


@require_POST
@login_required
def delete(request: HttpRequest, node_id: uuid.UUID) -> HttpResponse:
    """To the trash."""
    user = _user(request)
    try:
        place = get_node(user, node_id)
        trash.trash(user, user, node_id, request=request)
    except (NodeNotFound, RootNode) as error:
        raise Http404(str(error)) from None
    messages.success(request, f"“{place.node.name}” was moved to the trash.")
    return redirect(folder_url(place.names[:-1]))


@require_POST
@login_required
def purge(request: HttpRequest, node_id: uuid.UUID) -> HttpResponse:
    """Out of the trash, for good."""
    user = _user(request)
    try:
        place = get_trashed(user, node_id)
        trash.purge(user, user, node_id, request=request)
    except NodeNotFound as error:
        raise Http404(str(error)) from None
    messages.success(request, f"“{place.node.name}” was deleted for good.")
    return redirect("vfs:trash-page")


def _folder(user: User, node_id: uuid.UUID) -> Place:
    try:
        place = get_node(user, node_id)
    except NodeNotFound as error:
        raise Http404(str(error)) from None
    if not place.node.is_folder:
        raise Http404("This is a file.")
    return place

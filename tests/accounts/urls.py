"""The doors of accounts, with stand-ins for the drive and for API views."""

from typing import Any

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.urls import include, path
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView, exception_handler

from accounts.authentication import SessionAuthentication, TokenAuthentication
from accounts.permissions import HasScope


class Probe(APIView):
    authentication_classes = [TokenAuthentication, SessionAuthentication]
    permission_classes = [HasScope]
    scopes = {"GET": "files:read", "PUT": "files:write", "POST": "files:write"}

    def get(self, request: Request) -> Response:
        return Response({"user": request.user.get_username()})

    put = post = delete = get

    def get_exception_handler(self) -> Any:
        return exception_handler


class Open(Probe):
    permission_classes = [AllowAny]


def dashboard(request: HttpRequest) -> HttpResponse:
    return HttpResponse(f"drive of {request.user}")


def broken(request: HttpRequest) -> HttpResponse:
    raise RuntimeError("broken on purpose")


urlpatterns = [
    path("", include("accounts.urls")),
    path("admin/", admin.site.urls),
    path("", include(([path("dashboard/", dashboard, name="dashboard")], "vfs"))),
    path("probe", Probe.as_view()),
    path("open", Open.as_view()),
    path("broken", broken),
]

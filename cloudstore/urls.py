"""Where each address leads."""

from django.contrib import admin
from django.urls import include, path, re_path

from cloudstore.healthz import healthz
from vfs.api.base import NotFoundView

handler500 = "cloudstore.outage.server_error"
urlpatterns = [
    path("healthz", healthz, name="healthz"),
    path("", include("accounts.urls")),  # before the admin site: it takes the place of its sign-in page
    path("admin/", admin.site.urls),
    path("", include("vfs.urls")),
    path("api/v1/", include(("console.api.urls", "console"))),
    re_path(r"^api/v1/", NotFoundView.as_view()),  # the API's own 404, after everything else below it
]

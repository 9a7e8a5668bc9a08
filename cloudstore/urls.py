"""Where each address leads."""

from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("", include("accounts.urls")),  # before the admin site: it takes the place of its sign-in page
    path("admin/", admin.site.urls),
    path("", include("vfs.urls")),
]

"""The drive's pages and API."""

from django.urls import URLPattern, URLResolver

app_name = "vfs"
urlpatterns: list[URLPattern | URLResolver] = []

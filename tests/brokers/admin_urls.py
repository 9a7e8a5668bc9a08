"""The admin site and the sign-in page it leads to, without the drive."""

from django.contrib import admin
from django.urls import include, path

urlpatterns = [path("", include("accounts.urls")), path("admin/", admin.site.urls)]

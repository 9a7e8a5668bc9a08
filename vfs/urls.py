"""The drive's pages and API."""

from django.urls import include, path

from vfs import pages

app_name = "vfs"
urlpatterns = [
    path("api/v1/", include("vfs.api.urls")),
    path("dashboard/", pages.dashboard, name="dashboard"),
    path("dashboard/<path:folder>", pages.dashboard, name="folder"),
    path("folders/<uuid:node_id>/new", pages.new_folder, name="new-folder"),
    path("folders/<uuid:node_id>/upload", pages.upload, name="upload"),
    path("nodes/<uuid:node_id>/delete", pages.delete, name="delete"),
    path("trash/", pages.trash_page, name="trash-page"),
    path("trash/<uuid:node_id>/purge", pages.purge, name="purge"),
]

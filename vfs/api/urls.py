"""The API's addresses, below /api/v1/."""

from django.urls import path, register_converter
from django.urls.converters import StringConverter
from drf_spectacular.views import SpectacularJSONAPIView

from vfs.api import nodes
from vfs.api.files import FileView


class AnyPath(StringConverter):
    """Whatever follows, line breaks too: what is wrong with it is for vfs/names.py to say."""

    regex = "(?s:.*)"


register_converter(AnyPath, "any")

urlpatterns = [
    path("files/<any:path>", FileView.as_view(), name="file"),
    path("files", FileView.as_view(schema=None), name="file"),
    path("nodes/root", nodes.RootView.as_view(), name="root"),
    path("nodes/<uuid:node_id>", nodes.NodeView.as_view(), name="node"),
    path("nodes/<uuid:node_id>/children", nodes.ChildrenView.as_view(), name="children"),
    path("nodes/<uuid:node_id>/files", nodes.FormUploadView.as_view(), name="node-files"),
    path("folders", nodes.FoldersView.as_view(), name="folders"),
    path("trash", nodes.TrashView.as_view(), name="trash"),
    path("trash/<uuid:node_id>", nodes.TrashedView.as_view(), name="trashed"),
    path("account", nodes.AccountView.as_view(), name="account"),
    path("schema/", SpectacularJSONAPIView.as_view(), name="schema"),
]

from django.apps import AppConfig


class VfsConfig(AppConfig):
    name = "vfs"
    verbose_name = "Drive"
    default_auto_field = "django.db.models.BigAutoField"

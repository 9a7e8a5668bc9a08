"""The Celery application. Tasks only make work sooner: the database alone says what is due."""

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cloudstore.settings")
app = Celery("cloudstore")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()

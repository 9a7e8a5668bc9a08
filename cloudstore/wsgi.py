"""The WSGI entry point; the byte paths need WSGI with threads (docs/decisions/)."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cloudstore.settings")
application = get_wsgi_application()

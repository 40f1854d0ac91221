"""The door for web servers: `gunicorn -k uvicorn_worker.UvicornWorker cds.asgi:application`."""

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cds.settings")
application = get_asgi_application()

"""The door for web servers: `gunicorn -k cds.web_worker.Worker cds.asgi:application`."""

import gc
import logging
import os
from typing import Any

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cds.settings")
_pages = get_asgi_application()

from cds.hooks.serving import HookServer, is_hook_call  # noqa: E402  (needs Django to be set up)
from cds.logs import without_query  # noqa: E402

logging.getLogger("uvicorn.access").addFilter(without_query)
_hooks = HookServer()
gc.collect()
gc.freeze()  # what is loaded by now stays: no collection walks it again
gc.set_threshold(10_000, 20, 10)  # a call makes a few thousand objects, and hardly one of them is in a cycle


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Hook calls go their own, shorter way; everything else is Django's."""
    await (_hooks if is_hook_call(scope) else _pages)(scope, receive, send)

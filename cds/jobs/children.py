"""A process of our own beside this one: Django set up in it, and ended when the one that started it is gone.

A spawned process imports the module of the function it is to begin with before anything else, and modules
with models cannot be imported before Django is set up. So this one imports nothing of Django's.
"""

from __future__ import annotations

import multiprocessing
import os
import threading


def begin() -> None:
    """Set up Django here, and end this process with its parent: what it does nobody waits for any more."""
    import django

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cds.settings")
    django.setup()
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()

"""How many examples, and how each is isolated."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.db import transaction
from hypothesis import HealthCheck, Phase, settings

EXAMPLES = int(os.environ.get("TESSERA_FUZZ_EXAMPLES", "40"))


def many(test: Callable[..., Any]) -> Callable[..., Any]:
    """As many examples as asked for, of any size and duration; failures are shrunk."""
    return settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
    )(test)


@contextmanager
def forgotten() -> Iterator[None]:
    """What an example writes to the database is gone after it."""
    with transaction.atomic():
        yield
        transaction.set_rollback(True)

"""How many examples, and how each is isolated."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.db import transaction
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("TESSERA_FUZZ_EXAMPLES", "60"))
SEEDS = st.integers(
    0, 2**64 - 1
)  # of an example: drawing every piece of it from Hypothesis takes ten times as long


def many(test: Callable[..., Any], *, share: float = 1.0) -> Callable[..., Any]:
    """As many examples as asked for (or a share of them), of any size and duration."""
    return settings(
        max_examples=max(5, int(EXAMPLES * share)),
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
    )(test)


def few(test: Callable[..., Any]) -> Callable[..., Any]:
    """A twentieth: for what writes to database and store, twice, and for JSON drawn piece by piece."""
    return many(test, share=0.05)


def partly(test: Callable[..., Any]) -> Callable[..., Any]:
    """A fifth: for what takes several calls."""
    return many(test, share=0.2)


@contextmanager
def forgotten() -> Iterator[None]:
    """What an example writes to the database is gone after it."""
    with transaction.atomic():
        yield
        transaction.set_rollback(True)

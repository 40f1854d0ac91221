"""Floating point while a network runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def without_denormals() -> Iterator[None]:
    """Numbers below 1e-38 count as zero: they slow CNNs many times over, and tell nothing.

    The processor's setting is put back to what IEEE 754 says afterwards, for whoever else computes here.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)

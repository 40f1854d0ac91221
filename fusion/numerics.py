"""Floating point while a network runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_DEPTH = threading.local()


@contextmanager
def without_denormals() -> Iterator[None]:
    """Numbers below 1e-38 count as zero: they slow CNNs many times over, and tell nothing.

    The processor's setting is put back to what IEEE 754 says afterwards, for whoever else computes here; one
    such block within another leaves that to the outer one. The setting is the thread's own.
    """
    _DEPTH.count = getattr(_DEPTH, "count", 0) + 1
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        _DEPTH.count -= 1
        if not _DEPTH.count:
            torch.set_flush_denormal(False)


@contextmanager
def computing(threads: int) -> Iterator[None]:
    """So many torch threads, and no denormals, for a while; the caller's number is put back."""
    before = torch.get_num_threads()
    with without_denormals():
        torch.set_num_threads(max(1, threads))
        try:
            yield
        finally:
            torch.set_num_threads(before)

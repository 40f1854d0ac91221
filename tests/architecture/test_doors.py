"""The doors of ehr and fusion: `__all__` is sorted and is exactly what can be taken through them."""

from __future__ import annotations

import importlib
import types

import pytest


@pytest.mark.parametrize("room", ["ehr", "fusion"])
def test_the_door_lists_what_it_gives(room: str) -> None:
    door = importlib.import_module(room)
    public = {
        name
        for name, value in vars(door).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType) and name != "annotations"
    }
    assert list(door.__all__) == sorted(door.__all__)
    assert set(door.__all__) == public

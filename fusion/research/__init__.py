"""Research collections as examples: for studies and for `python -m fusion.evaluate`, never for the clinic.

A collection is a folder of tables and pictures laid out as its publishers (or a sealed part of it) lay them
out. Each reader turns one into tasks: the same patients, one outcome each, with all that a model may know of
them. Nothing is chosen here by looking at outcomes; what tells the outcome (later treatment, source names) is
left out. The one part of fusion that reads files other than bundles, for studies and the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from fusion.errors import BadInput
from fusion.train import Example

__all__ = ["Collection", "Task", "read_collection", "recognise"]


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Task:
    """One question asked of a collection.

    name      the outcome's name, as in `Example.labels` and in `FusionConfig.outcomes`
    examples  one row each; `group` is the split unit (patient, lesion, stay, clip group), `attributes` hold
              what reports and leave-one-source-out are broken down by (sex, age band, view, location, site)
    """

    name: str
    label: str
    examples: tuple[Example, ...]


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Collection:
    """A folder that was read.

    settings  arguments of FusionConfig that its inputs ask for (fields, genomics, channels, modalities,
              sizes …); outcomes are added per task
    caveats   what a reader of its results must know, one sentence each
    """

    name: str
    tasks: Mapping[str, Task]
    settings: Mapping[str, Any]
    caveats: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


SIGNS = {  # files that tell which collection a folder is; each has a module of that name with `read(folder)`
    "own_tables": ("collection.json", "stays.csv"),
    "cxr_covid": ("images.csv", "patients.csv", "images"),
    "brain_lgg": ("slices.csv", "patients.csv", "slices"),
    "lung_ultrasound": ("clips.csv", "clips"),
    "icu_physionet2012": ("records.csv.gz", "outcomes.csv"),
    "skin_ham10000": ("lesions.csv", "images"),
}


def recognise(folder: Path) -> str:
    """Name of the collection a folder holds. Raises BadInput, naming what was looked for."""
    for name, signs in SIGNS.items():
        if all((folder / sign).exists() for sign in signs):
            return name
    looked_for = "; ".join(f"{name}: {', '.join(signs)}" for name, signs in SIGNS.items())
    raise BadInput(f"{folder.name!r} is laid out like none of the known collections ({looked_for})")


def read_collection(folder: Path, name: str = "") -> Collection:
    """Folder → Collection; `name` only where the folder's files do not tell. Raises BadInput."""
    if name and name not in SIGNS:
        raise BadInput(f"no collection {name!r}; known: {', '.join(SIGNS)}")
    read: Callable[[Path], Collection] = import_module(f"fusion.research.{name or recognise(folder)}").read
    return read(folder)

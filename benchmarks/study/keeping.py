"""Embeddings kept on disk between studies: a small file for each input and backbone version."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fusion import Example, FusionConfig, Modality, NoteInput, PixelInput
from fusion.embedding import Embedder
from fusion.train import settled

Floats = NDArray[np.float32]
Held = TypeVar("Held", PixelInput, NoteInput)
FOLDER = Path(__file__).parents[2] / "var" / "study_embeddings"
EVERY = 500  # pictures between two lines of progress


class Keeper:
    """Fills the embeddings of examples, from files where they are and from the backbone where not.

    A file is named by the digest of backbone version, input size and the input's own key, which is a digest
    of its file or text: a changed picture, size or set of weights is computed anew.
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        self._folder = folder
        self._made = 0

    def filled(self, examples: Sequence[Example], config: FusionConfig) -> list[Example]:
        """The same examples with embeddings for every modality of the config."""
        embedder = Embedder(config)
        with settled(config):
            return [self._one(example, config, embedder) for example in examples]

    def _one(self, example: Example, config: FusionConfig, embedder: Embedder) -> Example:
        inputs = example.inputs
        changes = {}
        if Modality.IMAGE in config.modalities:
            changes["images"] = self._each(
                inputs.images, Modality.IMAGE, config.image_size, embedder, embedder.image
            )
        if Modality.CINE in config.modalities:
            changes["cines"] = self._each(
                inputs.cines, Modality.CINE, config.cine_size, embedder, embedder.cine
            )
        if Modality.VOLUME in config.modalities:
            changes["volumes"] = self._each(
                inputs.volumes, Modality.VOLUME, config.volume_size, embedder, embedder.volume
            )
        if Modality.TEXT in config.modalities:
            changes["notes"] = self._each(inputs.notes, Modality.TEXT, 0, embedder, embedder.note)
        return replace(example, inputs=replace(inputs, **changes))  # type: ignore[arg-type]

    def _each(
        self,
        held: Sequence[Held],
        modality: Modality,
        size: int,
        embedder: Embedder,
        embed: Callable[[Held], Floats],
    ) -> tuple[Held, ...]:
        version = embedder.versions[modality]
        return tuple(
            replace(one, embeddings={**one.embeddings, version: self._embedding(one, version, size, embed)})
            for one in held
        )

    def _embedding(self, one: Held, version: str, size: int, embed: Callable[[Held], Floats]) -> Floats:
        if version in one.embeddings:
            return one.embeddings[version]
        name = hashlib.sha256(f"{version}|{size}|{one.key}".encode()).hexdigest()
        path = self._folder / name[:2] / f"{name}.npy"
        if path.exists():
            return np.asarray(np.load(path, allow_pickle=False), np.float32)
        found = embed(one)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part.npy")
        np.save(unfinished, found)
        unfinished.replace(path)
        self._made += 1
        if self._made % EVERY == 0:
            print(f"{self._made} embeddings made", file=sys.stderr, flush=True)
        return found

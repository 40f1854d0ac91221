"""PatientInputs → Batch: one `Tokens` per modality with a mask of what is known. Axis letters: see inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fusion.config import FusionConfig
from fusion.inputs import Modality, PatientInputs
from fusion.rows import SUMMARY, Embeddings, build_rows, is_plausible, kept_frames, shown_notes

__all__ = ["SUMMARY", "Batch", "Tokens", "collate", "is_plausible", "kept_frames", "shown_notes"]


@dataclass(frozen=True, eq=False, slots=True)
class Tokens:
    """One modality of a batch.

    values    float32 [B, L, D]
    known     bool [B, L]
    times_ms  float32 [B, L], cine only: from the first kept frame
    """

    values: Tensor
    known: Tensor
    times_ms: Tensor | None = None

    def __len__(self) -> int:
        return len(self.known)

    def rows(self, index: Tensor) -> Tokens:
        """Some patients of the batch."""
        times = None if self.times_ms is None else self.times_ms[index]
        return Tokens(self.values[index], self.known[index], times)

    def hiding(self, known: Tensor) -> Tokens:
        """The same values with another mask, bool [B, L]; what it hides cannot be seen any more."""
        return replace(self, known=known)


@dataclass(frozen=True, eq=False, slots=True)
class Batch:
    """Several patients.

    tokens   modality → Tokens, for every modality of the config
    present  bool [B, M], in the order of the config's modalities: at least one token is known
    frames   per patient, indices of the kept frames of its cine ([] without)
    refused  per patient, names of fields and channels whose value lies outside the plausible range
    """

    tokens: Mapping[Modality, Tokens]
    present: Tensor
    frames: list[list[int]]
    refused: list[tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.present)

    def rows(self, index: Tensor) -> Batch:
        """Some patients of the batch."""
        chosen = index.tolist()
        return Batch(
            {modality: tokens.rows(index) for modality, tokens in self.tokens.items()},
            self.present[index],
            [self.frames[i] for i in chosen],
            [self.refused[i] for i in chosen],
        )


def collate(inputs: Sequence[PatientInputs], config: FusionConfig, embedder: Embeddings) -> Batch:
    """Patients → tensors. Raises BadInput for embeddings of another width or length than declared."""
    built = build_rows(inputs, config, embedder)
    tokens = {
        modality: Tokens(
            torch.from_numpy(rows.values),
            torch.from_numpy(rows.known),
            None if rows.times_ms is None else torch.from_numpy(rows.times_ms),
        )
        for modality, rows in built.rows.items()
    }
    known = [tokens[modality].known.any(dim=1) for modality in config.modalities]
    present = torch.stack(known, dim=1) if known else torch.zeros(len(inputs), 0, dtype=torch.bool)
    return Batch(tokens, present, built.frames, built.refused)

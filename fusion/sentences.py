"""Sentences of a note, and embeddings of them that need no weights. No torch here."""

from __future__ import annotations

import hashlib
import re
from itertools import pairwise

import numpy as np

from fusion.inputs import FloatArray

HASHED_WIDTH = 128
BREAK = re.compile(r"(?<=[.!?])(?<!\bDr\.)(?<!\bMr\.)(?<!\be\.g\.)(?<!\bi\.e\.)\s+(?=[A-Z0-9\"'(])|\n+|;\s+")
_WORD = re.compile(r"[^\W_]+")


def split_sentences(text: str) -> list[str]:
    """The sentences of a note, in order, stripped; embeddings have one row for each."""
    return [part.strip() for part in BREAK.split(text) if part.strip()]


class HashingText:
    """Hashed words and word pairs, unit length. No weights: for tests, and without the extra."""

    name = "hashing"
    version = "hashing:v1"
    width = HASHED_WIDTH

    def embed(self, text: str) -> FloatArray:
        """A note → float32 [L, D]."""
        sentences = split_sentences(text)
        rows = np.zeros((len(sentences), self.width), np.float32)
        for row, sentence in zip(rows, sentences, strict=True):
            words = _WORD.findall(sentence.lower())
            for gram in [*words, *map(" ".join, pairwise(words))]:
                place = int.from_bytes(hashlib.blake2b(gram.encode(), digest_size=8).digest(), "big")
                row[place % self.width] += 1.0 if place >> 63 else -1.0
            row /= max(float(np.linalg.norm(row)), 1e-9)
        return rows

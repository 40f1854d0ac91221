"""An exported folder, opened and asked without torch: rows, calibration, intervals and scope of a bundle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusion.calibrate import check_logits, sigmoid
from fusion.coalitions import gains, subsets
from fusion.config import FusionConfig
from fusion.config_json import config_from_json
from fusion.errors import BadInput, BundleMismatch
from fusion.inputs import FloatArray, Modality, NoteInput, PatientInputs, PixelInput
from fusion.prediction import Contribution
from fusion.preparing import check_pixels, resized
from fusion.rows import build_rows
from fusion.runtime import open_session
from fusion.scope import Scope, screen
from fusion.sentences import HashingText, split_sentences
from fusion.stated import read_stated
from fusion.widths import width_of
from fusion.wording import summarise_risk

FORMAT = 1
DESCRIPTION = "edge.json"


@dataclass(frozen=True, slots=True)
class EdgeRisk:
    """One outcome of one patient; the same numbers as `fusion.predict` gives, to 1e-4.

    With int8 encoders they are close, not equal: `edge.json` says under "int8" what their check found.
    """

    outcome: str
    label: str
    horizon_hours: float
    risk: float
    low: float
    high: float
    level: float
    base_rate: float
    contributions: tuple[Contribution, ...]
    summary: str


@dataclass(frozen=True, slots=True)
class EdgeAnswer:
    """risks is empty where the model abstains; then `out_of_scope` says why. left_out: file → why."""

    risks: tuple[EdgeRisk, ...]
    missing: tuple[Modality, ...]
    left_out: dict[str, str]
    out_of_scope: str = ""


class EdgeModel:
    """An exported folder, checked (every file's SHA-256) and opened."""

    def __init__(self, folder: Path, *, threads: int = 1, digest: str | None = None) -> None:
        """Raises BundleMismatch for a folder that is not an edge model, or was changed.

        digest  what `edge_digest` said, as kept elsewhere: any change to any file is refused
        """
        self.folder, self._threads = folder, threads
        self.about = _read_description(folder, digest)
        self.config: FusionConfig = config_from_json(self.about["config"])
        self.calibration, self.intervals = read_stated(DESCRIPTION, self.about, self.config)
        self._encode, self._fuse = self.open("encode.onnx"), self.open("fuse.onnx")

    @cached_property
    def _embeddings(self) -> _Embeddings:
        return _Embeddings(self)

    @cached_property
    def _scope(self) -> Scope | None:
        if not self.about.get("scope"):
            return None
        with np.load(self.folder / "scope.npz", allow_pickle=False) as kept:
            return Scope.from_json(self.about["scope"], dict(kept))

    def open(self, name: str) -> Any:
        """The ONNX Runtime session of one of the folder's files."""
        return open_session(self.folder / name, threads=self._threads)

    def predict(self, inputs: PatientInputs) -> EdgeAnswer:
        """Risks with intervals and exact Shapley contributions of the modalities. Raises FusionError."""
        screened = screen(self._scope, inputs, self.config, self._embeddings)
        built = build_rows([screened.inputs], self.config, self._embeddings)
        feeds: dict[str, Any] = {}
        for modality, rows in built.rows.items():
            feeds[f"values_{modality.value}"] = rows.values
            feeds[f"known_{modality.value}"] = rows.known
            if rows.times_ms is not None:
                feeds[f"times_{modality.value}"] = rows.times_ms
        asked = {one.name for one in self._encode.get_inputs()}
        evidence, present = self._encode.run(None, {k: v for k, v in feeds.items() if k in asked})
        here = np.flatnonzero(present[0])
        missing = tuple(m for place, m in enumerate(self.config.modalities) if place not in here)
        if screened.reason or not len(here):
            why = screened.reason or "none of the inputs this model reads is available"
            return EdgeAnswer((), missing, screened.left_out, why)
        masks = np.zeros((2 ** len(here), present.shape[1]), bool)
        masks[:, here] = subsets(len(here))
        logits = self._logits(np.repeat(evidence, len(masks), axis=0), masks)
        shares = gains(len(here)) @ np.stack([sigmoid(logits), logits])
        risks = tuple(
            self._risk(r, logits[-1, r], here, shares[..., r], missing, inputs.attributes)
            for r in range(len(logits[0]))
        )
        return EdgeAnswer(risks, missing, screened.left_out)

    def _logits(self, evidence: FloatArray, present: NDArray[np.bool_]) -> NDArray[np.float64]:
        (fused,) = self._fuse.run(None, {"evidence": evidence, "present": present})
        check_logits(fused, [spec.name for spec in self.config.outcomes])
        names = [m.value for m in self.config.modalities]
        return self.calibration.logits(fused.astype(np.float64), present, names)

    def _risk(
        self,
        r: int,
        logit: float,
        here: NDArray[np.int64],
        shares: NDArray[np.float64],
        missing: tuple[Modality, ...],
        attributes: Mapping[str, str],
    ) -> EdgeRisk:
        spec, risk = self.config.outcomes[r], float(sigmoid(logit))
        base = float(self.calibration.base_risks()[r])
        pattern = "+".join(self.config.modalities[place].value for place in here)
        low, high = self.intervals[r].around(risk, pattern, attributes)
        contributions = tuple(
            Contribution(self.config.modalities[place], float(points), float(share))
            for place, points, share in zip(here, *shares, strict=True)
        )
        summary = summarise_risk(
            label=spec.label,
            horizon_hours=spec.horizon_hours,
            risk=risk,
            low=low,
            high=high,
            level=self.config.interval_level,
            base_rate=base,
            contributions=contributions,
            drivers=(),
            missing=missing,
            pending=(),
        )
        return EdgeRisk(
            spec.name,
            spec.label,
            spec.horizon_hours,
            risk,
            low,
            high,
            self.config.interval_level,
            base,
            contributions,
            summary,
        )


class _Embeddings:
    """Embeds what it is given, every time: a small machine asks about one patient and ends."""

    def __init__(self, model: EdgeModel) -> None:
        self._model, self._sessions = model, dict[str, Any]()

    @property
    def image_width(self) -> int:
        return width_of(self._model.config.image_backbone)

    @property
    def cine_width(self) -> int:
        return width_of(self._model.config.cine_backbone)

    @property
    def text_width(self) -> int:
        about = self._model.about["backbones"].get(Modality.TEXT.value, {})
        return int(about.get("width") or width_of(self._model.config.text_backbone))

    @property
    def volume_width(self) -> int:
        return 1

    def volume(self, pixels: PixelInput) -> FloatArray:
        raise BadInput("volumes are not read on small machines: ask the workers")

    def image(self, pixels: PixelInput) -> FloatArray:
        return self._frames(pixels, Modality.IMAGE, self._model.config.image_size)

    def cine(self, pixels: PixelInput) -> FloatArray:
        return self._frames(pixels, Modality.CINE, self._model.config.cine_size)

    def note(self, note: NoteInput) -> FloatArray:
        if self._model.config.text_backbone == HashingText.name:
            return HashingText().embed(note.text)
        return self._sentences.embed(note.text)

    @cached_property
    def _sentences(self) -> _Sentences:
        return _Sentences(self._model)

    def _frames(self, pixels: PixelInput, modality: Modality, size: int) -> FloatArray:
        config = self._model.config
        backbone = config.image_backbone if modality == Modality.IMAGE else config.cine_backbone
        values = pixels.read().values
        check_pixels(values, modality, pixels.key)
        frames = resized(values, size, backbone=backbone)
        files = self._model.about["backbones"][modality.value]["files"]
        kept = files.get(str(frames.shape[1]))
        if kept is None:
            raise BadInput(f"{modality.value} frames must have {' or '.join(files)} channel(s)")
        if kept["file"] not in self._sessions:
            self._sessions[kept["file"]] = self._model.open(kept["file"])
        mean, scale = (np.array(kept[name], np.float32).reshape(1, -1, 1, 1) for name in ("mean", "scale"))
        (rows,) = self._sessions[kept["file"]].run(None, {"frames": (frames - mean) / scale})
        return np.asarray(rows, np.float32)


class _Sentences:
    """A transformers encoder without transformers: its tokenizer file and its ONNX copy."""

    def __init__(self, model: EdgeModel) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as fault:
            raise BadInput("notes need the package `tokenizers`; without it, leave notes out") from fault
        about = model.about["backbones"][Modality.TEXT.value]
        self._tokenizer = Tokenizer.from_str((model.folder / about["tokenizer"]).read_text())
        self._tokenizer.enable_truncation(about["most_tokens"])
        self._tokenizer.enable_padding()
        self._session = model.open(about["file"])

    def embed(self, text: str) -> FloatArray:
        """float32 [L, D]."""
        coded = self._tokenizer.encode_batch(split_sentences(text))
        fed = {
            "input_ids": np.array([one.ids for one in coded], np.int64),
            "attention_mask": np.array([one.attention_mask for one in coded], np.int64),
        }
        (rows,) = self._session.run(None, fed)
        return np.asarray(rows, np.float32)


def edge_digest(folder: Path) -> str:
    """SHA-256 (hex) of an edge folder's description, which holds that of every other file."""
    return hashlib.sha256((folder / DESCRIPTION).read_bytes()).hexdigest()


def _read_description(folder: Path, digest: str | None) -> dict[str, Any]:
    try:
        about: dict[str, Any] = json.loads((folder / DESCRIPTION).read_text())
    except (OSError, ValueError) as fault:
        raise BundleMismatch(
            f"{folder.name} is no edge model: it has no readable {DESCRIPTION}. Export a bundle where torch "
            "is installed: python -m fusion.edge --export BUNDLE EDGE"
        ) from fault
    if digest is not None and (found := edge_digest(folder)) != digest:
        raise BundleMismatch(f"digest is {found[:12]}… where {digest[:12]}… was registered")
    if about.get("format") != FORMAT:
        raise BundleMismatch(f"edge format is {about.get('format')!r}; this version reads {FORMAT}")
    for name, wanted in about["files"].items():
        path = folder / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != wanted:
            raise BundleMismatch(f"{name} is missing or not the file that was exported (SHA-256 differs)")
    return about

"""ONNX copies of encoders and of the fusion head, each checked against the original before it is kept.

A copy that differs by more than `TOLERANCE` anywhere is refused. An int8 copy is kept only where its
embeddings point the same way as the float ones (cosine >= 0.995 on every picture) and, when labels are at
hand, where the AUROC falls by 0.002 at most: some networks lose everything when quantised, and only a check
can tell which.

torch is needed to export; ONNX Runtime alone is needed to run what was exported.
"""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fusion.backbones import ImageBackbone, TextBackbone
from fusion.backbones.text import MAX_TOKENS, TransformersText
from fusion.batch import Batch, Tokens
from fusion.encoders import Encoder
from fusion.errors import BadInput, ExportMismatch
from fusion.inputs import FloatArray, Modality
from fusion.model import FusionModel
from fusion.numerics import without_denormals
from fusion.runtime import open_session

TOLERANCE = 1e-4  # largest absolute difference between a copy and the original
LEAST_COSINE, MOST_AUROC_LOST = 0.995, 0.002  # the gate of an int8 copy
LEAST_PICTURES = 8  # that an int8 copy is checked on, and as many that it is calibrated on


@dataclass(frozen=True, slots=True)
class Int8Check:
    """Whether an int8 copy may stand in for the float one, and why.

    cosine      smallest cosine between int8 and float embeddings over the pictures it was checked on
    pictures    how many; none of them is among those it was calibrated on
    auroc_lost  AUROC with the float embeddings minus that with int8; None without labels
    """

    cosine: float
    pictures: int
    auroc_lost: float | None = None

    @property
    def passed(self) -> bool:
        """cosine >= 0.995, and at most 0.002 of AUROC lost where that is known."""
        return self.cosine >= LEAST_COSINE and (self.auroc_lost is None or self.auroc_lost <= MOST_AUROC_LOST)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "passed": self.passed}


class _Embedding(nn.Module):
    """Prepared frames [T, C, S, S] → embeddings [T, D]."""

    def __init__(self, backbone: ImageBackbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.network = backbone.network

    def forward(self, frames: Tensor) -> Tensor:
        return self.backbone.pool(self.backbone.maps(frames))


class _Head(nn.Module):
    """Tokens of every modality → evidence [B, M, R], present [B, M]."""

    def __init__(self, model: FusionModel, timed: Sequence[Modality]) -> None:
        super().__init__()
        self.model, self.timed = model, tuple(timed)

    def forward(
        self, values: tuple[Tensor, ...], known: tuple[Tensor, ...], times: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        logits = []
        for modality, value, here in zip(self.model.modalities, values, known, strict=True):
            when = times[self.timed.index(modality)] if modality in self.timed else None
            encoder = self.model.encoder(modality)
            logits.append(encoder(encoder.prepare(Tokens(value, here, when))).logits)
        present = torch.stack([here.any(dim=1) for here in known], dim=1)
        return self.model.spoken(torch.stack(logits, dim=1)), self.model.usable(present)


class _Fuse(nn.Module):
    """Evidence [B, M, R] and present [B, M] → uncalibrated logits [B, R]."""

    def __init__(self, model: FusionModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, evidence: Tensor, present: Tensor) -> Tensor:
        return self.model.fuse(evidence, present)


def export_backbone(backbone: ImageBackbone, path: Path, frames: Tensor) -> float:
    """Write prepared frames float32 [T, C, S, S] → embeddings [T, D] as ONNX; any T.

    frames  two or more prepared frames to trace and to check with
    Returns the largest absolute difference found. Raises ExportMismatch (nothing is written).
    """
    if len(frames) < 2:
        raise BadInput("an export needs two prepared frames or more, so that their number may vary")
    with torch.no_grad(), without_denormals():
        wanted = backbone.pool(backbone.maps(frames)).numpy()
        program = _exported(
            _Embedding(backbone), (frames,), ("frames",), ("embeddings",), {"frames": {0: _FREE}}
        )
        return _keep(program, path, [({"frames": frames.numpy()}, (wanted,))])


def export_head(model: FusionModel, folder: Path, batch: Batch) -> float:
    """Write `encode.onnx` (tokens → evidence, present) and `fuse.onnx` (evidence, present → logits).

    batch  at least 2 patients, to trace and to check with
    Inputs of encode.onnx: `values_<modality>`, `known_<modality>` and, for cines, `times_<modality>`.
    Returns the largest absolute difference. Raises ExportMismatch.
    """
    if len(batch) < 2:
        raise BadInput("an export of the head needs two patients or more, so that their number may vary")
    timed = [m for m in model.modalities if batch.tokens[m].times_ms is not None]
    values = tuple(batch.tokens[m].values for m in model.modalities)
    known = tuple(batch.tokens[m].known for m in model.modalities)
    times = tuple(t for m in timed if (t := batch.tokens[m].times_ms) is not None)
    names = [
        *(f"values_{m.value}" for m in model.modalities),
        *(f"known_{m.value}" for m in model.modalities),
        *(f"times_{m.value}" for m in timed),
    ]
    free = {
        "values": tuple(_free_axes(model.encoder(m)) for m in model.modalities),
        "known": tuple(_free_axes(model.encoder(m)) for m in model.modalities),
        "times": tuple(_free_axes(model.encoder(m)) for m in timed),
    }
    head, fuse = _Head(model, timed).eval(), _Fuse(model).eval()
    with torch.no_grad(), without_denormals():
        evidence, present = head(values, known, times)
        logits = fuse(evidence, present)
        program = _exported(head, (values, known, times), names, ("evidence", "present"), free)
        feeds = dict(zip(names, (t.numpy() for t in (*values, *known, *times)), strict=True))
        alone = {name: array[:1] for name, array in feeds.items()}
        first = head(*(tuple(t[:1] for t in part) for part in (values, known, times)))
        worst = _keep(
            program,
            folder / "encode.onnx",
            [
                (feeds, (evidence.numpy(), present.numpy())),
                (alone, tuple(part.numpy() for part in first)),
            ],
        )
        program = _exported(
            fuse,
            (evidence, present),
            ("evidence", "present"),
            ("logits",),
            {"evidence": {0: _FREE}, "present": {0: _FREE}},
        )
        asked = {"evidence": evidence.numpy(), "present": present.numpy()}
        coalitions = {name: np.repeat(array[:1], 5, axis=0) for name, array in asked.items()}
        said = fuse(*(torch.from_numpy(a) for a in coalitions.values())).numpy()
        return max(
            worst, _keep(program, folder / "fuse.onnx", [(asked, (logits.numpy(),)), (coalitions, (said,))])
        )


def export_text(backbone: TextBackbone, folder: Path) -> tuple[float, dict[str, Any]]:
    """Write `text.onnx` (token ids and mask → sentence embeddings) and the tokenizer beside it.

    Returns the largest difference, and what is needed to tokenise without transformers.
    Raises BadInput for a backbone that is no transformers encoder, ExportMismatch.
    """
    if not isinstance(backbone, TransformersText):
        raise BadInput(f"text backbone {backbone.name} cannot be exported; only transformers encoders can")
    module = backbone.module()
    with torch.no_grad(), without_denormals():
        fed = backbone.tokenise(
            ["Oxygen saturation is falling.", "A radiograph of the chest was taken today."]
        )
        wanted = module(fed["input_ids"], fed["attention_mask"]).numpy()
        free = {name: {0: _FREE, 1: _FREE} for name in ("input_ids", "attention_mask")}
        program = _exported(
            module, (fed["input_ids"], fed["attention_mask"]), tuple(free), ("sentences",), free
        )
        feeds = {name: fed[name].numpy() for name in free}
        worst = _keep(program, folder / "text.onnx", [(feeds, (wanted,))])
    (folder / "tokenizer.json").write_text(backbone.tokenizer_json())
    return worst, {"tokenizer": "tokenizer.json", "most_tokens": MAX_TOKENS}


def quantise(path: Path, out: Path, pictures: FloatArray, *, labels: Sequence[int] = ()) -> Int8Check:
    """An int8 copy (static, per channel) of an exported backbone; kept at `out` only when its check passes.

    pictures  prepared frames float32 [N, C, S, S], 16 or more: the first half calibrates, the second checks
    labels    0 or 1 of the second half, where known: the AUROC of a logistic regression on the embeddings,
              cross-validated, must not fall
    """
    if len(pictures) < 2 * LEAST_PICTURES:
        raise BadInput(f"int8 needs {2 * LEAST_PICTURES} pictures or more: half to calibrate, half to check")
    half = len(pictures) // 2
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / "int8.onnx"
        _quantise(path, made, pictures[:half])
        whole, small = open_session(path), open_session(made)
        asked = [pictures[i : i + 1] for i in range(half, len(pictures))]
        first = np.concatenate([whole.run(None, {"frames": one})[0] for one in asked])
        second = np.concatenate([small.run(None, {"frames": one})[0] for one in asked])
        check = Int8Check(_least_cosine(first, second), len(asked), _auroc_lost(first, second, labels))
        if check.passed:
            _put(made.read_bytes(), out)
    return check


_FREE = torch.export.Dim.AUTO


def _free_axes(encoder: Encoder) -> dict[int, Any]:
    """Patients vary; so do sentences, views, frames and slices, but not fields and channels."""
    return {0: _FREE} if encoder.is_fixed else {0: _FREE, 1: _FREE}


def _exported(
    module: nn.Module,
    given: tuple[Any, ...],
    inputs: Sequence[str],
    outputs: Sequence[str],
    free: dict[str, Any],
) -> Any:
    with _quiet():
        return torch.onnx.export(
            module.eval(),
            given,
            dynamo=True,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=free,
            verbose=False,
        )


def _keep(
    program: Any, path: Path, trials: Sequence[tuple[dict[str, Any], tuple[np.ndarray[Any, Any], ...]]]
) -> float:
    """Run the copy on what the original answered; write it only where they agree."""
    made = program.model_proto.SerializeToString()
    session = open_session(made)
    worst = 0.0
    for feeds, wanted in trials:
        for got, answer in zip(session.run(None, feeds), wanted, strict=True):
            if got.shape != answer.shape:
                raise ExportMismatch(f"{path.name}: shape {got.shape} where {answer.shape} was expected")
            worst = max(worst, float(np.abs(got.astype(np.float64) - answer.astype(np.float64)).max()))
    if not worst <= TOLERANCE:
        raise ExportMismatch(
            f"{path.name} differs from the original by {worst:.1e}; {TOLERANCE:.0e} is allowed"
        )
    _put(made, path)
    return worst


def _put(content: bytes, path: Path) -> None:
    """Write beside, then move: a killed process leaves no half a model."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.{os.getpid()}.part")
    half.write_bytes(content)
    half.replace(path)


def _quantise(path: Path, out: Path, pictures: FloatArray) -> None:
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Pictures(quantization.CalibrationDataReader):
        """One picture at a time."""

        def __init__(self) -> None:
            self._left = iter(pictures)

        def get_next(self) -> dict[str, FloatArray] | None:
            one = next(self._left, None)
            return None if one is None else {"frames": one[None]}

    shaped = out.with_name("shaped.onnx")
    with _quiet():
        quant_pre_process(str(path), str(shaped), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(shaped),
            str(out),
            Pictures(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
        )


def _least_cosine(first: FloatArray, second: FloatArray) -> float:
    if not np.isfinite(second).all():
        return -1.0
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return float(((first * second).sum(axis=1) / np.maximum(lengths, 1e-12)).min())


def _auroc_lost(first: FloatArray, second: FloatArray, labels: Sequence[int]) -> float | None:
    if not labels:
        return None
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from fusion.metrics import auroc

    if len(labels) != len(first) or min(np.bincount(labels, minlength=2)) < 5:
        raise BadInput(f"{len(labels)} labels for {len(first)} pictures; 5 of each kind are needed")
    if not np.isfinite(second).all():
        return 1.0
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    known = np.asarray(labels)
    scores = [
        auroc(
            cross_val_predict(model, rows, known, cv=folds, method="predict_proba")[:, 1], known.astype(float)
        )
        for rows in (first, second)
    ]
    return float((scores[0] or 0.5) - (scores[1] or 0.5))


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters print and warn about what we check ourselves."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "root")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)

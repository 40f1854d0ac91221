"""Real chest radiographs: does the fused model reach the simple stack on the same folds?

    python -m benchmarks.study_cxr ../shared/data/cxr_covid --repeats 3

Patient-grouped cross-validation, one row a patient (their first picture, facts of the record as of it, masked
notes when --notes). Every fold trains the model whole (out-of-fold encoders, fusion, calibration); the simple
stack of SCIENCE section 2 (components + logistic regression, sum of logits) sees the same training patients
(training and tuning together). Prints AUROC, mean and sd over repeats of pooled out-of-fold risks.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import fusion
from fusion import Example, FieldKind, FieldSpec, FusionConfig, FusionKind, Modality, OutcomeSpec
from fusion.metrics import auroc, brier
from fusion.train import assign_folds

FIELDS = (
    FieldSpec("age", "Age", "a", low=0, high=120),
    FieldSpec("female", "Female", kind=FieldKind.BINARY),
    FieldSpec("offset_first", "Days since onset or admission", "d", low=-30, high=365),
    FieldSpec("temperature", "Temperature", "Cel", low=30, high=45),
    FieldSpec("pO2_saturation", "Oxygen saturation", "%", low=20, high=100),
    FieldSpec("leukocyte_count", "Leukocytes", "10*3/uL", low=0, high=100),
    FieldSpec("neutrophil_count", "Neutrophils", "10*3/uL", low=0, high=100),
    FieldSpec("lymphocyte_count", "Lymphocytes", "10*3/uL", low=0, high=100),
)
TASKS = {"intensive care, ever": "went_icu", "death": "survival", "severe outcome": "severe_outcome"}
YES = {"went_icu": "Y", "survival": "N", "severe_outcome": "1.0"}
NO = {"went_icu": "N", "survival": "Y", "severe_outcome": "0.0"}


def main() -> None:
    """Run every task and print one row for each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--notes", action="store_true", help="also the masked notes (they may still leak)")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--fusion", default="late", choices=[kind.value for kind in FusionKind])
    parser.add_argument("--keep", type=Path, help="file (.npz) in which embeddings are kept between runs")
    asked = parser.parse_args()
    modalities = [Modality.TABULAR, Modality.IMAGE] + ([Modality.TEXT] if asked.notes else [])
    patients = _patients(asked.folder, asked.keep, with_notes=asked.notes)
    print("task | patients (events) | arm | AUROC mean ± sd | Brier | seconds a training")
    for task in asked.tasks:
        column = TASKS[task]
        examples = [
            Example(inputs, {"event": int(row[column] == YES[column])}, inputs.key)
            for row, inputs in patients
            if row[column] in (YES[column], NO[column])
        ]
        config = partial(
            FusionConfig,
            outcomes=(OutcomeSpec("event", task, 24.0),),
            fields=FIELDS,
            modalities=tuple(modalities),
            fusion=FusionKind(asked.fusion),
        )
        _report(task, examples, config, asked.repeats)


def _report(task: str, examples: list[Example], config: partial[FusionConfig], repeats: int) -> None:
    labels = np.array([e.labels["event"] for e in examples], float)
    scores: dict[str, list[tuple[float, float]]] = {}
    spent = []
    for repeat in range(repeats):
        folds = assign_folds([e.group for e in examples], labels[:, None].astype(np.float32), 5, seed=repeat)
        said: dict[str, NDArray[np.float64]] = {}
        for fold in range(5):
            rest, held = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
            started = time.perf_counter()
            for name, risks in _one_fold(examples, labels, rest, held, config(seed=repeat)).items():
                said.setdefault(name, np.full(len(examples), np.nan))[held] = risks
            spent.append(time.perf_counter() - started)
        for name, risks in said.items():
            scores.setdefault(name, []).append(
                (auroc(risks, labels) or math.nan, brier(risks, labels) or math.nan)
            )
    for name, found in scores.items():
        aurocs, briers = np.array(found).T
        print(
            f"{task} | {len(labels)} ({int(labels.sum())}) | {name} | "
            f"{aurocs.mean():.3f} ± {aurocs.std():.3f} | {briers.mean():.3f} | {np.mean(spent):.1f}",
            flush=True,
        )


def _one_fold(
    examples: list[Example],
    labels: NDArray[np.float64],
    rest: NDArray[np.int64],
    held: NDArray[np.int64],
    config: FusionConfig,
) -> dict[str, NDArray[np.float64]]:
    """Risks of the held patients from each arm."""
    inner = assign_folds(
        [examples[i].group for i in rest], labels[rest, None].astype(np.float32), 6, config.seed
    )
    train = [examples[i] for i in rest[inner != 0]]
    tuning = [examples[i] for i in rest[inner == 0]]
    bundle = fusion.train(train, tuning, config)
    asked = [examples[i].inputs for i in held]
    found = {"model, fused": _risks(bundle, asked)}
    for modality in config.modalities:
        found[f"model, {modality.value} only"] = _risks(bundle, [_only(i, modality) for i in asked])
    blocks = _blocks(examples, config)
    logits = []
    for name, block in blocks.items():
        stack = make_pipeline(
            SimpleImputer(add_indicator=True, keep_empty_features=True),
            StandardScaler(),
            *([PCA(32, random_state=config.seed)] if block.shape[1] > 64 else []),
            LogisticRegression(C=0.1, max_iter=2000),
        )
        stack.fit(block[rest], labels[rest].astype(int))
        logits.append(stack.decision_function(block[held]))
        found[f"simple stack, {name}"] = 1 / (1 + np.exp(-logits[-1]))
    found["simple stack, sum of logits"] = 1 / (1 + np.exp(-np.sum(logits, axis=0)))
    return found


def _risks(bundle: fusion.Bundle, inputs: list[fusion.PatientInputs]) -> NDArray[np.float64]:
    return np.array([p.outcomes[0].risk for p in fusion.predict(bundle, inputs, explain=False)])


def _only(inputs: fusion.PatientInputs, modality: Modality) -> fusion.PatientInputs:
    return fusion.PatientInputs(
        key=inputs.key,
        fields=inputs.fields if modality == Modality.TABULAR else {},
        images=inputs.images if modality == Modality.IMAGE else (),
        notes=inputs.notes if modality == Modality.TEXT else (),
    )


def _blocks(examples: list[Example], config: FusionConfig) -> dict[str, NDArray[np.float64]]:
    """Modality → float64 [B, F] for the simple stack; NaN = missing."""
    blocks: dict[str, NDArray[np.float64]] = {}
    for modality in config.modalities:
        rows = []
        for example in examples:
            if modality == Modality.TABULAR:
                known = example.inputs.fields
                rows.append([math.nan if (v := known.get(s.name)) is None else v for s in FIELDS])
                continue
            held = example.inputs.images if modality == Modality.IMAGE else example.inputs.notes
            first = next(iter(held[0].embeddings.values())) if held else np.full((1, 384), np.nan)
            rows.append(first.mean(axis=0).astype(float).tolist())
        blocks[modality.value] = np.array(rows, float)
    return blocks


def _patients(
    folder: Path, keep: Path | None, *, with_notes: bool
) -> list[tuple[Mapping[str, str], fusion.PatientInputs]]:
    with (folder / "images.csv").open() as file:
        first: dict[str, Mapping[str, str]] = {}
        for row in csv.DictReader(file):
            first.setdefault(row["patient_id"], row)
    held = dict(np.load(keep)) if keep is not None and keep.exists() else {}
    backbone = fusion.load_backbone("efficientnet_lite0")
    text = fusion.load_text_backbone("minilm") if with_notes else None
    found = []
    with (folder / "patients.csv").open() as file:
        for row in csv.DictReader(file):
            picture = first[row["patient_id"]]["image_file"]
            if picture not in held:
                grey = np.asarray(Image.open(folder / "images" / picture).convert("L"), np.float32) / 255
                held[picture] = backbone.embed(grey[None], 224)[0]
            note = row["clinical_notes_masked"].strip()
            notes = (
                (fusion.NoteInput(row["patient_id"], note, {text.version: text.embed(note)}),)
                if text is not None and note
                else ()
            )
            image = fusion.PixelInput(
                picture,
                partial(_absent, picture),
                np.zeros(1, np.float32),
                {backbone.version: held[picture][None]},
            )
            found.append(
                (
                    row,
                    fusion.PatientInputs(
                        key=row["patient_id"], fields=_fields(row), images=(image,), notes=notes
                    ),
                )
            )
    if keep is not None:
        np.savez(keep, **held)
    return found


def _fields(row: Mapping[str, str]) -> dict[str, float | None]:
    fields: dict[str, float | None] = {
        spec.name: float(row[spec.name]) if row.get(spec.name) else None for spec in FIELDS
    }
    fields["female"] = {"F": 1.0, "M": 0.0}.get(row["sex"])
    return fields


def _absent(picture: str) -> fusion.Frames:
    raise FileNotFoundError(f"{picture} was embedded before; its pixels are not read again")


if __name__ == "__main__":
    main()

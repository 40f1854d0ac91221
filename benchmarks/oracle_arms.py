"""One training beside the known oracle, and all that is asked of it: every arm gives risks for a pattern of
present modalities. Used by `benchmarks.oracle`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import fusion
from benchmarks.oracle_cohort import CONFIG, MODALITIES, Cohort
from fusion.batch import Batch, collate
from fusion.bundle import Bundle
from fusion.calibrate import sigmoid
from fusion.conformal import covered
from fusion.metrics import auroc, calibration
from fusion.model import FusionModel
from fusion.patterns import all_subsets, named
from fusion.predict import calibrated
from fusion.second_stage import calibrate_bundle, fit_fusion

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
NAMES = [m.value for m in MODALITIES]
BOOTSTRAP = 200


class Arms:
    """One cohort, one training of the encoders, and everything that is asked of it."""

    def __init__(self, asked: Cohort, train: Cohort, tuning: Cohort, seed: int) -> None:
        self.asked, self.train, self.tuning = asked, train, tuning
        self.config = dataclasses.replace(CONFIG, seed=seed)
        self.bundle = fusion.train(train.examples, tuning.examples, self.config)
        embedder = self.bundle.embedder
        self.batch = collate([e.inputs for e in asked.examples], self.config, embedder)
        self.held = collate([e.inputs for e in tuning.examples], self.config, embedder)
        with torch.no_grad():
            self.evidence = self.bundle.model.encode(self.batch).logits
            told = self.bundle.model.encode(self.held)
        labels = torch.from_numpy(tuning.labels).float()[:, None]
        self.tuned = (told.logits, told.present, labels)
        self.labels = asked.labels

    def arms(self) -> dict[str, Callable[[Mask], Array]]:
        """Name → (present bool [B, M] → risks float64 [B])."""
        fused = {kind: self.refitted(kind) for kind in fusion.FusionKind}
        arms: dict[str, Callable[[Mask], Array]] = {"oracle": lambda present: self.asked.oracle(~present)}
        for kind, bundle in fused.items():
            arms[kind.value] = lambda present, bundle=bundle: self.fused(bundle, present)  # type: ignore[misc]
        arms["boosting on out-of-fold logits"] = self.boosted()
        rows, labels = self.train_rows()
        for name, model in simple_models(self.config.seed).items():
            model.fit(rows, labels)
            arms[name] = lambda present, model=model: np.asarray(  # type: ignore[misc]
                model.predict_proba(self.asked_rows(present))[:, 1]
            )
        return arms

    def refitted(self, kind: fusion.FusionKind) -> Bundle:
        """The same encoders under another fusion."""
        config = dataclasses.replace(self.config, fusion=kind)
        told = self.bundle.out_of_fold
        assert told is not None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            model = FusionModel(config)
        state = {
            k: v for k, v in self.bundle.model.state_dict().items() if not k.startswith(("fusion.", "heard"))
        }
        model.load_state_dict({**model.state_dict(), **state})
        fit_fusion(model, *told, self.tuned, config, lambda *_: None)
        subgroups = [e.attributes for e in self.train.examples], [e.attributes for e in self.tuning.examples]
        return calibrate_bundle(model, config, self.bundle.embedder, told, self.tuned, subgroups=subgroups)

    def fused(self, bundle: Bundle, present: Mask) -> Array:
        """Calibrated risks float64 [B] when only this is present."""
        return np.asarray(sigmoid(calibrated(bundle, self.evidence, torch.from_numpy(present)))[:, 0])

    def boosted(self) -> Callable[[Mask], Array]:
        """Gradient boosting on the logits that encoders gave patients they had not seen; NaN where absent."""
        told = self.bundle.out_of_fold
        assert told is not None
        rows = [torch.where(part[1][..., None], part[0], torch.nan)[..., 0] for part in (told, self.tuned)]
        labels = torch.cat([told[2], self.tuned[2]])[:, 0].numpy()
        model = _boosting(self.config.seed)
        model.fit(torch.cat(rows).numpy(), labels)

        def ask(present: Mask) -> Array:
            logits = np.where(present, self.evidence[..., 0].numpy(), np.nan)
            return np.asarray(model.predict_proba(logits)[:, 1], np.float64)

        return ask

    def by_pattern(self) -> list[tuple[str, dict[str, float]]]:
        """Each pattern of present modalities: AUROC of oracle, fusion and best modality, ECE, coverage."""
        found = []
        for subset in all_subsets(len(MODALITIES))[1:].numpy():
            present = np.tile(subset, (len(self.labels), 1))
            best, risks = self.asked.oracle(~present), self.fused(self.bundle, present)
            singles = [self.evidence[:, m, 0].double().numpy() for m in np.flatnonzero(subset)]
            alone = max(singles, key=lambda logits: auroc(logits, self.labels) or 0.0)
            name = named(subset.tolist(), NAMES)
            inside, groups = covered(
                self.bundle.intervals[0],
                risks,
                self.labels,
                patterns=[name] * len(risks),
                attributes=[e.attributes for e in self.asked.examples],
            )
            found.append(
                (
                    name,
                    {
                        "oracle": auroc(best, self.labels) or 0.5,
                        "fused": auroc(risks, self.labels) or 0.5,
                        "best modality": auroc(alone, self.labels) or 0.5,
                        "worse": float(_significantly_worse(risks, alone, self.labels)),
                        "ece": calibration(risks, self.labels)["ece"],
                        "coverage": inside / groups,
                    },
                )
            )
        return found

    def train_rows(self) -> tuple[Array, Array]:
        """For peers that want one plain row: (rows [B, F], NaN = missing; labels [B])."""
        rows = [plain(collate([e.inputs for e in c.examples], self.config, self.bundle.embedder))
                for c in (self.train, self.tuning)]  # fmt: skip
        return np.concatenate(rows), np.concatenate([self.train.labels, self.tuning.labels])

    def asked_rows(self, present: Mask) -> Array:
        """The same for the patients asked about."""
        return plain(hiding(self.batch, present))


def simple_models(seed: int) -> dict[str, Any]:
    """What learns from one plain row a patient, NaN = missing."""
    logistic = make_pipeline(
        SimpleImputer(add_indicator=True), StandardScaler(), LogisticRegression(C=0.1, max_iter=2000)
    )
    return {
        "gradient boosting on embeddings and fields": _boosting(seed),
        "logistic regression on embeddings and fields": logistic,
    }


def _boosting(seed: int) -> HistGradientBoostingClassifier:
    return HistGradientBoostingClassifier(
        max_iter=100, learning_rate=0.06, min_samples_leaf=10, random_state=seed
    )


def hiding(batch: Batch, present: Mask) -> Batch:
    """The batch with only these modalities left, bool [B, M]."""
    here = torch.from_numpy(present)
    tokens = {
        m: batch.tokens[m].hiding(batch.tokens[m].known & here[:, [place]])
        for place, m in enumerate(MODALITIES)
    }
    empty = {
        m: dataclasses.replace(t, values=torch.where(t.known[..., None], t.values, 0.0))
        for m, t in tokens.items()
    }
    return dataclasses.replace(batch, tokens=empty, present=batch.present & here)


def plain(batch: Batch) -> Array:
    """One row a patient, float64 [B, F], NaN = missing: mean embeddings, the record as it is."""
    parts = []
    for modality in MODALITIES:
        tokens = batch.tokens[modality]
        known = tokens.known[..., None]
        if modality in (fusion.Modality.IMAGE, fusion.Modality.TEXT):
            count = known.sum(dim=1)
            mean = torch.where(known, tokens.values, 0.0).sum(dim=1) / count.clamp(min=1)
            parts.append(torch.where(count > 0, mean, torch.nan))
        else:
            parts.append(torch.where(known, tokens.values, torch.nan).flatten(1))
    return np.asarray(torch.cat(parts, dim=1).double().numpy())


def _significantly_worse(risks: Array, alone: Array, labels: Array) -> bool:
    """The paired bootstrap 95 % interval of fused minus best modality lies below 0."""
    if (auroc(risks, labels) or 0) >= (auroc(alone, labels) or 0) - 1e-9:
        return False
    rng, found = np.random.default_rng(0), []
    for _ in range(BOOTSTRAP):
        rows = rng.integers(0, len(labels), len(labels))
        found.append((auroc(risks[rows], labels[rows]) or 0) - (auroc(alone[rows], labels[rows]) or 0))
    return bool(np.percentile(found, 97.5) < 0)

"""docs/fusion.md, done as it says: an encoder, a modality and an outcome are added, trained and asked."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fusion
from fusion import Example, FusionConfig, Modality, OutcomeSpec, PatientInputs
from fusion.backbones.image import BUILDERS
from fusion.survival import FollowUp
from fusion.widths import WIDTHS
from tests.fusion import simulated

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "fusion.md").read_text()
OUTCOMES = (OutcomeSpec("event", "The event", 24.0),)


def blocks(heading: str, language: str) -> list[str]:
    """Code blocks of one part of the page."""
    part = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", part, flags=re.DOTALL)


def test_an_encoder_is_added_as_the_page_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusion.backbones.image.BUILDERS", dict(BUILDERS))
    monkeypatch.setitem(WIDTHS, "plain", 0)
    define, use = blocks("An image encoder", "python")
    exec(
        define.replace("BUILDERS[", "image.BUILDERS["), {"image": fusion.backbones.image, "__name__": "page"}
    )  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)
    examples = []
    for number in range(40):
        label = number % 2
        frames = fusion.Frames(
            (rng.random((1, 32, 32)) * (1 + label) / 2).astype(np.float32), np.zeros(1, np.float32)
        )
        image = fusion.PixelInput(str(number), lambda frames=frames: frames, frames.times_ms)  # type: ignore[misc]
        examples.append(
            Example(PatientInputs(key=str(number), images=(image,)), {"event": label}, str(number))
        )
    known: dict[str, Any] = {
        "FusionConfig": FusionConfig,
        "OUTCOMES": OUTCOMES,
        "Modality": Modality,
        "train": fusion.train,
        "examples": examples,
    }
    exec(use, known)
    said = [p.outcomes[0].risk for p in fusion.predict(known["bundle"], [e.inputs for e in examples])]
    assert np.mean(said[1::2]) > np.mean(said[::2]) + 0.2


MODALITY = """
import numpy as np
from fusion import Example, FieldSpec, FusionConfig, Modality, OutcomeSpec, PatientInputs, predict, train
OUTCOMES = (OutcomeSpec("event", "The event", 24.0),)
FIELDS = (FieldSpec("age", "Age", "a", low=0, high=120),)
rng = np.random.default_rng(0)
examples = []
for number in range(80):
    label = number % 2
    ecg = {lead: (90 + 8 * label + rng.normal(), 0.1, 0.3) for lead in ("I", "V1")} if number % 5 else {}
    inputs = PatientInputs(key=str(number), fields={"age": 60.0 + rng.normal()}, ecg=ecg)
    examples.append(Example(inputs, {"event": label}, str(number)))
"""
ASKED = """
with_it, without = predict(bundle, [examples[1].inputs, examples[5].inputs])
assert Modality.ECG in with_it.present and Modality.ECG in without.missing
assert with_it.outcomes[0].risk > 0.6, with_it.outcomes[0].risk
assert any(c.modality == Modality.ECG and c.points > 0.05 for c in with_it.outcomes[0].contributions)
assert "the electrocardiogram" in with_it.outcomes[0].summary
assert Modality.ECG in seen.present()
"""
KEPT = """
import json
from dataclasses import replace
from pathlib import Path
import torch
from fusion import Bundle, edge_export
from fusion.edge_inputs import read_inputs
from fusion.edge_model import EdgeModel
again = Bundle.load(Path("bundle"), digest=bundle.save(Path("bundle")))
asked = [examples[1].inputs, examples[5].inputs, replace(examples[2].inputs, fields={})]
wanted = predict(bundle, asked)
assert predict(again, asked) == wanted
trial = edge_export._trial(again).tokens[Modality.ECG]
assert trial.values.shape == (2, 12, 3) and bool(trial.known.all()), "the copy is checked with one present"
assert len(torch.unique(trial.values)) == 72
assert max(edge_export.export_bundle(again, Path("edge")).values()) <= 1e-4
model = EdgeModel(Path("edge"))
for inputs, original in zip(asked, wanted):
    Path("record.json").write_text(json.dumps({"fields": inputs.fields, "ecg": inputs.ecg}))
    answer = model.predict(read_inputs([Path("record.json")]))
    (got,), (whole,) = answer.risks, original.outcomes
    assert abs(got.risk - whole.risk) < 1e-4, (got.risk, whole.risk)
    assert [c.modality for c in got.contributions] == [c.modality for c in whole.contributions]
    assert "electrocardiogram" in got.summary
"""


def test_a_modality_is_added_as_the_page_says(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "fusion", tmp_path / "fusion", ignore=shutil.ignore_patterns("__pycache__"))
    (patch,) = blocks("A modality", "diff")
    (tmp_path / "ecg.diff").write_text(patch)
    git = ["git", "-c", "core.autocrlf=false", "apply", "--whitespace=nowarn", "ecg.diff"]
    subprocess.run(["git", "init", "-q", "."], cwd=tmp_path, check=True, capture_output=True)
    applied = subprocess.run(git, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert applied.returncode == 0, f"the page's edit no longer fits the code: {applied.stderr}"
    (use,) = blocks("A modality", "python")
    (tmp_path / "run.py").write_text(MODALITY + use + ASKED + KEPT)
    ended = subprocess.run(
        [sys.executable, "run.py"], cwd=tmp_path, capture_output=True, text=True, timeout=250, check=False
    )
    assert ended.returncode == 0, ended.stderr


def test_outcomes_are_added_as_the_page_says() -> None:
    inputs = PatientInputs(key="a", fields={"f0": 1.0})
    names: dict[str, Any] = {
        "OutcomeSpec": OutcomeSpec,
        "Example": Example,
        "FollowUp": FollowUp,
        "inputs": inputs,
    }
    binary, survival = blocks("An outcome", "python")
    for block in (binary, survival):
        exec(block, names)
        assert isinstance(names["example"], Example)
    rng = np.random.default_rng(0)
    examples = []
    for number in range(120):
        value = rng.normal()
        hours = float(rng.exponential(900 * np.exp(-value)))
        lost = float(rng.exponential(2500))
        seen = FollowUp(min(hours, lost), hours <= lost)
        record = PatientInputs(key=str(number), fields={"f0": value})
        examples.append(Example(record, {}, str(number), follow_up={"death": seen}))
    config = FusionConfig(
        outcomes=names["OUTCOMES"], fields=simulated.FIELDS[:1], modalities=(Modality.TABULAR,)
    )
    bundle = fusion.train(examples, [], config)
    (said,) = fusion.predict(bundle, [PatientInputs(key="a", fields={"f0": 1.0})])
    risks = [outcome.risk for outcome in said.outcomes]
    assert risks == sorted(risks)

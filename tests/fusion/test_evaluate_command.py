"""`python -m fusion.evaluate`: a saved bundle on a folder it has never seen; clear words where it cannot."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fusion
from fusion.bundle import folder_digest
from fusion.evaluate.__main__ import main
from fusion.evaluate.unseen import mark_groups
from fusion.research import read_collection
from tests.fusion.test_research_chest import lay_out


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(folder of bundles, the folder they were trained on)."""
    place = tmp_path_factory.mktemp("evaluate")
    seen = lay_out(place / "seen", 30, name="S")
    collection = read_collection(seen)
    for task in ("icu", "death"):
        config = fusion.FusionConfig(
            outcomes=(fusion.OutcomeSpec(task, task, 720.0),),
            **{
                **collection.settings,
                "image_backbone": "small_cnn",
                "image_size": 32,
                "epochs": 3,
                "folds": 2,
            },
        )
        examples = collection.tasks[task].examples
        bundle = fusion.train(examples[12:], examples[:12], config)
        mark_groups(bundle, [e.group for e in examples])
        bundle.save(place / "bundles" / task)
    return place / "bundles", seen


@pytest.fixture(scope="module")
def unseen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out(tmp_path_factory.mktemp("unseen") / "chest", 16, name="U")


def test_it_prints_every_figure_with_its_interval(
    trained: tuple[Path, Path], unseen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = tmp_path / "told.json"
    assert main([str(trained[0]), "--collection", str(unseen), "--json", str(told)]) == 0
    said = capsys.readouterr().out
    for name in ("AUROC", "AUPRC", "Brier", "calibration slope", "calibration intercept", "coverage"):
        assert name in said
    assert "32 / 16 / 16" in said, "rows, groups, events"
    found = {one["task"]: one for one in json.loads(told.read_text())}
    assert set(found) == {"icu", "death"}
    figures = found["icu"]["figures"]
    assert figures["AUROC"]["low"] <= figures["AUROC"]["value"] <= figures["AUROC"]["high"]
    assert 0 <= figures["coverage"]["low"] <= figures["coverage"]["high"] <= 1
    assert {row["attribute"] for row in found["icu"]["report"]["subgroups"]["icu"]} >= {"view", "sex"}


def test_one_task_of_one_bundle(
    trained: tuple[Path, Path], unseen: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(trained[0] / "death"), "--collection", str(unseen), "--task", "death"]) == 0
    said = capsys.readouterr().out
    assert "`death`" in said
    assert "`icu`" not in said


def test_patients_it_was_trained_on_are_refused(
    trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(trained[0]), "--collection", str(trained[1])]) == 2
    assert "trained on 30 of the 30 groups" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (
            ["{bundles}", "--collection", "{unseen}", "--task", "intubation"],
            "no bundle predicts 'intubation'",
        ),
        (["{bundles}", "--collection", "{bundles}"], "laid out like none of the known collections"),
        (["{unseen}", "--collection", "{unseen}"], "is no bundle"),
        (["{bundles}", "--collection", "{unseen}/nowhere"], "no such folder"),
        (["{bundles}", "--collection", "{unseen}", "--layout", "moon"], "no collection 'moon'"),
        (["{bundles}", "--collection", "{unseen}", "--layout", "skin_ham10000"], "lesions.csv"),
    ],
)
def test_it_says_why_it_cannot(
    arguments: list[str],
    why: str,
    trained: tuple[Path, Path],
    unseen: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settled = [a.format(bundles=trained[0], unseen=unseen) for a in arguments]
    assert main(settled) == 2
    said = capsys.readouterr()
    assert why in said.err
    assert not said.out


def test_a_bundle_of_another_collection_is_told_what_this_one_has(
    trained: tuple[Path, Path], unseen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "bundle"
    other.mkdir()
    for file in (trained[0] / "icu").iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    metadata = json.loads((other / "metadata.json").read_text())
    metadata["config"]["outcomes"][0]["name"] = "malignant"
    (other / "metadata.json").write_text(json.dumps(metadata))
    assert main([str(other), "--collection", str(unseen)]) == 2
    assert "cxr_covid has no task 'malignant'" in capsys.readouterr().err


def test_a_changed_bundle_is_refused(
    trained: tuple[Path, Path], unseen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "bundle"
    other.mkdir()
    for file in (trained[0] / "icu").iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    (other / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes()[:-1] + b"x")
    assert main([str(other), "--collection", str(unseen)]) == 2
    assert "BundleMismatch" in capsys.readouterr().err


def test_a_bundle_of_another_digest_is_refused(
    trained: tuple[Path, Path], unseen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Consistent in itself: only the digest tells that it is not the one that was approved."""
    digest = folder_digest(trained[0] / "icu")
    asked = ["--collection", str(unseen), "--digest", digest]
    assert main([str(trained[0] / "icu"), *asked]) == 0
    capsys.readouterr()
    other = tmp_path / "bundle"
    shutil.copytree(trained[0] / "icu", other)
    metadata = json.loads((other / "metadata.json").read_text())
    metadata["calibration"]["base_logit"][0] += 0.5
    (other / "metadata.json").write_text(json.dumps(metadata))
    assert main([str(other), "--collection", str(unseen)]) == 0
    capsys.readouterr()
    assert main([str(other), *asked]) == 2
    said = capsys.readouterr()
    assert "was registered" in said.err
    assert not said.out
    assert main([str(trained[0]), *asked]) == 2
    assert "a digest is of one bundle" in capsys.readouterr().err


def test_it_runs_as_a_module_without_warnings() -> None:
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-m", "fusion.evaluate", "--help"], capture_output=True, text=True
    )
    assert ran.returncode == 0
    assert "--collection" in ran.stdout
    assert not ran.stderr

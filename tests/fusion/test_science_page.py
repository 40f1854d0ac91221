"""docs/science.md is true: what its map names exists, and its examples run, on simulated patients."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fusion
from fusion import Example, FieldSpec, Frames, Modality, PixelInput, privacy
from fusion.imaging import detect, synthesise
from tests.fusion import simulated

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "science.md").read_text()
MAP = PAGE.split("\n## The map\n")[1].split("\n## ")[0]
LINKS = re.findall(r"\[([^\]]+)\]\(([^)]+)\)", MAP)
FIELDS = (
    FieldSpec("age", "Age", "a", low=0, high=120),
    FieldSpec("lactate", "Lactate", "mmol/L", low=0, high=30),
)
NOISE = 2.32
OUTCOMES = (fusion.OutcomeSpec("death", "Death", 720.0),)
QUICK: dict[str, Any] = {
    "channels": simulated.CHANNELS,
    "image_backbone": "small_cnn",
    "cine_backbone": "small_cnn",
    "text_backbone": "hashing",
    "image_size": 32,
    "cine_size": 32,
    "cine_frames": 6,
    "folds": 3,
    "epochs": 2,
}


def anchors(page: Path) -> set[str]:
    """What the headings of a page are called in links."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def blocks(heading: str) -> list[str]:
    """Python examples of one part of the page."""
    part = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", part, flags=re.DOTALL)


def test_every_file_heading_and_test_of_the_map_exists() -> None:
    known = {name: anchors(DOCS / name) for name in ("science.md", "experiments.md", "benchmarks.md")}
    for words, target in LINKS:
        place, _, anchor = target.partition("#")
        path = (DOCS / (place or "science.md")).resolve()
        assert path.is_file(), f"{words}: no file {target}"
        if anchor:
            assert anchor in known[path.name], f"{words}: no heading {target}"
        elif path.name.startswith("test_"):
            law = f"def test_{words.replace(' ', '_')}("
            assert law in path.read_text(), f"{path.name} has no {law}"


def section(page: str, anchor: str) -> str:
    """A part of a page, from its heading to the next of any level."""
    for part in re.split(r"^(?=#+ )", (DOCS / page).read_text(), flags=re.MULTILINE):
        heading = re.sub(r"^#+ ", "", part.split("\n", 1)[0]).lower()
        if re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") == anchor:
            return part
    raise AssertionError(f"{page} has no heading {anchor}")


def test_every_figure_of_the_map_stands_in_the_table_it_links() -> None:
    linked, figures = "", 0
    for row in MAP.splitlines():
        cell = row.rstrip("| ").rsplit(" | ", 1)[-1]
        pages = re.findall(r"\]\(((?:experiments|benchmarks)\.md)#([^)]+)\)", cell)
        linked = "".join(section(*page) for page in pages) if pages else linked  # else "the same table"
        for figure in re.findall(r"\d\.\d{3}", re.sub(r"\]\([^)]*\)", "]", cell)):
            assert figure in linked, f"{figure} is not in {pages or 'the same table'}: {cell}"
            figures += 1
    assert figures >= 3


def test_goals_are_missed_in_the_map_where_the_summary_says_so() -> None:
    said = section("experiments.md", "all-tasks-at-a-glance")
    for goal, row in (
        ("At least as good as the stack on every task", "at least as good as the stack on every task"),
        ("Never significantly worse than the best modality", "no subset worse than its best modality"),
    ):
        (line,) = (line for line in MAP.splitlines() if row in line)
        assert (f"{goal}: **missed**" in said) == ("**missed**" in line), line


def test_every_row_of_what_must_work_is_in_the_map() -> None:
    numbers = [int(n) for n in re.findall(r"\*\*\[(\d+) ", MAP)]
    assert numbers == list(range(1, 16))
    assert MAP.count("../tests/") > 60


def some(count: int, seed: int) -> list[Example]:
    """Simulated patients with two fields, series, a note, a picture and a clip that can be read."""
    rng = np.random.default_rng(seed)
    found: list[Example] = []
    for one in simulated.examples(count, seed, missing=0.0):
        number = len(found)
        inputs, dead = one.inputs, number % 2
        grey = rng.random((6, 32, 32), dtype=np.float32) * (0.7 + 0.3 * dead)
        grey[:, 2:8, 4:28] = 1  # a bar at the top: the picture has a right way up
        still = Frames(grey[:1], np.zeros(1, np.float32))
        image = PixelInput(f"i{seed}-{number}", partial(replace, still), still.times_ms)
        times = np.arange(6, dtype=np.float32) * 40
        cine = PixelInput(f"c{seed}-{number}", partial(Frames, grey, times), times)
        inputs = replace(
            inputs,
            fields={"age": 60 + 5 * rng.normal(), "lactate": 3 + dead + rng.random()},
            images=(image,),
            cines=(cine,),
        )
        found.append(Example(inputs, {"death": dead}, f"{seed}-{number}", one.attributes))
    return found


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return some(64, 1)


@pytest.fixture(scope="module")
def bundle(examples: list[Example]) -> fusion.Bundle:
    return fusion.train(examples, some(24, 2), fusion.FusionConfig(outcomes=OUTCOMES, fields=FIELDS, **QUICK))


@pytest.fixture
def given(
    examples: list[Example], bundle: fusion.Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """The names that examples take for granted; everything that learns is made small and quick."""
    rng = np.random.default_rng(0)
    monkeypatch.setattr(
        detect,
        "DetectorConfig",
        partial(detect.DetectorConfig, backbone="small_cnn", strides=(4, 8), size=48, epochs=1, width=16),
    )
    monkeypatch.setattr(synthesise, "train_gan", partial(synthesise.train_gan, steps=2, batch=4))
    # What it finds for these patients, in some seconds; that it does is tested in test_privacy.py.
    monkeypatch.setattr(privacy, "noise_for", lambda *_, patients: NOISE)
    small = {"widths": (8, 16), "size": 32, "epochs": 1}
    scene = rng.random((48, 48), dtype=np.float32)
    boxes = np.array([[4, 4, 40, 20], [4, 26, 40, 44]], np.float32)
    patient = examples[1].inputs
    picture = patient.images[0].read().values
    turned = Frames(np.ascontiguousarray(picture[:, ::-1, ::-1]), np.zeros(1, np.float32))
    names: dict[str, Any] = {name: getattr(fusion, name) for name in fusion.__all__}
    return names | {
        "np": np, "json": json, "Path": Path, "replace": replace, "fusion": fusion, "print": lambda *_: None,
        "FusionConfig": partial(fusion.FusionConfig, **QUICK),
        "SegmenterConfig": lambda **asked: fusion.SegmenterConfig(**{**asked, **small}),
        "outcomes": OUTCOMES, "fields": FIELDS, "examples": examples, "tuning": some(24, 2),
        "held_out": some(24, 3), "recent": [e.inputs for e in some(60, 4)], "bundle": bundle,
        "patient": patient, "key": "v1", "read": simulated.never_read, "folder": tmp_path / "detector",
        "SEGMENTER_STORE": tmp_path, "frames": Frames(scene[None], np.zeros(1, np.float32), (0.5, 0.5)),
        "clip": rng.random((4, 32, 32), dtype=np.float32), "drawn": drawings(12, 1),
        "watched": drawings(4, 1), "chests": drawings(12, 2), "scans": drawings(6, 1, deep=8),
        "drawn_boxes": [(scene, boxes)] * 8,
        "photographs": rng.random((64, 1, 64, 64), dtype=np.float32), "classes": np.repeat([0, 1], 32),
        "upside_down": replace(patient, images=(PixelInput("u", lambda: turned, turned.times_ms),)),
    }  # fmt: skip


def drawings(count: int, structures: int, *, deep: int = 0) -> list[fusion.Drawn]:
    """Squares in noise; or bars, `deep` slices of them."""
    rng = np.random.default_rng(count)
    mask = np.zeros((structures, 32, 32), bool)
    mask[:, 8:24, 8:24] = True
    if deep:
        mask = np.repeat(mask[:, None], deep, axis=1)
    return [
        fusion.Drawn(((mask[:1] + rng.random(mask[:1].shape)) / 2).astype(np.float32), mask)
        for _ in range(count)
    ]


def weighs(known: dict[str, Any]) -> bool:
    (weights,) = known["said"].frame_weights.values()
    return bool(abs(sum(weights) - 1) < 1e-4)


HOLDS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "Image encoders": lambda n: n["config"].finetune == "gradual",
    "Cine": weighs,
    "Volumes": lambda n: n["config"].volume_step_mm == 5 and n["pixels"].slice_mm == 2.5,
    "Segmentation and measurements": lambda n: (
        n["fraction"].unit == "%"
        and all((n["SEGMENTER_STORE"] / name / "measures.json").is_file() for name in ("chest", "tumour"))
    ),
    "Detection": lambda n: n["again"].detect(n["frames"]) == n["detector"].detect(n["frames"]),
    "Record encoders": lambda n: Modality.TEXT in n["patient"].present() and len(n["config"].genomics) == 2,
    "Fusion": lambda n: len(n["config"].outcomes) == 4 and not n["example"].labels,
    "Calibration, intervals, abstention": lambda n: n["said"].left_out and n["inside"] <= n["groups"],
    "Explanations": lambda n: n["said"].contributions and {"deletion", "insertion"} <= set(n["found"].sanity),
    "Class imbalance": lambda n: len(n["made"].keys) == 100,
    "Generalisation": lambda n: n["report"].pictures is not None and len(n["report"].inputs) >= 2,
    "Training": lambda n: n["rank"] == 0,
    "Fairness and privacy": lambda n: (
        "verdict" in n["report"].fairness["death"] and 2 < n["told"]["epsilon"] <= 3
    ),
    "Baselines": lambda n: {"tabular", "image", "sum of logits"} <= set(n["risks"]),
}


@pytest.mark.filterwarnings("ignore:Full backward hook", "ignore:Optimal order is the largest")
@pytest.mark.parametrize("heading", list(HOLDS))
def test_the_examples_of_the_page_run(heading: str, given: dict[str, Any]) -> None:
    if heading == "Fairness and privacy" and find_spec("opacus") is None:
        pytest.skip("needs the extra `privacy`")
    assert blocks(heading), "the part lost its example"
    for block in blocks(heading):
        exec(compile(block, f"science.md, {heading}", "exec"), given)
    assert HOLDS[heading](given)


def test_every_part_of_the_page_has_an_example_or_is_run_elsewhere() -> None:
    parts = re.findall(r"^## (.+)$", PAGE, flags=re.MULTILINE)
    assert set(parts) == {*HOLDS, "The map", "Small machines"}

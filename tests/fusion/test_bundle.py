"""A bundle comes back as it was, and is refused when anything about it differs."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import fusion
from fusion.bundle import folder_digest
from fusion.encoders.base import OLD_LIMIT
from fusion.encoders.trees import TREES
from fusion.monotone import Map
from fusion.rows import SUMMARY
from tests.fusion import simulated


@pytest.fixture
def folder(bundle: fusion.Bundle, tmp_path: Path) -> Path:
    bundle.save(tmp_path / "model", created_at="2026-11-23T12:00:00+00:00")
    return tmp_path / "model"


def test_it_comes_back_as_it_was(bundle: fusion.Bundle, folder: Path) -> None:
    digest = folder_digest(folder)
    again = fusion.Bundle.load(folder, digest=digest)
    patients = [e.inputs for e in simulated.examples(5, 21)]
    assert fusion.predict(again, patients) == fusion.predict(bundle, patients)
    assert again.config == bundle.config
    assert again.encoders == bundle.encoders
    assert again.metadata == json.loads((folder / "metadata.json").read_text())
    assert again.save(folder) == digest, "saving again changes nothing"
    assert sorted(p.name for p in folder.iterdir()) == ["metadata.json", "model.safetensors"]


def test_metadata_states_what_goes_in_and_comes_out(folder: Path) -> None:
    metadata = json.loads((folder / "metadata.json").read_text())
    inputs = {entry["modality"]: entry for entry in metadata["inputs"]}
    assert inputs["tabular"]["fields"][0] == {
        "name": "f0",
        "label": "First field",
        "unit": "mmol/L",
        "code": "",
        "kind": "numeric",
        "range": [-10, 10],
    }
    assert inputs["image"]["pixels"] == {"shape": ["H", "W"], "range": [0, 1], "resized_to": 32}
    assert inputs["image"]["encoder"] == simulated.IMAGE.version
    assert [o["name"] for o in metadata["outputs"]] == ["icu", "death"]
    assert metadata["cohort"]["train"] == 90
    assert metadata["created_at"] == "2026-11-23T12:00:00+00:00"
    assert "not for treatment decisions" in metadata["intended_use"]
    assert "1-0" not in json.dumps(metadata["cohort"]["events"]), "no patient is named"


def _metadata(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "metadata.json"
    metadata = json.loads(path.read_text())
    change(metadata)
    path.write_text(json.dumps(metadata))


def _weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change tensors and make the metadata agree, as somebody with both files could."""
    path = folder / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)
    sha = hashlib.sha256(path.read_bytes()).hexdigest()
    _metadata(folder, lambda metadata: metadata.update(weights_sha256=sha))


def test_a_bundle_from_before_components_had_limits_of_their_own_is_read(folder: Path) -> None:
    def without_limits(state: dict[str, torch.Tensor]) -> None:
        for name in [name for name in state if name.endswith(".projection.limit")]:
            del state[name]

    _weights(folder, without_limits)
    limits = [
        b for n, b in fusion.Bundle.load(folder).model.named_buffers() if n.endswith("projection.limit")
    ]
    assert limits
    assert all(bool((each == OLD_LIMIT).all()) for each in limits)


def test_a_bundle_from_before_a_series_had_its_trees_three_times_over_says_what_it_said(folder: Path) -> None:
    def fewer(state: dict[str, torch.Tensor]) -> None:
        for name in [name for name in state if ".series.trees." in name]:
            if name.endswith(".share"):
                del state[name]
            elif state[name].dim() == 3:
                state[name] = state[name][:, :TREES].contiguous()
        state["encoders.series.trees.value"][..., 0] = 0.01  # trees of one leaf
        state["encoders.series.trees.is_fitted"][:] = True

    _weights(folder, fewer)
    trees = fusion.Bundle.load(folder).model.encoder(fusion.Modality.SERIES).get_submodule("trees")
    said = trees(torch.zeros(1, 2 * len(SUMMARY)))
    torch.testing.assert_close(said, torch.full((1, 2), 0.01 * TREES))
    assert bool((trees.get_buffer("share") == 0.5).all())


def _flip_last_byte(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


NAME = "encoders.tabular.trunk.embed.weight"
TAMPERED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors"),
    "no metadata": (lambda f: (f / "metadata.json").unlink(), "has no metadata.json"),
    "metadata is not JSON": (lambda f: (f / "metadata.json").write_text("{"), "not JSON"),
    "metadata is a list": (lambda f: (f / "metadata.json").write_text("[]"), "not an object"),
    "one bit of the weights": (_flip_last_byte, "SHA-256 differs"),
    "weights are no tensors": (
        lambda f: (
            (f / "model.safetensors").write_bytes(b"PK\x03\x04 not tensors"),
            _metadata(
                f, lambda m: m.update(weights_sha256=hashlib.sha256(b"PK\x03\x04 not tensors").hexdigest())
            ),
        ),
        "not a safetensors file",
    ),
    "a key is gone": (lambda f: _metadata(f, lambda m: m.pop("intended_use")), "lacks intended_use"),
    "another format": (lambda f: _metadata(f, lambda m: m.update(format=99)), "format is 99"),
    "an unknown setting": (
        lambda f: _metadata(f, lambda m: m["config"].update(magic=1)),
        "does not describe",
    ),
    "fewer fields": (lambda f: _metadata(f, lambda m: m["config"]["fields"].pop()), "declared inputs"),
    "another range": (
        lambda f: _metadata(f, lambda m: m["config"]["fields"][0].update(high=99)),
        "declared inputs",
    ),
    "another embedding width": (lambda f: _metadata(f, lambda m: m["config"].update(width=17)), "expected"),
    "an outcome without interval": (lambda f: _metadata(f, lambda m: m["intervals"].pop()), "intervals"),
    "another encoder": (
        lambda f: _metadata(f, lambda m: _other_encoder(m)),
        "bundle declares small_cnn:00000000, here is small_cnn:",
    ),
    "a tensor is gone": (lambda f: _weights(f, lambda s: s.pop(NAME)), "do not fit"),
    "a tensor too many": (lambda f: _weights(f, lambda s: s.update(more=torch.zeros(1))), "more"),
    "a tensor of another shape": (
        lambda f: _weights(f, lambda s: s.update({NAME: s[NAME][:, :-1].clone()})),
        "expected",
    ),
    "a tensor of another type": (
        lambda f: _weights(f, lambda s: s.update({NAME: s[NAME].half()})),
        "float16",
    ),
    "a tensor not finite": (
        lambda f: _weights(f, lambda s: s.update({NAME: s[NAME] * torch.nan})),
        "not finite",
    ),
}


def _other_encoder(metadata: dict[str, Any]) -> None:
    metadata["encoders"]["image"] = "small_cnn:00000000"
    for entry in metadata["inputs"]:
        if entry["modality"] == "image":
            entry["encoder"] = "small_cnn:00000000"


@pytest.mark.parametrize("name", TAMPERED)
def test_a_tampered_bundle_is_refused(folder: Path, name: str) -> None:
    tamper, words = TAMPERED[name]
    tamper(folder)
    with pytest.raises(fusion.BundleMismatch, match=words):
        fusion.Bundle.load(folder)


def test_the_registered_digest_refuses_what_looks_consistent(folder: Path) -> None:
    digest = folder_digest(folder)
    _weights(folder, lambda state: state[NAME].add_(0.1))
    fusion.Bundle.load(folder)  # by itself it is a bundle …
    with pytest.raises(fusion.BundleMismatch, match="was registered"):
        fusion.Bundle.load(folder, digest=digest)  # … but not the one that was approved


Said = dict[str, Any]
STATED: dict[
    str, tuple[Callable[[Said], object], str]
] = {  # an entry → how it is changed, what is said of it
    "base rate": (lambda m: _put(m, "calibration", "base_logit", 1, math.nan), r"base_logit\[1\] is nan"),
    "infinite": (lambda m: _put(m, "calibration", "base_logit", 0, 1e999), r"base_logit\[0\] is inf.*finite"),
    "trust": (lambda m: _put(m, "calibration", "trust", 0, 1.5), r"trust\[0\] is 1.5, expected.*\[0, 1\]"),
    "trust that is nan": (lambda m: _put(m, "calibration", "trust", 0, math.nan), r"trust\[0\] is nan"),
    "no trust": (lambda m: m["calibration"]["trust"].pop(), "trust is of 1, expected one for each of the 2"),
    "falling map": (lambda m: _put(m, "calibration", "maps", 1, "scale", -1.0), r"maps\[1\].*rising map"),
    "scale": (lambda m: _put(m, "calibration", "maps", 0, "scale", math.nan), r"maps\[0\].*finite"),
    "shift": (lambda m: _put(m, "calibration", "maps", 0, "shift", 1e999), r"maps\[0\].*finite"),
    "points": (lambda m: _put(m, "calibration", "maps", 0, _isotonic(0.0, math.nan, 1.0, 2.0)), "finite"),
    "infinite points": (
        lambda m: _put(m, "calibration", "maps", 0, _isotonic(0.0, 1e999, 1e999, 1e999)),
        "finite",
    ),
    "points that fall": (lambda m: _put(m, "calibration", "maps", 0, _isotonic(0.0, 1.0, 2.0, 1.0)), "rise"),
    "odd points": (lambda m: _put(m, "calibration", "maps", 0, _isotonic(0.0, 1.0, 2.0)), r"maps\[0\].*each"),
    "an older scale": (
        lambda m: _older(m, "scale", math.nan),
        r"maps\[0\].scale is nan, expected a finite number, 0 or more",
    ),
    "an older scale below 0": (lambda m: _older(m, "scale", -1.0), r"maps\[0\].scale is -1"),
    "an older shift": (lambda m: _older(m, "shift", math.nan), r"maps\[0\].shift is nan"),
    "pattern": (
        lambda m: _pattern(m, "tabular+moon", [[1, 0], [1, 0]]),
        r"tabular\+moon.*expected tabular, ",
    ),
    "empty pattern": (lambda m: _pattern(m, "", [[1, 0], [1, 0]]), "modalities the model has not"),
    "pattern of one": (lambda m: _pattern(m, "tabular", [[1, 0]]), "'tabular'.*of 1, expected one for each"),
    "pattern's scale": (lambda m: _pattern(m, "tabular", [[-1, 0], [1, 0]]), r"scale\[0\] is -1"),
    "pattern's shift": (lambda m: _pattern(m, "tabular", [[1, 0], [1, math.nan]]), r"shift\[1\] is nan"),
    "a triple": (lambda m: _pattern(m, "tabular", [[1, 0, 2], [1, 0]]), "does not describe"),
    "scores": (lambda m: _put(m, "calibration", "scores", [{"beta": math.nan}, {}]), r"scores\[0\]"),
    "curves": (
        lambda m: _put(m, "calibration", "curves", [[0, 1]]),
        r"curves is \[\[0, 1\]\], expected \[\]",
    ),
    "level": (
        lambda m: _put(m, "intervals", 0, "level", 1.0),
        r"intervals\[0\].level is 1.0.*between 0 and 1",
    ),
    "level that is nan": (
        lambda m: _put(m, "intervals", 1, "level", math.nan),
        r"intervals\[1\].level is nan",
    ),
    "stated level": (lambda m: _put(m, "config", "interval_level", 2.0), "config.interval_level is 2.0"),
    "q": (lambda m: _put(m, "intervals", 1, "q", -3.0), r"intervals\[1\].q is -3.0, expected.*0 or more"),
    "q that is nan": (lambda m: _put(m, "intervals", 0, "q", math.nan), r"intervals\[0\].q is nan"),
    "group": (lambda m: _put(m, "intervals", 0, "group_size", -3), "group_size is -3, expected 1 patient"),
    "huge group": (lambda m: _put(m, "intervals", 0, "group_size", 1e999), "does not describe"),
    "groups": (lambda m: _put(m, "intervals", 0, "groups", -3), "groups is -3"),
    "q of a pattern": (lambda m: _put(m, "intervals", 0, "patterns", {"image": -3.0}), r"\['image'\] is -3"),
    "its name": (lambda m: _put(m, "intervals", 0, "patterns", {"moon": 0.1}), "'moon'.*the model has not"),
    "shifts": (lambda m: _put(m, "intervals", 0, "logit_shifts", {"sex=f": math.nan}), "logit_shifts.*nan"),
    "variances": (lambda m: _put(m, "intervals", 0, "shift_variances", {"": -3.0}), "shift_variances.*-3"),
    "older shifts": (lambda m: _put(m, "intervals", 0, "shifts", {"sex=f": math.nan}), "shifts.*nan"),
    "not a list": (lambda m: m.update(calibration=[]), "does not describe"),
    "words": (lambda m: _put(m, "calibration", "base_logit", 0, "low"), "does not describe"),
}


def _put(metadata: Said, *path: Any) -> None:
    """Set what lies at a path to its last part."""
    *places, last, value = path
    held: Any = metadata
    for place in places:
        held = held[place]
    held[last] = value


def _isotonic(*points: float) -> Said:
    return {"kind": "isotonic", "scale": 1.0, "shift": 0.0, "points": list(points)}


def _pattern(metadata: Said, name: str, pairs: list[list[float]]) -> None:
    metadata["calibration"]["patterns"][name] = pairs


def _older(metadata: Said, name: str = "", value: float = 0.0) -> None:
    """A scale and a shift per outcome, a shift per pattern; intervals with a q alone, or older shifts."""
    said = {"scale": [0.5, 0.6], "shift": [0.1, 0.2], "patterns": {"tabular": [0.3, 0.4]}}
    if name:
        said[name][0] = value  # type: ignore[index]
    kept = {key: metadata["calibration"][key] for key in ("base_logit", "trust", "fitted_on")}
    metadata["calibration"] = {**kept, **said}
    held = {"level": 0.9, "group_size": 5, "groups": 2}
    metadata["intervals"] = [{**held, "q": None}, {**held, "q": 0.3, "shifts": {"sex=f": 0.1}}]


@pytest.mark.parametrize("name", STATED)
def test_calibration_and_intervals_that_cannot_be_are_refused(folder: Path, name: str) -> None:
    change, words = STATED[name]
    _metadata(folder, change)
    with pytest.raises(fusion.BundleMismatch, match=words) as refused:
        fusion.Bundle.load(folder)
    assert "metadata.json" in str(refused.value)


def test_no_number_of_calibration_and_intervals_may_be_nan(folder: Path) -> None:
    path = folder / "metadata.json"
    original = path.read_text()
    said = {key: json.loads(original)[key] for key in ("calibration", "intervals")}
    places = _numbers(said)
    assert len(places) > 20
    for place in places:
        _metadata(folder, lambda metadata, place=place: _put(metadata, *place, math.nan))  # type: ignore[misc]
        with pytest.raises(fusion.BundleMismatch, match=place[0]):
            fusion.Bundle.load(folder)
        path.write_text(original)


def _numbers(said: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to every number."""
    if isinstance(said, dict | list):
        each = said.items() if isinstance(said, dict) else enumerate(said)
        return [path for key, value in each for path in _numbers(value, (*at, key))]
    return [at] if isinstance(said, int | float) else []


def test_older_forms_and_every_kind_of_map_are_read(folder: Path) -> None:
    _metadata(folder, _older)
    held = fusion.Bundle.load(folder)
    assert held.calibration.maps == (Map("scale and shift", 0.5, 0.1), Map("scale and shift", 0.6, 0.2))
    assert held.calibration.patterns == {"tabular": ((1.0, 0.3), (1.0, 0.4))}
    assert math.isinf(held.intervals[0].q)
    beta = {"kind": "beta", "scale": 1.0, "shift": 0.0, "points": [0.0, 1.0, -2.0]}
    _metadata(folder, lambda m: m["calibration"].update(maps=[beta, _isotonic(0.0, 1.0, 2.0, 2.0)]))
    _metadata(folder, lambda m: m["intervals"][0].update(patterns={"tabular+image": 0.0}))
    assert [one.kind for one in fusion.Bundle.load(folder).calibration.maps] == ["beta", "isotonic"]

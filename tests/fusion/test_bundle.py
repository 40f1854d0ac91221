"""A bundle comes back as it was, and is refused when anything about it differs."""

from __future__ import annotations

import hashlib
import json
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

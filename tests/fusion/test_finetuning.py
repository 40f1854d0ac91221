"""Transfer learning: what is trained when, at which rate; no patient's embedding is made by what learned
from that patient; the tuned backbone travels with the bundle."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fusion
from fusion import finetune as tuning
from fusion.augment import Augmentation
from fusion.backbones.image import BUILDERS
from fusion.backbones.stages import stages
from fusion.bundle import BACKBONE, METADATA
from fusion.config_json import config_from_json, config_to_json
from fusion.embedding import Embedder
from fusion.examples import Example
from fusion.finetune import Pictures, finetune
from fusion.inputs import Frames, PatientInputs, PixelInput
from fusion.train import _course
from fusion.widths import WIDTHS
from tests.fusion import simulated

SIZE = 24
CONFIG = simulated.make_config(
    modalities=(fusion.Modality.TABULAR, fusion.Modality.IMAGE),
    outcomes=simulated.OUTCOMES[:1],
    image_size=SIZE,
    folds=2,
    epochs=4,
    finetune="gradual",
    finetune_epochs=6,
    finetune_rate=0.02,
)
BASE = torch.zeros(1)


def silent(*_: object) -> None:
    pass


def picture(positive: bool, seed: int, *, colour: bool = False) -> np.ndarray:
    """Noise, and for a positive patient a stripe pattern that no mean over the picture shows."""
    rng = np.random.default_rng(seed)
    values = 0.5 + 0.1 * rng.standard_normal((1, SIZE, SIZE))
    if positive:
        values += 0.25 * np.where(np.arange(SIZE) // 2 % 2, 1, -1)
    values = np.clip(values, 0, 1).astype(np.float32)
    return np.repeat(values[:, None], 3, axis=1) if colour else values


def example(index: int, *, colour: bool = False) -> Example:
    positive = index % 2 == 0
    values = picture(positive, index, colour=colour)
    pixels = PixelInput(f"p{index}", lambda: Frames(values, np.zeros(1, np.float32)), np.zeros(1, np.float32))
    inputs = PatientInputs(key=str(index), fields={"f0": float(index % 3)}, images=(pixels,))
    return Example(inputs, {"icu": int(positive)}, group=f"g{index}")


TRAIN, TUNING = [example(i) for i in range(48)], [example(i) for i in range(100, 124)]


def pictures(examples: list[Example]) -> tuple[Pictures, torch.Tensor]:
    found = tuning.read_pictures([e.inputs for e in examples], fusion.load_backbone("small_cnn"), CONFIG)
    return found, torch.tensor([[float(e.labels["icu"])] for e in examples])


def tune(config: fusion.FusionConfig, **changes: object) -> tuning.Tuned:
    (train, labels), (held, held_labels) = pictures(TRAIN), pictures(TUNING)
    settled = {"base_logit": BASE, "log_odds": BASE, "tell": silent, **changes}
    backbone = fusion.load_backbone("small_cnn")
    torch.manual_seed(0)  # `fusion.train` does so once for all
    return finetune(backbone, train, labels, held, held_labels, config, **settled)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [n for n in fusion.image_backbone_names() if n != "resnet50"])
def test_every_parameter_that_is_used_is_in_one_stage(name: str) -> None:
    network = fusion.load_backbone(name).network
    found = stages(network)
    assert 4 <= len(found) <= 6
    listed = [id(p) for stage in found for module in stage for p in module.parameters()]
    assert len(listed) == len(set(listed))
    own = dict(network.named_parameters())
    left = [key for key, p in own.items() if id(p) not in set(listed)]
    assert all("_fc" in key or key.startswith("model.layernorm") for key in left), left
    first = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
    assert id(first.weight) in {id(p) for module in found[0] for p in module.parameters()}


def test_only_the_head_at_first_then_stages_from_the_last_back(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[bool]] = []
    original = tuning._Tuning.thaw

    def thaw(net: tuning._Tuning, count: int) -> None:
        original(net, count)
        seen.append([next(stage[0].parameters()).requires_grad for stage in net.stages])

    monkeypatch.setattr(tuning._Tuning, "thaw", thaw)
    told: list[int] = []
    tune(replace(CONFIG, finetune_epochs=9, patience=99), tell=lambda epoch, *_: told.append(epoch))
    by_epoch = seen[1:-1]
    assert len(by_epoch) == len(told) == 9
    assert not any(by_epoch[0]), "the new head learns alone at first"
    assert not any(by_epoch[1])
    assert by_epoch[2] == [False, False, False, True]
    assert by_epoch[3] == [False, False, True, True]
    assert all(by_epoch[-1])
    counts = [sum(thawed) for thawed in by_epoch]
    assert counts == sorted(counts)


def test_earlier_stages_learn_more_slowly() -> None:
    net = tuning._Tuning(fusion.load_backbone("small_cnn"), 1, is_frozen=False)
    rates = [rate for _, rate in net.rates(1.0)]
    assert rates == pytest.approx([1, 1 / 2.6, 1 / 2.6**2, 1 / 2.6**3, 1 / 2.6**4])
    assert len(net.rates(1.0)[1][0]) == 2, "weight and bias of the last stage"
    assert net.rates(1.0)[1][0][0] is net.network.layers[-1].weight


def test_statistics_of_normalisation_stay_those_of_pretraining() -> None:
    backbone = fusion.load_backbone("resnet18")
    net = tuning._Tuning(backbone, 1, is_frozen=False)
    net.thaw(5)
    before = {k: v.clone() for k, v in net.network.state_dict().items() if "running" in k}
    assert before
    net.train()(torch.rand(2, 1, 32, 32)).sum().backward()
    after = net.network.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in before.items())
    norm = next(m for m in net.network.modules() if isinstance(m, nn.BatchNorm2d))
    assert norm.weight.grad is not None, "its gain is trained"
    stem = net.network.model.embedder.embedder.convolution
    assert stem.weight.grad is not None, "a grey picture trains the first layer's three channels"


def test_the_head_alone_leaves_the_backbone_as_it_was() -> None:
    found = tune(replace(CONFIG, finetune="head"))
    assert found.backbone.version == fusion.load_backbone("small_cnn").version
    assert not found.backbone.is_tuned
    assert found.head.shape == (32, 1)
    assert float(found.head.abs().sum()) > 0


def test_gradual_changes_the_backbone_and_says_so_in_its_version() -> None:
    plain = fusion.load_backbone("small_cnn")
    found = tune(CONFIG)
    assert found.backbone.is_tuned
    assert found.backbone.version.startswith("small_cnn+tuned:")
    again = tune(CONFIG).backbone
    assert found.backbone.version == again.version, "same data, config and seed: the same weights"
    values = picture(True, 1)
    assert not np.allclose(found.backbone.embed(values, SIZE), plain.embed(values, SIZE), atol=1e-3)
    assert plain.version == fusion.load_backbone("small_cnn").version, "what came in is untouched"


def test_augmentation_sees_training_pictures_only_and_stays_within_bounds() -> None:
    seen: list[torch.Tensor] = []

    def augment(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        seen.append(values)
        return values + torch.randn(values.shape, generator=generator)

    tune(replace(CONFIG, finetune="head", finetune_epochs=1), augment=augment)
    assert sum(len(values) for values in seen) == len(TRAIN)
    assert all(0 <= float(values.min()) <= float(values.max()) <= 1 for values in seen)


def test_a_run_named_so_changes_its_training_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the config, which says so in the bundle; and a checkpoint of another choice is not used."""
    turned: list[tuple[float, bool]] = []

    def changed(self: Augmentation, values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        turned.append((self.degrees, self.flips))
        return values

    monkeypatch.setattr(Augmentation, "__call__", changed)
    short = replace(CONFIG, finetune="head", finetune_epochs=1, epochs=1)
    fusion.train(TRAIN, TUNING, short)
    assert turned == []
    for name, amounts in (("upright", (10.0, False)), ("any-way-up", (180.0, True))):
        config = replace(short, augment=fusion.Augment(name))
        bundle = fusion.train(TRAIN, TUNING, config)
        assert set(turned) == {amounts}
        said = json.loads(json.dumps(config_to_json(bundle.config)))
        assert config_from_json(said) == config
        assert config_from_json({k: v for k, v in said.items() if k != "augment"}) == short
        assert _course(TRAIN, TUNING, config) != _course(TRAIN, TUNING, short)
        turned.clear()


def test_colour_among_grey_makes_all_colour_and_no_picture_is_no_error() -> None:
    mixed = [example(0), example(1, colour=True)]
    found, _ = pictures(mixed)
    assert found.values.shape == (2, 3, SIZE, SIZE)
    assert pictures([example(0)])[0].values.shape == (1, 1, SIZE, SIZE)
    none = tuning.read_pictures([PatientInputs(key="x")], fusion.load_backbone("small_cnn"), CONFIG)
    assert len(none) == 0
    assert tuning.embed_pictures(fusion.load_backbone("small_cnn"), none).shape == (0, 32)


# -- on the real path --------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def tuned() -> fusion.Bundle:
    return fusion.train(TRAIN, TUNING, CONFIG)


def test_a_stripe_that_frozen_features_hardly_show_is_learned(tuned: fusion.Bundle) -> None:
    told = [example(i) for i in range(200, 240)]
    risks = [fusion.predict(tuned, [e.inputs])[0].outcomes[0].risk for e in told]
    high = [risk for e, risk in zip(told, risks, strict=True) if e.labels["icu"]]
    low = [risk for e, risk in zip(told, risks, strict=True) if not e.labels["icu"]]
    assert np.mean(high) - np.mean(low) > 0.5


def test_the_tuned_backbone_travels_with_the_bundle(tuned: fusion.Bundle, tmp_path: Path) -> None:
    digest = tuned.save(tmp_path, created_at="2026-01-01T00:00:00Z")
    held = fusion.Bundle.load(tmp_path, digest=digest)
    assert held.encoders["image"] == tuned.embedder.tuned.version
    assert held.encoders["image"].startswith("small_cnn+tuned:")
    inputs = [e.inputs for e in TUNING[:3]]
    for one, other in zip(fusion.predict(tuned, inputs), fusion.predict(held, inputs), strict=True):
        assert one.outcomes[0].risk == pytest.approx(other.outcomes[0].risk, abs=1e-7)
    changed = bytearray((tmp_path / BACKBONE).read_bytes())
    changed[-1] ^= 1
    (tmp_path / BACKBONE).write_bytes(bytes(changed))
    with pytest.raises(fusion.BundleMismatch, match=r"backbone.safetensors is not the file"):
        fusion.Bundle.load(tmp_path, digest=digest)
    (tmp_path / BACKBONE).unlink()
    with pytest.raises(fusion.BundleMismatch, match=r"no backbone.safetensors, and its image backbone"):
        fusion.Bundle.load(tmp_path, digest=digest)


def test_embeddings_of_the_frozen_backbone_are_not_taken_for_those_of_the_tuned(tuned: fusion.Bundle) -> None:
    plain = fusion.load_backbone("small_cnn")
    stale = {plain.version: np.zeros((1, 32), np.float32)}
    inputs = TUNING[0].inputs
    aged = replace(inputs, images=(replace(inputs.images[0], embeddings=stale),))
    one, other = (fusion.predict(tuned, [i])[0].outcomes[0].risk for i in (inputs, aged))
    assert one == other


def test_no_patient_is_embedded_out_of_fold_by_what_learned_from_that_patient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each fold tunes on its own training patients; all of them are tuned on once, at the end."""
    from fusion.image_tuning import ImageTuning

    seen: list[torch.Tensor] = []
    original = ImageTuning.tuned

    def watched(self: ImageTuning, who: torch.Tensor, *args: object, **kwargs: object) -> object:
        seen.append(who.clone())
        return original(self, who, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(ImageTuning, "tuned", watched)
    fusion.train(TRAIN, TUNING, replace(CONFIG, finetune_epochs=1, epochs=1))
    assert len(seen) == CONFIG.folds + 1
    assert bool(seen[-1].all())
    spoken_about = torch.stack([~who for who in seen[:-1]]).sum(0)
    assert bool((spoken_about == 1).all()), "every patient is left out of exactly one fold's tuning"


def test_cancelling_works_during_fine_tuning() -> None:
    def progress(at: fusion.Progress) -> bool:
        return not (at.step.endswith("fine-tuning") and at.epoch == 2)

    with pytest.raises(fusion.Cancelled, match="fine-tuning"):
        fusion.train(TRAIN, TUNING, CONFIG, progress=progress)


def test_a_training_goes_on_where_it_was_stopped(tuned: fusion.Bundle, tmp_path: Path) -> None:
    """Stopped in the middle of the second fold's fine-tuning; the same weights as if never stopped."""
    steps: list[str] = []

    def stop(at: fusion.Progress) -> bool:
        return not (at.step == "image, fold 2 of 2: fine-tuning" and at.epoch == 3)

    with pytest.raises(fusion.Cancelled):
        fusion.train(TRAIN, TUNING, CONFIG, checkpoint=tmp_path, progress=stop)
    assert {p.suffix for p in tmp_path.iterdir()} == {".safetensors"}

    def note(at: fusion.Progress) -> bool:
        if at.epoch:
            steps.append(f"{at.step} {at.epoch}")
        return True

    resumed = fusion.train(TRAIN, TUNING, CONFIG, checkpoint=tmp_path, progress=note)
    tuned_steps = [step for step in steps if "fine-tuning" in step]
    assert tuned_steps[0] == "image, fold 2 of 2: fine-tuning 3", "what was done is not done again"
    assert resumed.versions == tuned.versions
    own, other = tuned.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(own[key], other[key]) for key in own)
    assert json.dumps(resumed.calibration.to_json()) == json.dumps(tuned.calibration.to_json())


def test_what_finetune_may_say() -> None:
    with pytest.raises(fusion.BadInput, match="one of none, head, gradual, not 'all'"):
        fusion.train(TRAIN, TUNING, replace(CONFIG, finetune="all"))


class Stageless(nn.Module):
    """A network as one adds it, whose stages nobody has named."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.add_module(name, nn.Sequential(nn.Conv2d(3, 24, 3, stride=4), nn.ReLU()))
        self.width = 24

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for child in self.children():
            x = child(x)
        return x


@pytest.mark.parametrize("inside", ["layers", "features", "model"])
def test_an_encoder_without_stages_is_refused_in_words(monkeypatch: pytest.MonkeyPatch, inside: str) -> None:
    name = f"plain-{inside}"
    monkeypatch.setitem(BUILDERS, name, lambda: Stageless(inside))
    monkeypatch.setitem(WIDTHS, name, 24)
    config = replace(CONFIG, image_backbone=name, epochs=1)
    words = rf"stages of the image encoder '{name}'.*stages\.py, or train with finetune='head' or 'none'"
    with pytest.raises(fusion.BadInput, match=words):
        fusion.train(TRAIN, TUNING, config)


def test_metadata_names_no_path_of_this_machine(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    weights = tmp_path / "here" / "cnn.safetensors"
    weights.parent.mkdir()
    state = {k: v + 0.01 for k, v in fusion.load_backbone("small_cnn").network.state_dict().items()}
    save_file(state, weights)
    config = replace(CONFIG, finetune="none", image_weights=str(weights), epochs=1)
    bundle = fusion.train(TRAIN, TUNING, config)
    assert bundle.encoders["image"] == fusion.load_backbone("small_cnn", weights=weights).version
    digest = bundle.save(tmp_path / "bundle", created_at="2026-01-01T00:00:00Z")
    assert str(tmp_path) not in (tmp_path / "bundle" / METADATA).read_text()
    with pytest.raises(fusion.BundleMismatch, match=r"image weights cnn.safetensors.*IMAGE_WEIGHTS"):
        fusion.Bundle.load(tmp_path / "bundle", digest=digest)
    held = fusion.Bundle.load(tmp_path / "bundle", digest=digest, image_weights=weights)
    one, other = (fusion.predict(b, [TUNING[0].inputs])[0].outcomes[0].risk for b in (bundle, held))
    assert one == pytest.approx(other, abs=1e-7)
    save_file({k: v + 0.01 for k, v in state.items()}, weights)
    with pytest.raises(fusion.BundleMismatch, match=r"declares small_cnn:.*holds other weights"):
        fusion.Bundle.load(tmp_path / "bundle", digest=digest, image_weights=weights)
    assert Embedder(config).versions != bundle.versions

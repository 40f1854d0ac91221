"""Several views of one Study: pooled by attention, known by their kind, in any order and any number."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fusion
from fusion.batch import Tokens, collate
from fusion.embedding import Embedder
from fusion.encoders.image import ImageEncoder
from fusion.inputs import Frames, PatientInputs, PixelInput
from fusion.rows import VIEWS, view_flags
from tests.fusion import simulated

CONFIG = simulated.make_config(modalities=(fusion.Modality.IMAGE,), max_images=3)


@pytest.mark.parametrize(
    ("view", "flags"),
    [
        ("PA", (1, 0)),
        ("ap", (1, 0)),
        ("AP Supine", (1, 0)),
        ("LL", (0, 1)),
        ("L", (0, 1)),
        ("lateral", (0, 1)),
        ("", (0, 0)),
        ("Axial", (0, 0)),
    ],
)
def test_what_a_view_is_called(view: str, flags: tuple[float, float]) -> None:
    assert view_flags(view) == flags


def pixels(key: str, view: str) -> PixelInput:
    values = np.random.default_rng(len(key) + ord(key[0])).random((1, 32, 32)).astype(np.float32)
    return PixelInput(
        key, lambda: Frames(values, np.zeros(1, np.float32)), np.zeros(1, np.float32), view=view
    )


def test_flags_stand_after_the_embedding_and_absent_views_are_no_error() -> None:
    patients = [
        PatientInputs(key="a", images=(pixels("a", "PA"), pixels("b", "LL"))),
        PatientInputs(key="b", images=(pixels("c", ""),)),
        PatientInputs(key="c"),
    ]
    tokens = collate(patients, CONFIG, Embedder(CONFIG)).tokens[fusion.Modality.IMAGE]
    assert tokens.values.shape == (3, 2, 32 + len(VIEWS))
    assert tokens.values[0, :, 32:].tolist() == [[1, 0], [0, 1]]
    assert tokens.values[1, 0, 32:].tolist() == [0, 0]
    assert tokens.known.tolist() == [[True, True], [True, False], [False, False]]


def trained() -> tuple[ImageEncoder, Tokens]:
    """An encoder whose every part has weights, and tokens of patients with one to three views."""
    torch.manual_seed(0)
    encoder = ImageEncoder(12, 4, 2, flags=2)
    values = torch.randn(40, 3, 14)
    values[..., 12:] = torch.eye(2)[torch.randint(2, (40, 3))]
    known = torch.arange(3)[None] < torch.randint(0, 4, (40, 1))
    tokens = Tokens(torch.where(known[..., None], values, 0.0), known)
    encoder.fit_statistics(tokens)
    for parameter in encoder.parameters():
        parameter.data.normal_(std=0.5)
    return encoder.eval(), tokens


def test_order_of_views_changes_nothing_and_weights_sum_to_one() -> None:
    encoder, tokens = trained()
    found = encoder(encoder.prepare(tokens))
    assert found.weights is not None
    has = tokens.known.any(dim=1)
    assert torch.allclose(found.weights.sum(1), has.float(), atol=1e-6)
    assert bool((found.weights[~tokens.known] == 0).all())
    order = torch.tensor([2, 0, 1])
    turned = encoder(encoder.prepare(Tokens(tokens.values[:, order], tokens.known[:, order])))
    assert torch.allclose(turned.logits, found.logits, atol=1e-5)
    assert torch.allclose(turned.weights, found.weights[:, order], atol=1e-6)
    assert bool(torch.isfinite(found.logits).all()), "a patient without any view gives finite numbers"


def test_what_an_absent_view_would_have_held_changes_nothing() -> None:
    encoder, tokens = trained()
    found = encoder(encoder.prepare(tokens))
    noise = torch.where(tokens.known[..., None], tokens.values, torch.randn_like(tokens.values) * 50)
    other = encoder(encoder.prepare(Tokens(noise, tokens.known)))
    assert torch.allclose(other.logits, found.logits, atol=1e-6)


def test_the_kind_of_view_is_known_to_the_model() -> None:
    """The same picture called frontal and lateral; and attention may prefer one of them."""
    encoder, tokens = trained()
    two = Tokens(tokens.values[:1, :1].repeat(1, 2, 1).clone(), torch.ones(1, 2, dtype=torch.bool))
    two.values[0, :, 12:] = torch.eye(2)
    said = encoder(encoder.prepare(two))
    assert float((said.weights[0, 0] - said.weights[0, 1]).detach().abs()) > 1e-3
    frontal, lateral = (
        encoder(encoder.prepare(Tokens(two.values[:, i : i + 1], two.known[:, :1]))) for i in (0, 1)
    )
    assert not torch.allclose(frontal.logits, lateral.logits, atol=1e-3)


def test_a_config_of_before_has_no_flags() -> None:
    from fusion.config_json import config_from_json, config_to_json

    data = config_to_json(CONFIG)
    assert config_from_json(data).view_flags
    data.pop("view_flags")
    assert not config_from_json(data).view_flags

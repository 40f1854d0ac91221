"""Explanations add up, name what they mean, and never say why."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fusion
from fusion import Modality
from fusion.attribution import Part, _orders, shapley, valued
from fusion.wording import summarise_risk
from tests.fusion import simulated


def test_contributions_add_up_to_the_risk(bundle: fusion.Bundle) -> None:
    for prediction in fusion.predict(bundle, [e.inputs for e in simulated.examples(6, 11)]):
        for outcome in prediction.outcomes:
            assert [c.modality for c in outcome.contributions] == list(prediction.present)
            points = sum(c.points for c in outcome.contributions)
            assert outcome.base_rate + points == pytest.approx(outcome.risk, abs=1e-9)
            base_logit = math.log(outcome.base_rate / (1 - outcome.base_rate))
            logit = sum(c.logit for c in outcome.contributions)
            assert base_logit + logit == pytest.approx(outcome.logit, abs=1e-6)
            assert 1 / (1 + math.exp(-outcome.logit)) == pytest.approx(outcome.risk, abs=1e-9)


def test_drivers_add_up_to_their_modality(bundle: fusion.Bundle) -> None:
    told = {Modality.TABULAR, Modality.SERIES, Modality.TEXT, Modality.GENOMICS}
    for prediction in fusion.predict(bundle, [e.inputs for e in simulated.examples(6, 12)]):
        for outcome in prediction.outcomes:
            for share in outcome.contributions:
                drivers = [d for d in outcome.drivers if d.modality == share.modality]
                if share.modality not in told:
                    assert not drivers
                    continue
                assert sum(d.points for d in drivers) == pytest.approx(share.points, abs=1e-6)


def as_they_are(logits: np.ndarray, _: np.ndarray) -> np.ndarray:
    return logits


def test_shapley_equals_the_definition_by_orderings() -> None:
    """Against the average over all 4! orders of arrival, worked out by hand."""
    from itertools import permutations

    rng = np.random.default_rng(0)
    table = rng.normal(size=(16, 1))

    def fuse(_: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(table[(present.long() * torch.tensor([1, 2, 4, 8])).sum(1).numpy()])

    found = shapley(torch.zeros(4, 1), torch.ones(4, dtype=torch.bool), fuse, as_they_are)
    expected = np.zeros(4)
    for order in permutations(range(4)):
        held = 0
        for player in order:
            expected[player] += (table[held | 1 << player, 0] - table[held, 0]) / 24
            held |= 1 << player
    assert found.logit[:, 0] == pytest.approx(expected)


@settings(max_examples=25, deadline=None)
@given(players=st.integers(1, 8), hidden=st.integers(0, 255), seed=st.integers(0, 999))
def test_shapley_values_sum_to_the_logit_for_any_game(players: int, hidden: int, seed: int) -> None:
    """Efficiency, the null player, and one batch of 2^M coalitions, up to 8 modalities (Shapley 1953)."""
    rng = np.random.default_rng(seed)
    present = torch.tensor([not hidden >> m & 1 for m in range(players)])
    table = 3 * rng.normal(size=(2**players, 2))
    bits = torch.tensor([2**m for m in range(players)])
    null = int(rng.integers(players))
    calls = 0

    def fuse(_: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        without = (masks.long() * bits).sum(1).numpy() & ~(1 << null)  # this player changes nothing
        return torch.from_numpy(table[without])

    found = shapley(torch.zeros(players, 2), present, fuse, as_they_are)
    everyone = int((present.long() * bits).sum()) & ~(1 << null)
    assert calls == 1
    assert found.logit.sum(axis=0) == pytest.approx(table[everyone] - table[0], abs=1e-9)
    chance = 1 / (1 + np.exp(-table))
    assert found.points.sum(axis=0) == pytest.approx(chance[everyone] - chance[0], abs=1e-9)
    assert found.logit[null] == pytest.approx(0, abs=1e-12)
    assert found.logit[~present.numpy()] == pytest.approx(0)


def test_drivers_carry_raw_values_units_and_times(
    bundle: fusion.Bundle, patient: fusion.PatientInputs
) -> None:
    (prediction,) = fusion.predict(bundle, [patient])
    drivers = {(d.modality, d.name): d for d in prediction.outcomes[0].drivers}
    field = drivers[Modality.TABULAR, "f0"]
    assert (field.value, field.unit, field.label) == (patient.fields["f0"], "mmol/L", "First field")
    channel = drivers[Modality.SERIES, "c0"]
    latest = min((p for p in patient.series if p.channel == "c0"), key=lambda p: p.hours_before)
    assert (channel.value, channel.hours_before, channel.unit) == (latest.value, 0.5, "mm[Hg]")
    sentences = [d for d in prediction.outcomes[0].drivers if d.modality == Modality.TEXT]
    assert {d.text for d in sentences} == set(fusion.split_sentences(patient.notes[0].text))
    assert {d.key for d in sentences} == {patient.notes[0].key}
    points = [abs(d.points) for d in prediction.outcomes[0].drivers]
    assert points == sorted(points, reverse=True)


def test_what_matters_is_what_is_named(bundle: fusion.Bundle) -> None:
    """f0 moves the outcome and f1 does not: on average over patients it must show."""
    weight = {"f0": 0.0, "f1": 0.0}
    for prediction in fusion.predict(bundle, [e.inputs for e in simulated.examples(20, 13)]):
        for driver in prediction.outcomes[0].drivers:
            if driver.name in weight:
                weight[driver.name] += abs(driver.points)
    assert weight["f0"] > 1.5 * weight["f1"]


def test_frame_weights_name_kept_frames(bundle: fusion.Bundle, patient: fusion.PatientInputs) -> None:
    (prediction,) = fusion.predict(bundle, [patient], explain=False)
    (key,) = prediction.frame_weights
    assert key == patient.cines[0].key
    weights, kept = prediction.frame_weights[key], prediction.frame_indices[key]
    assert len(weights) == len(kept) == 8
    assert kept == sorted(set(kept))
    assert kept[0] == 0
    assert kept[-1] == 11
    assert sum(weights) == pytest.approx(1, abs=1e-5)


def test_without_explanation_nothing_is_explained(
    bundle: fusion.Bundle, patient: fusion.PatientInputs
) -> None:
    (full,) = fusion.predict(bundle, [patient])
    (bare,) = fusion.predict(bundle, [patient], explain=False)
    assert [o.risk for o in bare.outcomes] == [o.risk for o in full.outcomes]
    assert all(o.contributions == () and o.drivers == () and o.summary == "" for o in bare.outcomes)


CAUSAL = ("because", "cause", "due to", "leads to", "results in", "therefore", "treat", "should")


def test_the_summary_says_numbers_and_no_causes(bundle: fusion.Bundle) -> None:
    patients = [e.inputs for e in simulated.examples(5, 14)]
    for patient, prediction in zip(patients, fusion.predict(bundle, patients), strict=True):
        for outcome in prediction.outcomes:
            assert f"estimated at {100 * outcome.risk:.0f} %" in outcome.summary
            assert f"model was trained is {100 * outcome.base_rate:.0f} %" in outcome.summary
            assert not any(word in outcome.summary.lower() for word in CAUSAL)
            assert patient.key not in outcome.summary
            assert ("Not available" in outcome.summary) == bool(prediction.missing)


def test_wording_of_one_estimate() -> None:
    assert summarise_risk(
        label="Death",
        horizon_hours=720,
        risk=0.23,
        low=0.15,
        high=0.33,
        level=0.9,
        base_rate=0.08,
        contributions=[
            fusion.Contribution(Modality.IMAGE, 0.12, 0.9),
            fusion.Contribution(Modality.TABULAR, 0.04, 0.3),
            fusion.Contribution(Modality.TEXT, -0.01, -0.1),
        ],
        drivers=[
            fusion.Driver(Modality.TABULAR, "spo2", "Oxygen saturation", 0.05, 88.0, "%"),
            fusion.Driver(Modality.TABULAR, "smoker", "Smoker", -0.01, 0.0),
        ],
        missing=[Modality.CINE, Modality.GENOMICS],
        pending=[Modality.CINE],
    ) == (
        "Death within 30 days: estimated at 23 %. Among patients scored alike, 15 % to 33 % are expected to "
        "have it; a range made this way holds for 90 % of groups of such patients. The average where the "
        "model was trained is 8 %. Raising the estimate: the image (+12 points) and the record (+4 points). "
        "Lowering it: the notes (−1 point). Most associated with it: Oxygen saturation 88 % (+5 points) "
        "and Smoker no (−1 point). Still being processed: the cine. Not available: genomic findings."
    )


def test_an_answer_draws_nothing_and_leaves_no_trace(bundle: fusion.Bundle) -> None:
    """The same to the last bit after other patients, whatever the random state; which stays as it was."""
    people = [e.inputs for e in simulated.examples(6, 13)]
    first = [fusion.predict(bundle, [one])[0] for one in people]
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again = [fusion.predict(bundle, [one])[0] for one in reversed(people)][::-1]
    assert torch.equal(state, torch.get_rng_state())
    assert again == first


def test_parts_are_valued_as_when_revealed_one_by_one() -> None:
    """`valued` asks for many coalitions at once, and averages over subsets before it takes steps: here each
    is asked alone."""
    place, others, parts = 0, 2, 5  # five of six tokens are known: more than every order is tried for
    rng = np.random.default_rng(7)
    weight = torch.from_numpy(rng.normal(size=6)).float()
    shown = np.array([True, True, False, True, True, True])
    evidence, present = torch.tensor([[0.0], [0.7], [-0.4]]), torch.ones(3, dtype=torch.bool)

    def speak(asked: np.ndarray) -> torch.Tensor:
        said = (torch.from_numpy(asked) * weight).sum(1)
        return (said + 0.3 * said**2)[:, None]

    def fuse(given: torch.Tensor, here: torch.Tensor) -> torch.Tensor:
        return (given[..., 0] * here).sum(1, keepdim=True)

    def varied(masks: np.ndarray, said: torch.Tensor) -> torch.Tensor:
        given = evidence.repeat(len(masks), len(said), 1, 1)
        given[:, :, place] = said
        asked = torch.from_numpy(masks).repeat_interleave(len(said), 0)
        return fuse(given.flatten(0, 1), asked).view(len(masks), len(said), 1)

    _, (points,) = valued(evidence, present, fuse, as_they_are, [Part(place, shown, speak, varied)])
    found = points[:, 0]
    known = [0, 1, 3, 4, 5]
    expected, orders = np.zeros(6), _orders(parts)
    for order in orders:
        for subset in range(2**others):
            inside = [m for m in (1, 2) if subset >> (m - 1) & 1]
            chance = math.factorial(len(inside)) * math.factorial(others - len(inside)) / math.factorial(3)
            mask, before = np.zeros((1, 6), bool), sum(float(evidence[m]) for m in inside)
            risk = 1 / (1 + math.exp(-before))
            for part in order:
                mask[0, known[part]] = True
                after = 1 / (1 + math.exp(-before - float(speak(mask))))
                expected[known[part]] += chance * (after - risk) / len(orders)
                risk = after
    np.testing.assert_allclose(found, expected, atol=1e-7)

"""One tiny bundle for all tests of fusion."""

from __future__ import annotations

import pytest

import fusion
from tests.fusion import simulated


@pytest.fixture(scope="session")
def bundle() -> fusion.Bundle:
    """Trained on 90 simulated patients with gaps; 6 modalities, 2 outcomes."""
    return fusion.train(simulated.examples(90, 1), simulated.examples(40, 2), simulated.make_config())


@pytest.fixture(scope="session")
def patient() -> fusion.PatientInputs:
    """A patient who has everything."""
    return simulated.examples(1, 3, missing=0.0)[0].inputs

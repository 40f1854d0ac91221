"""What one EHR's calls wait for leaves threads to everybody else's."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest

from cds.hooks import serving, waiting
from cds.hooks.models import HookClient
from cds.registry.models import ModelVersion
from cds.risk import assessing
from cds.risk.models import RiskAssessment
from tests.cds.hooks.conftest import SERVICE, Call, hook_body, patient_resource
from tests.cds.hooks.test_fetching import FhirServer, access, server

__all__ = ["server"]


def test_places_are_counted_for_all_and_for_each() -> None:
    assert waiting.MOST_EACH < waiting.MOST < serving.THREADS
    places = waiting.Places(3, 2)
    with ExitStack() as held:
        assert [held.enter_context(places.one_of("a")) for _ in range(3)] == [True, True, False]
        assert [held.enter_context(places.one_of("b")) for _ in range(2)] == [True, False]
    with places.one_of("a") as is_free:
        assert is_free, "all were given back"
    with pytest.raises(KeyError), places.one_of("a"):
        raise KeyError
    assert not places._held


@pytest.fixture
def no_place(hook_client: HookClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other calls of this EHR wait at all of its places."""
    places = waiting.Places(waiting.MOST, waiting.MOST_EACH)
    for _ in range(waiting.MOST_EACH):
        assert places._take(hook_client.pk)
    monkeypatch.setattr(waiting, "PLACES", places)


@pytest.mark.usefixtures("no_place")
def test_without_a_place_the_fhir_server_is_not_asked(
    call: Call, version: ModelVersion, server: FhirServer
) -> None:
    prefetch = {"patient": patient_resource()}
    response = call(SERVICE, hook_body(prefetch=prefetch, **access(server.base)))
    assert "Not supplied by the EHR: " in response.json()["cards"][0]["detail"]
    response = call(SERVICE, hook_body("p2", prefetch=None, **access(server.base, patient="p2")))
    assert response.status_code == 412
    assert "too many calls are waiting already" in response.json()["issue"][0]["diagnostics"]
    assert not server.asked
    waiting.PLACES._give_back(next(iter(waiting.PLACES._held)))
    call(SERVICE, hook_body(prefetch=prefetch, **access(server.base)))
    assert server.asked, "a place is free again"


@pytest.mark.usefixtures("no_place")
def test_without_a_place_no_score_is_waited_for(
    call: Call, version: ModelVersion, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.HOOKS_WAIT_S = 60.0
    waited = list[float]()

    def wait(asked: Any, deadline: float, wait_s: float) -> None:
        waited.append(wait_s)

    monkeypatch.setattr(assessing, "_wait_for", wait)
    (card,) = call(SERVICE, hook_body()).json()["cards"]
    assert "not yet known" in card["summary"]
    assert RiskAssessment.objects.count() == 1, "it is asked for all the same"
    assert not waited
    waiting.PLACES._give_back(next(iter(waiting.PLACES._held)))
    call(SERVICE, hook_body())
    assert waited
    assert waiting.PLACES._held.total() == waiting.MOST_EACH - 1

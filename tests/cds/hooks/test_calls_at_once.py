"""Two calls about one patient at once: whichever is kept last, the record says what that one sent."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

import ehr
from cds.hooks.models import PrefetchRead
from cds.patients.models import Observation, Patient
from cds.registry.models import ModelVersion
from tests.cds.hooks.conftest import SERVICE, Call, heart_rate, hook_body, patient_resource, searchset

AT = timezone.now() - timedelta(hours=1)


def prefetch(**values: float) -> dict[str, Any]:
    """The heart rates by their ids."""
    rates = [heart_rate(value, at=AT, resource_id=name) for name, value in values.items()]
    return {"patient": patient_resource(), "vitals": searchset(*rates)}


def values() -> dict[str, float | None]:
    return dict(Observation.objects.values_list("resource_id", "value"))


def test_what_another_call_changed_meanwhile_is_not_taken_for_read(
    call: Call, version: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    call(SERVICE, hook_body(prefetch=prefetch(hr1=120)))
    whole, read = ehr.read_prefetch, list[Any]()

    def another_call_first(*args: Any, **kwargs: Any) -> Any:
        read.append(kwargs["unread"])
        if len(read) == 1:  # between what was looked up and the lock of the patient
            call(SERVICE, hook_body(prefetch=prefetch(hr1=80)))
        return whole(*args, **kwargs)

    monkeypatch.setattr("ehr.read_prefetch", another_call_first)
    later = hook_body(prefetch=prefetch(hr1=120, hr2=70))
    assert call(SERVICE, later).status_code == 200
    assert values() == {"hr1": 120, "hr2": 70}
    assert [bool(unread) for unread in read] == [True, True, False], "the second time all of it"
    assert PrefetchRead.objects.get().revision == Patient.objects.get().revision, "known from now on"
    assert call(SERVICE, later).status_code == 200
    assert len(read) == 3


def test_an_unchanged_patient_is_read_once(
    call: Call, version: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    call(SERVICE, hook_body(prefetch=prefetch(hr1=120)))
    whole, read = ehr.read_prefetch, list[Any]()

    def watched(*args: Any, **kwargs: Any) -> Any:
        read.append(kwargs["unread"])
        return whole(*args, **kwargs)

    monkeypatch.setattr("ehr.read_prefetch", watched)
    call(SERVICE, hook_body(prefetch=prefetch(hr1=120, hr2=70)))
    assert (len(read), values()) == (1, {"hr1": 120, "hr2": 70})

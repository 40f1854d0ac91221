"""What the screens say of limits: maps not to be trusted, pictures left out, inputs that shifted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.test import Client
from django.utils import timezone

from cds.patients.models import Patient
from cds.risk.models import HeatMap, RiskAssessment, ShiftReport
from cds.studies.models import Series
from tests.web.clinic import Clinic

CHECKS = {
    "check": "…",
    "direction": "lowers",
    "correlation": 0.1,
    "deletion": 0.31,
    "insertion": 0.64,
    "random_deletion": 0.44,
    "random_insertion": 0.47,
    "faithful": True,
    "passed": True,
    "why": "",
}


def panel(client: Client, patient: Patient) -> str:
    return client.get(f"/patients/{patient.pk}/risk").content.decode()


def put_checks(patient: Patient, **changes: object) -> None:
    held = HeatMap.objects.filter(prediction__assessment__patient=patient)
    assert held.update(sanity={**CHECKS, **changes})


def test_a_map_that_passed_says_what_it_was_asked(ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    put_checks(ward.patients[0])
    page = panel(sign_in("clinician"), ward.patients[0])
    assert "differs from that of a random model, as it should" in page
    assert "where the picture lowers the estimate" in page
    assert "given back first 0.64 (random places 0.47), taken away first 0.31 (random places 0.44)" in page
    assert "The places it marks matter more than places drawn at random." in page
    assert "Do not rely on this map" not in page


def test_a_map_that_failed_is_marked_not_to_be_relied_on(
    ward: Clinic, sign_in: Callable[[str], Client]
) -> None:
    why = "places it marks matter no more than places drawn at random"
    put_checks(ward.patients[0], passed=False, faithful=False, why=why)
    page = panel(sign_in("clinician"), ward.patients[0])
    assert f"Do not rely on this map: {why}." in page
    assert 'class="notice warn small" data-testid="heat-sanity"' in page
    assert "matter more than" not in page


def test_a_map_from_before_the_checks_is_still_shown(ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    """Stored before deletion and insertion were measured: only the random model was asked."""
    HeatMap.objects.update(sanity={"passed": False})
    page = panel(sign_in("clinician"), ward.patients[0])
    assert "Do not rely on this map: it looks like that of a random model." in page
    HeatMap.objects.update(sanity={})
    assert "Not checked against a random model." in panel(sign_in("clinician"), ward.patients[0])


def test_a_picture_that_was_left_out_says_why(ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    patient = ward.patients[0]
    picture = Series.objects.filter(study__patient=patient, frames=1).latest("study__started_at")
    newest = RiskAssessment.objects.filter(patient=patient).latest("as_of")
    RiskAssessment.objects.filter(pk=newest.pk).update(
        left_out={picture.pixels_digest: "it seems to be upside-down"}
    )
    page = panel(sign_in("clinician"), patient)
    assert "not used for this score: it seems to be upside-down" in page
    assert "picture was left out as out of scope: it seems to be upside-down" in page
    assert "Partial" in page


@pytest.fixture
def report(ward: Clinic) -> ShiftReport:
    def row(label: str, psi: float | None, band: str, **more: object) -> dict[str, object]:
        return {"kind": "field", "name": label.lower(), "label": label, "psi": psi, "missing_then": 0.1,
                "missing_now": 0.12, "known": 90, "band": band, **more}  # fmt: skip

    return ShiftReport.objects.create(
        version=ward.version,
        at=timezone.now(),
        scores=100,
        inputs=[
            row("Sodium", 0.04, "steady"),
            row("Lactate", 0.41, "red"),
            row("Heart rate", 0.15, "amber", kind="channel"),
            row("Troponin", None, "too few", missing_now=0.9),
        ],
        pictures={"pictures": 80, "p": 1e-7, "effect": 2.14, "band": "red"},
    )


def test_the_model_page_shows_what_has_shifted(
    ward: Clinic, sign_in: Callable[[str], Client], report: ShiftReport
) -> None:
    page = sign_in("admin").get(f"/models/{ward.version.pk}").content.decode()
    assert page.count('data-testid="drift-row"') == 4
    order = [page.index(f'<th scope="row">{label}') for label in ("Lactate", "Heart rate, course", "Sodium")]
    assert order == sorted(order), "the shifted ones first"
    assert '<span class="tag red">strongly shifted</span>' in page
    assert '<span class="tag amber">shifted</span>' in page
    assert "0.41" in page
    assert "Means of 80 pictures lie 2.1 standard deviations from those of training (p &lt; 0.0001)" in page
    assert "not that the estimates are wrong" in page
    assert "100 patients" in page


def test_without_a_comparison_the_page_shows_no_table(ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    page = sign_in("admin").get(f"/models/{ward.version.pk}").content.decode()
    assert 'data-testid="shift"' not in page

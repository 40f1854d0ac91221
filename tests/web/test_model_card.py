"""The card on screen: reached from a score, written by admins, exported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.test import Client

from tests.web.clinic import Clinic


def test_it_is_one_click_from_the_score(ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    client = sign_in("clinician")
    panel = client.get(f"/patients/{ward.patients[0].pk}/risk").content.decode()
    assert f'href="/models/{ward.version.pk}/card"' in panel
    page = client.get(f"/models/{ward.version.pk}/card").content.decode()
    assert page.count('data-testid="attribute"') == 31
    assert "not provided" in page
    assert ">Edit<" not in page
    assert ">Write<" not in page


def test_an_admin_writes_and_everybody_reads(ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    address = f"/models/{ward.version.pk}/card/details.developer"
    admin = sign_in("admin")
    assert 'name="number" value="0"' in admin.get(address).content.decode()
    sent = admin.post(address, {"number": "0", "text": "Ward 3 <b>team</b>"})
    assert sent.status_code == 302
    page = sign_in("clinician").get(f"/models/{ward.version.pk}/card").content.decode()
    assert "Ward 3 &lt;b&gt;team&lt;/b&gt;" in page
    again = admin.post(address, {"number": "0", "text": "other"})
    assert again.status_code == 409
    assert "somebody else" in again.content.decode()
    assert "other" in again.content.decode()


@pytest.mark.parametrize(
    ("number", "text"), [("", "x"), ("one", "x"), ("²", "x"), ("9" * 5000, "x"), ("0", "x" * 4001)]
)
def test_a_bad_form_says_what_is_wrong_and_keeps_the_text(
    ward: Clinic, sign_in: Callable[[str], Client], number: str, text: str
) -> None:
    answer = sign_in("admin").post(
        f"/models/{ward.version.pk}/card/details.developer", {"number": number, "text": text}
    )
    assert answer.status_code == 400
    assert 'role="alert"' in answer.content.decode()
    assert text in answer.content.decode()


def test_the_export_is_json_to_keep(ward: Clinic, sign_in: Callable[[str], Client]) -> None:
    answer = sign_in("approver").get(f"/models/{ward.version.pk}/card.json")
    assert answer["Content-Disposition"] == 'attachment; filename="icu-admission-v2-card.json"'
    assert answer.json()["schema"] == "tessera-model-card/1"


def test_the_sites_own_policy_is_on_model_card_and_panel(
    ward: Clinic, sign_in: Callable[[str], Client], tmp_path: Path, settings: Any
) -> None:
    settings.RISK_POLICIES = tmp_path / "policies.json"
    texts = {"high": "Call the outreach team.", "very-high": "Call the registrar."}
    site = {
        "moderate": 0.05,
        "high": 0.125,
        "very-high": 0.4,
        "texts": texts,
        "link": "https://policy.example",
    }
    settings.RISK_POLICIES.write_text(json.dumps({"icu-admission": site}))
    client = sign_in("approver")
    page = client.get(f"/models/{ward.version.pk}/card").content.decode()
    assert "from 12.5 %" in page
    assert "Call the outreach team." in page
    assert 'href="https://policy.example"' in page
    told = client.get(f"/models/{ward.version.pk}/card.json").json()
    assert told["site_policy"] == {"icu-admission": site}
    panel = sign_in("clinician").get(f"/patients/{ward.patients[0].pk}/risk").content.decode()
    assert "Call the registrar." in panel
    assert 'href="https://policy.example"' in panel


def test_the_card_states_epsilon_and_delta_or_that_there_is_none(
    ward: Clinic, sign_in: Callable[[str], Client]
) -> None:
    client, place = sign_in("approver"), f"/models/{ward.version.pk}/card"
    assert "No differential privacy" in client.get(place).content.decode()
    assert client.get(f"{place}.json").json()["privacy"] is None
    promised = {
        "mechanism": "DP-SGD", "epsilon": 2.9876, "delta": 1e-05, "unit": "patient: one row of each",
        "patients": 412, "noise_multiplier": 2.7, "clip": 1.0, "sample_rate": 0.125, "steps": 480,
        "accountant": "Rényi", "covers": "weights", "does_not_cover": ["tuning patients", "the report"],
    }  # fmt: skip
    ward.version.metadata["privacy"] = promised
    ward.version.save()
    page = client.get(place).content.decode()
    assert "ε = 2.99 at δ = 1e-05, for each patient" in page
    assert "does not cover tuning patients; the report." in page
    assert "No differential privacy" not in page
    assert client.get(f"{place}.json").json()["privacy"] == promised

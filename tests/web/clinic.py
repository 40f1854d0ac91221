"""A small clinic in rows, for looking at screens: people, patients, pixels, scores. No model runs here."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from django.conf import settings
from django.contrib.auth.models import User
from django.utils import timezone

import ehr
from cds.audit import recording
from cds.hooks import registering as hooks
from cds.hooks.models import CardShown, Feedback, HookClient
from cds.jobs.models import WorkState
from cds.launch import registering as launch
from cds.patients import access
from cds.patients.models import Note, Observation, Patient, PatientIdentifier, Source
from cds.registry.models import ActiveModel, Cohort, ModelVersion, Promotion, Stage, TrainingRun
from cds.risk import responding, thresholds
from cds.risk.models import (
    AssessmentStatus,
    HeatMap,
    Response,
    RiskAssessment,
    RiskPrediction,
    ShiftReport,
)
from cds.studies.models import Series, Study, StudyState

PASSWORD = "correct horse battery"
OUTCOME = "icu-admission"
LABEL = "Admission to intensive care within 14 days"
BY = recording.system("test")


@dataclass
class Clinic:
    """Everything made, by name."""

    now: datetime
    people: dict[str, User]
    version: ModelVersion
    patients: list[Patient]


def person(name: str, *roles: access.Role, unit: str = "", full_name: str = "") -> User:
    """A user with roles, a member of a unit."""
    user = User.objects.create_user(name, password=PASSWORD, first_name=full_name)
    for role in roles:
        access.give_role(user, role)
    if unit:
        access.join_unit(user, unit)
    return user


def people() -> dict[str, User]:
    """One of each role, and a clinician of another unit."""
    return {
        "clinician": person("clinician", access.Role.CLINICIAN, unit="Ward 4"),
        "stranger": person("stranger", access.Role.CLINICIAN, unit="Ward 9"),
        "admin": person("admin", access.Role.ADMIN),
        "approver": person("approver", access.Role.APPROVER),
        "nobody": person("nobody"),
    }


def patient(
    number: int, *, family: str, given: str, now: datetime, unit: str = "Ward 4", simulated: bool = True
) -> Patient:
    """A patient of a unit with a record number."""
    source, _ = Source.objects.get_or_create(
        slug="simulated", defaults={"title": "Simulated hospital", "simulated": simulated, "created_at": now}
    )
    made = Patient.objects.create(
        source=source,
        resource_id=f"p{number}",
        family=family,
        given=given,
        birth_date=(now - timedelta(days=365 * (50 + number % 40))).date(),
        sex="male" if number % 2 else "female",
        unit=access.Unit.objects.get_or_create(name=unit)[0],
        revision=1,
        changed_at=now,
    )
    PatientIdentifier.objects.create(patient=made, system="urn:mrn", value=f"MRN-{4000 + number}")
    return made


def observations(
    of: Patient, code: str, unit: str, values: list[float], *, now: datetime, low: float, high: float
) -> None:
    """Values six hours apart, the last one two hours old."""
    for i, value in enumerate(values):
        at = now - timedelta(hours=2 + 6 * (len(values) - 1 - i))
        Observation.objects.create(
            patient=of,
            resource_type="Observation",
            resource_id=f"{code}-{i}",
            available_at=at,
            effective_at=at,
            digest=f"{i}",
            code_system="http://loinc.org",
            code=code,
            value=value,
            unit=unit,
            low=low,
            high=high,
            category="laboratory",
        )


def note(of: Patient, text: str, *, now: datetime) -> Note:
    """A note of yesterday."""
    return Note.objects.create(
        patient=of,
        resource_type="DocumentReference",
        resource_id=uuid.uuid4().hex,
        digest="d",
        title="Progress note",
        text=text,
        text_digest=uuid.uuid4().hex,
        author="Dr Winter",
        available_at=now - timedelta(hours=20),
    )


def series(of: Patient, *, now: datetime, frames: int = 1, side: int = 256) -> Series:
    """A Series with pixels on disk: a chest-like picture, or a beating ring."""
    uid = f"2.25.{uuid.uuid4().int}"
    study = Study.objects.create(
        source=of.source, patient=of, study_uid=uid, started_at=now - timedelta(hours=5), received_at=now,
        state=StudyState.ENCODED, description="Chest" if frames == 1 else "Echo",
    )  # fmt: skip
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    pictures = []
    for t in range(frames):
        if frames == 1:
            lungs = np.exp(-(((np.abs(x) - 0.42) / 0.26) ** 2) - ((y + 0.05) / 0.62) ** 2)
            heart = np.exp(-(((x - 0.12) / 0.22) ** 2) - ((y - 0.35) / 0.3) ** 2)
            pictures.append(np.clip(0.72 - 0.55 * lungs + 0.35 * heart - 0.2 * (np.hypot(x, y) > 1.1), 0, 1))
        else:
            radius = 0.45 + 0.1 * np.sin(2 * np.pi * t / frames)
            ring = np.exp(-(((np.hypot(x, y * 1.2) - radius) / 0.08) ** 2))
            pictures.append(np.clip(0.85 * ring * (np.abs(x) < 0.8 - 0.3 * y) + 0.05, 0, 1))
    kept = Series(
        study=study,
        series_uid=f"{uid}.1",
        imaging_modality="CR" if frames == 1 else "US",
        body_part="CHEST" if frames == 1 else "HEART",
        view="PA" if frames == 1 else "A4C",
        frames=frames,
        rows=side,
        columns=side,
        frame_ms=None if frames == 1 else 42.0,
        pixels_digest=uuid.uuid4().hex,
        spacing_row_mm=1.4 if frames == 1 else None,
        spacing_column_mm=1.4 if frames == 1 else None,
    )
    kept.clip_path = f"{study.pk}/{kept.pk}/clip.npy"
    path = Path(settings.STUDY_STORE) / kept.clip_path
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.round(np.stack(pictures) * 65535).astype(np.uint16))
    np.save(path.with_suffix(".times.npy"), np.arange(frames, dtype=np.float32) * 42)
    kept.save()
    return kept


def report() -> dict[str, Any]:
    """A fusion.Report as JSON with every part."""
    fpr = np.linspace(0, 1, 60)
    roc = [[float(f), float(f**0.35)] for f in fpr]
    pr = [[float(r), float(0.92 - 0.6 * r**2.2)] for r in np.linspace(0.01, 1, 50)]
    bins = [
        {"mean": m, "observed": o, "n": n}
        for m, o, n in [
            (0.04, 0.03, 38),
            (0.11, 0.13, 30),
            (0.22, 0.19, 22),
            (0.41, 0.46, 14),
            (0.63, 0.6, 10),
            (0.82, 0.88, 8),
        ]
    ]

    def measured(value: float, half: float) -> dict[str, float]:
        return {"value": value, "low": value - half, "high": min(1.0, value + half)}

    return {
        "held_out": {"n": 122, "patients": 98},
        "outcomes": {
            OUTCOME: {
                "n": 122,
                "events": 27,
                "base_rate": 27 / 122,
                "auroc": measured(0.84, 0.07),
                "auprc": measured(0.66, 0.12),
                "brier": measured(0.121, 0.02),
                "calibration": {"slope": 0.94, "intercept": -0.05, "ece": 0.031, "bins": bins},
                "roc": roc,
                "pr": pr,
                "coverage": {"level": 0.9, "observed": 0.92, "groups": 10},
            }
        },
        "ablation": {
            OUTCOME: [
                {
                    "name": "everything",
                    "modalities": ["tabular", "series", "text", "image", "cine"],
                    "auroc": measured(0.84, 0.07),
                },
                {"name": "record only", "modalities": ["tabular", "series"], "auroc": measured(0.77, 0.08)},
                {"name": "image only", "modalities": ["image"], "auroc": measured(0.71, 0.09)},
                {"name": "cine only", "modalities": ["cine"], "auroc": measured(0.62, 0.11)},
            ]
        },
        "baselines": {
            OUTCOME: [
                {"name": "logistic regression on the record", "auroc": measured(0.75, 0.08)},
                {"name": "base rate", "auroc": measured(0.5, 0.0)},
            ]
        },
        "subgroups": {
            OUTCOME: [
                {
                    "attribute": "sex",
                    "value": "female",
                    "n": 60,
                    "events": 14,
                    "auroc": measured(0.83, 0.1),
                    "mean_risk": 0.21,
                    "observed": 0.233,
                    "note": "",
                },
                {
                    "attribute": "sex",
                    "value": "male",
                    "n": 62,
                    "events": 13,
                    "auroc": measured(0.85, 0.1),
                    "mean_risk": 0.23,
                    "observed": 0.21,
                    "note": "",
                },
                {
                    "attribute": "age",
                    "value": "under 50",
                    "n": 21,
                    "events": 3,
                    "auroc": None,
                    "mean_risk": 0.1,
                    "observed": 0.14,
                    "note": "too few events",
                },
            ]
        },
    }


def version(
    number: int, *, now: datetime, stage: str = Stage.ACTIVE, run: TrainingRun | None = None
) -> ModelVersion:
    """A model version with a report; its bundle is a folder with nothing in it."""
    return ModelVersion.objects.create(
        name=OUTCOME, number=number, run=run, outcomes=[OUTCOME], stage=stage, path=f"bundle-{number}",
        digest=f"{number}" * 64, encoders={"image": "efficientnet_lite0:1a2b3c4d", "text": "minilm:9f8e7d6c"},
        metadata={
            "intended_use": "To help clinicians decide whom to look at first.",
            "fields": [{"name": f"f{i}"} for i in range(30)], "cohort_counts": {"patients": 412},
            "config": {"modalities": ["tabular", "series", "text", "image", "cine"]}, "licence": "Apache-2.0",
        },
        report=report(), simulated=True, created_at=now - timedelta(days=20 - number),
    )  # fmt: skip


def training_run(
    now: datetime, *, by: User, state: str = WorkState.DONE, fraction: float = 1.0
) -> TrainingRun:
    """A run with a loss curve."""
    cohort = Cohort.objects.create(outcomes=[OUTCOME], cutoff_at=now, digest="c" * 64, frozen_at=now)
    history = [
        {
            "step": "training",
            "epoch": e,
            "train_loss": 0.7 * 0.93**e + 0.1,
            "tuning_loss": 0.72 * 0.95**e + 0.14,
        }
        for e in range(1, int(40 * fraction) + 1)
    ]
    return TrainingRun.objects.create(
        cohort=cohort,
        outcomes=[OUTCOME],
        config={"epochs": 40},
        note="Monthly retraining",
        requested_by=by,
        step="training the fusion head" if state == WorkState.RUNNING else "done",
        fraction=fraction,
        history=history,
        work_state=state,
        queued_at=now - timedelta(minutes=9),
        started_at=now - timedelta(minutes=8),
        lease_owner="test",
        lease_until=now + timedelta(hours=1),
        simulated=True,
    )


def explanation(risk: float, base: float, note_of: Note | None, low: float, high: float) -> dict[str, Any]:
    """fusion.OutcomePrediction as JSON: contributions that sum to the risk, drivers that sum to them."""
    total = risk - base
    shares = {"series": 0.46, "image": 0.3, "cine": 0.16, "text": 0.18, "tabular": -0.1}
    points = {name: total * share for name, share in shares.items()}

    def driver(modality: str, name: str, label: str, share: float, **more: Any) -> dict[str, Any]:
        return {
            "modality": modality,
            "name": name,
            "label": label,
            "points": points[modality] * share,
            "value": None,
            "unit": "",
            "hours_before": 2.0,
            "text": "",
            "key": "",
            **more,
        }

    drivers = [
        driver("series", "lactate", "Lactate", 0.6, value=4.1, unit="mmol/L"),
        driver("series", "respiratory_rate", "Respiratory rate", 0.45, value=26.0, unit="/min"),
        driver("series", "spo2", "Oxygen saturation", -0.05, value=95.0, unit="%"),
        driver("image", "image", "Chest image", 1.0),
        driver("cine", "cine", "Echo cine", 1.0),
        driver("tabular", "age", "Age", -0.4, value=71.0, unit="a"),
        driver("tabular", "smoker", "Current smoker", 0.9, value=0.0, unit="1"),
        driver("tabular", "heart_failure", "Heart failure", 0.5, value=1.0, unit="1"),
    ]
    if note_of is not None:
        drivers += [
            driver(
                "text", "note", "Note", 0.8, text=note_of.text.split(". ")[0] + ".", key=note_of.text_digest
            ),
            driver("text", "note", "Note", 0.2, text="Mobilises with one person.", key=note_of.text_digest),
        ]
    return {
        "outcome": OUTCOME,
        "label": LABEL,
        "horizon_hours": 336.0,
        "risk": risk,
        "low": low,
        "high": high,
        "level": 0.9,
        "logit": 0.0,
        "base_rate": base,
        "drivers": drivers,
        "contributions": [{"modality": m, "points": p, "logit": 0.0} for m, p in points.items()],
        "summary": "The estimate is above the base rate, mostly because of labs over time and the image.",
    }


def assessment(
    of: Patient, by_version: ModelVersion, *, now: datetime, risk: float | None, **more: Any
) -> RiskAssessment:
    """A finished assessment with its prediction; risk None: abstained."""
    at = more.pop("as_of", now - timedelta(minutes=12))
    made = RiskAssessment.objects.create(
        patient=of,
        version=by_version,
        key=uuid.uuid4().hex,
        as_of=at,
        revision=more.pop("revision", of.revision),
        status=more.pop("status", AssessmentStatus.FINAL if risk is not None else AssessmentStatus.CANCELLED),
        inputs_digest="e" * 64,
        data_until=at - timedelta(minutes=40),
        present=["tabular", "series", "text", "image", "cine"],
        missing=more.pop("missing", ["genomics"]),
        missing_fields=["troponin_i", "bnp"],
        abstained=more.pop("abstained", ""),
        basis=more.pop("basis", [{"type": "Observation", "id": "2524-7-3"}]),
        work_state=WorkState.DONE,
        queued_at=at,
        started_at=at,
        finished_at=at + timedelta(seconds=2),
        correlation_id="0b7c2a9e",
        milliseconds={"build_inputs": 14.0, "model": 6.0},
        frame_weights=more.pop("frame_weights", {}),
        retrospective=more.pop("retrospective", False),
        **{k: v for k, v in more.items() if k in {"pending"}},
    )
    if risk is not None:
        low, high = max(0.0, risk - 0.07), min(1.0, risk + 0.09)
        RiskPrediction.objects.create(
            assessment=made,
            outcome=OUTCOME,
            label=LABEL,
            horizon_hours=336.0,
            risk=risk,
            low=low,
            high=high,
            level=0.9,
            base_rate=0.2213,
            category=thresholds.category_of(OUTCOME, risk).value,
            explanation=explanation(risk, 0.2213, more.get("note"), low, high),
        )
    return made


def heat_map(of: RiskAssessment, on: Series, now: datetime) -> HeatMap:
    """A blob low on the right, with its sanity check."""
    y, x = np.mgrid[0:28, 0:28]
    values = np.exp(-(((x - 18) / 5.0) ** 2) - ((y - 17) / 6.0) ** 2).astype(np.float16)
    path = f"heatmaps/{uuid.uuid4().hex}.npy"
    (Path(settings.STUDY_STORE) / "heatmaps").mkdir(parents=True, exist_ok=True)
    np.save(Path(settings.STUDY_STORE) / path, values)
    return HeatMap.objects.create(
        prediction=of.predictions.get(),
        series=on,
        method="Grad-CAM",
        path=path,
        sanity={"passed": True},
        created_at=now,
    )


def build(now: datetime | None = None, *, patients: int = 30) -> Clinic:
    """A ward: one rich patient, one of each state, and others to fill pages."""
    now = now or datetime.now(UTC)
    folk = people()
    first = version(1, now=now, stage=Stage.RETIRED)
    model = version(2, now=now, run=training_run(now, by=folk["admin"]))
    version(3, now=now, stage=Stage.CANDIDATE)
    ActiveModel.objects.create(outcome=OUTCOME, version=model, previous=first, since=now - timedelta(days=3))
    Promotion.objects.create(
        version=model,
        reason="Better calibrated on this year's patients",
        requested_by=folk["admin"],
        requested_at=now - timedelta(days=4),
        decided_by=folk["approver"],
        decided_at=now - timedelta(days=3),
        approved=True,
    )
    made = [rich_patient(model, first, now)]
    random = np.random.default_rng(7)
    names = [
        "Adler",
        "Brandt",
        "Celik",
        "Dorn",
        "Ebert",
        "Fuchs",
        "Graf",
        "Haas",
        "Iwanow",
        "Jung",
        "Krause",
        "Lang",
    ]
    for i in range(1, patients):
        who = patient(i, family=names[i % len(names)], given=["Ada", "Ben", "Cem", "Dora"][i % 4], now=now)
        made.append(who)
        if i == 1:
            assessment(
                who, model, now=now, risk=None, abstained="outside the age range the model knows (18 to 95)"
            )
        elif i == 2:
            assessment(who, model, now=now, risk=0.31)
            Patient.objects.filter(pk=who.pk).update(revision=2)
        elif i == 3:
            failed = assessment(who, model, now=now, risk=None)
            RiskAssessment.objects.filter(pk=failed.pk).update(
                work_state=WorkState.FAILED, failure="the worker ran out of memory three times"
            )
        elif i == 4:
            continue  # never scored: Updating
        elif i == 5:
            assessment(who, model, now=now, risk=0.12, status=AssessmentStatus.PRELIMINARY, pending=["image"])
        elif i == 6:
            old = now - timedelta(days=400)
            assessment(who, model, now=now, risk=0.44, as_of=old, retrospective=True)
        else:
            assessment(who, model, now=now, risk=float(np.clip(random.beta(1.2, 5), 0.004, 0.97)))
    return Clinic(now=now, people=folk, version=model, patients=made)


def rich_patient(model: ModelVersion, earlier: ModelVersion, now: datetime) -> Patient:
    """Labs, notes, image with heat map, cine with weights, a trend over two models."""
    who = patient(0, family="Sommer", given="Clara", now=now)
    observations(who, "2524-7", "mmol/L", [1.4, 1.6, 2.2, 2.9, 4.1], now=now, low=0.5, high=2.2)
    observations(who, "9279-1", "/min", [16, 18, 19, 22, 26], now=now, low=12, high=20)
    observations(who, "59408-5", "%", [97, 96, 96, 95, 95], now=now, low=94, high=100)
    written = note(
        who,
        "More breathless since this morning, needs two pillows. Mobilises with one person. Eats well.",
        now=now,
    )
    still, moving = series(who, now=now), series(who, now=now, frames=24, side=160)
    for i, risk in enumerate([0.16, 0.17, 0.21, 0.2, 0.27, 0.33, 0.41, 0.47]):
        hours = 46 - i * 6 if i > 3 else 60 - i * 6
        assessment(
            who,
            earlier if i < 3 else model,
            now=now,
            risk=risk,
            as_of=now - timedelta(hours=hours),
            note=written,
        )
    latest = assessment(
        who,
        model,
        now=now,
        risk=0.5234567,
        note=written,
        basis=[
            {"type": "Observation", "id": "2524-7-4"},
            {"type": "ImagingStudy", "id": still.study.study_uid},
            {"type": "ImagingStudy", "id": moving.study.study_uid},
        ],
        frame_weights={
            moving.pixels_digest: {
                "indices": list(range(0, 24, 2)),
                "weights": [0.04, 0.05, 0.06, 0.09, 0.14, 0.17, 0.13, 0.1, 0.08, 0.06, 0.05, 0.03],
            }
        },
    )
    heat_map(latest, still, now)
    return who


def feedback(made: Clinic) -> None:
    """Three weeks of cards in an EHR and of answers to them, an abstention, and two comparisons of inputs."""
    score = RiskAssessment.objects.filter(version=made.version, predictions__isnull=False).first()
    assert score is not None
    prediction, now = score.predictions.get(), made.now
    random = np.random.default_rng(3)
    for number in range(120):
        at = now - timedelta(hours=4 * number + 1)
        hook = ("patient-view", "order-sign", "encounter-start")[number % 3]
        card = CardShown.objects.create(
            service=f"tessera-{OUTCOME}-{hook}", hook_instance=str(uuid.UUID(int=number)),
            prediction=prediction, kind="stale" if number % 9 == 0 else "risk", patient=score.patient,
            outcome=OUTCOME, indicator="warning" if number % 4 == 0 else "info",
            version=made.version, milliseconds=float(random.gamma(3, 12)), shown_at=at,
        )  # fmt: skip
        if number % 3:
            is_kept = bool(random.random() < 0.6)
            Feedback.objects.create(
                card=card, outcome="accepted" if is_kept else "overridden", outcome_at=at, received_at=at,
                reason_code="" if is_kept else ("cds-not-applicable", "action-completed")[number % 2],
                reason_system="" if is_kept else responding.REASON_SYSTEM,
            )  # fmt: skip
    RiskAssessment.objects.filter(version=made.version, finished_at=None, work_state=WorkState.DONE).update(
        finished_at=now - timedelta(minutes=40),
        milliseconds={"build_inputs": 21.0, "model": 9.0, "store": 3.0},
    )
    clinician = made.people["clinician"]
    for kind, code in (("acknowledged", ""), ("acknowledged", ""), ("overridden", "action-completed")):
        Response.objects.create(prediction=prediction, kind=kind, reason_code=code, by=clinician, at=now)
    for ago, band in ((1, "amber"), (7, "steady")):
        ShiftReport.objects.create(
            version=made.version,
            at=now - timedelta(hours=ago),
            scores=28,
            inputs=[
                {"name": "lactate", "label": "Lactate", "kind": "field", "band": band, "psi": 0.16,
                 "missing_then": 0.2, "missing_now": 0.44},
                {"name": "heart-rate", "label": "Heart rate", "kind": "channel", "band": "steady",
                 "psi": 0.02, "missing_then": 0.01, "missing_now": 0.0},
            ],
        )  # fmt: skip


def now_aware() -> datetime:
    """The moment, with a zone."""
    return timezone.now()


def ehrs(made: Clinic) -> dict[str, str]:
    """One EHR that calls, its keys at an address that has stopped answering; one that launches us."""
    source, now = made.patients[0].source, made.now
    client, _ = hooks.register(
        "Example Hospital EHR",
        issuer="https://ehr.example.org",
        jwks=ehr.public_keys([ehr.new_key("EC"), ehr.new_key("EC")]),
        source=source,
        origins=["https://ehr.example.org"],
        fhir_servers=["https://fhir.example.org/r4"],
        tenant="north",
        by=BY,
        now=now - timedelta(days=40),
    )
    HookClient.objects.filter(pk=client.pk).update(
        jwks_url="http://127.0.0.1:1/keys",
        keys_read_at=now - timedelta(hours=3),
        keys_tried_at=now - timedelta(minutes=1),
        keys_problem="the key set could not be read: GET /keys: the server answered 503",
        last_call_at=now - timedelta(minutes=4),
    )
    server, _ = launch.register(
        "Example Hospital EHR",
        issuer="https://fhir.example.org/r4",
        client_id="tessera",
        source=source,
        is_confidential=True,
        origins=["https://login.example.org"],
        by=BY,
        now=now - timedelta(days=40),
    )
    return {"client": str(client.pk), "server": str(server.pk)}

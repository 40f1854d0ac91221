"""Results as measuring and scoring leave them, for tests of sending; and a sender that works here and now."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
from django.conf import settings
from django.utils import timezone

from cds.jobs.models import WorkState
from cds.patients.models import Patient
from cds.risk.models import HeatMap, RiskPrediction
from cds.sending import composing, delivering, destinations
from cds.sending.models import Destination, Document, DocumentKind
from cds.studies import clips, receiving
from cds.studies.models import Measurement, Outline, Series
from tests.cds.dicom_files import write_radiograph
from tests.factories import NOW, TESTS, make_source

FHIR = "https://ehr.example/fhir"


def add_destination(address: str = FHIR, *, slug: str = "ehr", **changes: object) -> Destination:
    given = {"source": make_source(), "by": TESTS, "now": NOW - timedelta(minutes=1), **changes}
    return destinations.add(slug, address=address, **given)  # type: ignore[arg-type]


def refuse(destination: Destination, reason: str, *, state: str = WorkState.FAILED) -> Document:
    """A document that a destination did not take, or with another state one that waits."""
    return Document.objects.create(
        destination=destination, kind=DocumentKind.DEVICE, subject=str(uuid.uuid4()), identity=uuid.uuid4(),
        order=timezone.now(), queued_at=timezone.now(), work_state=state, failure=reason,
        finished_at=timezone.now() if state == WorkState.FAILED else None,
    )  # fmt: skip


def send_all(*, now: datetime = NOW + timedelta(minutes=1), rounds: int = 6) -> None:
    """As beat and worker do: compose what was made until `now`, then deliver until nothing moves."""
    composing.compose_all(now=now)
    for _ in range(rounds):
        delivering.wake_due(now=timezone.now())
        waiting = Document.objects.filter(work_state=WorkState.QUEUED).order_by("order")
        for pk in waiting.values_list("pk", flat=True):
            delivering.deliver(pk)


def states() -> dict[str, str]:
    return dict(Document.objects.order_by("order", "kind").values_list("kind", "work_state"))


def make_radiograph(folder: Path, patient: Patient) -> Series:
    """One that came as a file, decoded."""
    path = write_radiograph(folder / "one.dcm", patient_id=f"MRN-{patient.resource_id}")
    received = receiving.receive_file(path, source=patient.source, by=TESTS, now=NOW)
    assert received.study is not None, received.reason
    receiving.complete(received.study, by=TESTS, now=NOW)
    return Series.objects.select_related("study").get(study=received.study)


def draw(series: Series, *, version: str = "aaaaaaaa", at: datetime = NOW) -> Outline:
    """A heart within lungs, and the sizes measured from them."""
    masks = np.zeros((1, series.rows, series.columns, 2), bool)
    masks[:, 2:14, 3:21, 1] = True
    masks[:, 7:13, 8:16, 0] = True
    folder, name = f"{series.study_id}/{series.pk}", f"{series.pixels_digest}.{version}"
    key = {"series": series, "pixels_digest": series.pixels_digest, "method_version": version}
    for size, value, unit in (("cardiothoracic_ratio", 8 / 18, "1"), ("lung_area", None, "cm2")):
        Measurement.objects.create(
            **key, name=size, value=value, unit=unit, method="By hand", made_at=at,
            why="" if value else "the pixel spacing is not known",
        )  # fmt: skip
    return Outline.objects.create(
        **key,
        structures=["heart", "lungs"],
        frames=clips.frame_sources(series),
        path=clips.keep_masks(masks, folder, name),
        method="By hand",
        made_at=at,
    )


def colour(series: Series, prediction: RiskPrediction, *, passed: bool = True, at: datetime = NOW) -> HeatMap:
    path = f"heatmaps/{prediction.pk}.npy"
    target = Path(settings.STUDY_STORE) / path
    target.parent.mkdir(parents=True, exist_ok=True)
    np.save(target, np.linspace(0, 1, 49, dtype=np.float16).reshape(7, 7))
    return HeatMap.objects.create(
        prediction=prediction,
        series=series,
        method="grad-cam",
        path=path,
        sanity={"passed": passed},
        created_at=at,
    )

"""The second path, end to end: a DICOM file arrives, workers encode, score and explain, the panel shows it.

A real file through the real door, a real broker, real worker processes, a real (tiny) model.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.utils import timezone

from cds.audit import recording
from cds.jobs import Queue
from cds.jobs.models import LiveEvent, WorkState
from cds.patients import importing
from cds.patients.models import Patient
from cds.risk import assessing, queries
from cds.risk.models import AssessmentStatus, HeatMap, RiskAssessment
from cds.risk.standing import DataState, stand
from cds.studies import receiving
from cds.studies.models import Embedding, Study, StudyState
from tests.cds.registry import ward
from tests.ehr.dicom.making import make_file
from tests.factories import TESTS, make_patient, make_record, make_source, make_user, note, observation
from tests.flows import workers


def radiograph(folder: Path, patient: Patient) -> Path:
    """A frontal chest radiograph of this patient, taken ten minutes ago."""
    taken = timezone.now() - timedelta(minutes=10)
    random = np.random.default_rng(1)
    return make_file(
        folder,
        (random.random((64, 64)) * 200 + 30).astype(np.uint8),
        PatientID=f"MRN-{patient.resource_id}",
        BodyPartExamined="CHEST",
        ViewPosition="PA",
        StudyDate=taken.strftime("%Y%m%d"),
        StudyTime=taken.strftime("%H%M%S"),
    )


@pytest.mark.django_db(transaction=True)
def test_a_study_from_the_archive_to_the_panel(tmp_path: Path, settings: Any) -> None:
    ward.fill()
    version = ward.train_and_activate()
    now = timezone.now()
    patient = make_patient(
        "newcomer",
        unit="Ward 3",
        now=now - timedelta(hours=1),
        observations=[observation("2524-7", 4.0, "mmol/L", at=now - timedelta(minutes=30))],
        notes=[note("Getting worse.", at=now - timedelta(minutes=20))],
    )
    nurse = make_user("clinician", units=("Ward 3",))
    with workers.running(tmp_path, Queue.BATCH, Queue.INTERACTIVE):
        file = radiograph(tmp_path, patient)
        received = receiving.receive_file(file, source=make_source(), by=TESTS, now=timezone.now())
        assert received.study is not None
        receiving.complete(received.study, by=TESTS, now=timezone.now())
        assessing.request_all(patient, by=TESTS, now=timezone.now())

        def is_current() -> bool:
            patient.refresh_from_db()
            standing = stand(patient, version, now=timezone.now())
            held = standing.assessment
            return standing.state == DataState.CURRENT and held is not None and "image" in held.present

        workers.wait_until(is_current, seconds=60)
        workers.wait_until(lambda: HeatMap.objects.filter(prediction__assessment__patient=patient).exists())

        # the same file again: no second copy of anything
        again = receiving.receive_file(file, source=make_source(), by=TESTS, now=timezone.now())
        assert again.outcome == receiving.Outcome.DUPLICATE
        before = Embedding.objects.count()

        # a new lab value: a fresh score from the stored embeddings alone
        lab = make_record("newcomer", observations=[observation("2524-7", 9.0, "mmol/L", at=timezone.now())])
        importing.import_record(lab, source=make_source(), by=TESTS, now=timezone.now())
        patient.refresh_from_db()
        asked = assessing.request(patient, version, by=TESTS, now=timezone.now())
        workers.wait_until(lambda: RiskAssessment.objects.get(pk=asked.pk).work_state == WorkState.DONE)
        assert Embedding.objects.count() == before

    study = Study.objects.get(patient=patient)
    assert study.state == StudyState.ENCODED
    [shown] = queries.panel(nurse, patient, now=timezone.now()).outcomes
    stored = RiskAssessment.objects.get(pk=asked.pk)
    prediction = stored.predictions.get()
    assert (stored.status, shown.state) == (AssessmentStatus.FINAL, DataState.CURRENT)
    assert shown.answer is not None
    assert shown.answer.risk == prediction.risk
    assert shown.images[0].used
    assert not RiskAssessment.objects.exclude(work_state=WorkState.DONE).exists()
    assert LiveEvent.objects.filter(kind="study", patient_id=patient.pk).exists()
    assert all(not chain.problems for chain in recording.verify())

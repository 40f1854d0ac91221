"""Two Patients who are one person: facts of the replaced one are moved to the surviving one, and can go back.

A merger is what Patient.link says, from either side: `replaced-by` at the replaced one, or `replaces` at the
surviving one (https://hl7.org/fhir/R4/patient.html, "Merging"). That one must have been read. What was moved
is remembered by resource, so that when both links are gone everything returns to where it was. What was
predicted stays with whom it was predicted for. Both are audited.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from uuid import UUID

import ehr
from cds.audit import recording
from cds.patients import rows
from cds.patients.models import Fact, MovedResource, Patient

LONGEST = 20  # mergers one after the other
AT_ONCE = 500


def survivor(patient: Patient) -> Patient:
    """The patient whose record this one's facts are in: the patient, unless merged into another."""
    for _ in range(LONGEST):
        if patient.merged_into is None:
            break
        patient = patient.merged_into
    return patient


def survivor_key(key: object) -> str:
    """The id of the patient whose record a patient's facts are in now; itself where none is known by it."""
    try:
        found = Patient.objects.filter(pk=UUID(str(key))).select_related("merged_into").first()
    except ValueError:
        found = None
    return str(survivor(found).pk) if found is not None else str(key)


def everybody(patient: Patient) -> tuple[UUID, ...]:
    """Keys of the patient and of all who were merged into them: what people did about any of these, they did
    about this one person."""
    return tuple(one.pk for one in _tree(patient))


def follow(
    patient: Patient, *, is_new: bool, by: recording.Actor, now: datetime
) -> tuple[list[Patient], tuple[ehr.SetAside, ...]]:
    """Merge and part as the Patient resource now says; in the caller's transaction, which holds `patient`.

    returns  the patients who were merged or parted, and what cannot be (two that replace each other)
    """
    changed: list[Patient] = []
    crossed: list[ehr.SetAside] = []
    theirs = Patient.objects.select_for_update(of=("self",), no_key=True).filter(source=patient.source_id)

    def bring(old: Patient, into: Patient) -> None:
        if old.merged_into_id == into.pk:
            return
        if survivor(into).pk == old.pk:
            reason = "Patient.link: these two replace each other; neither was merged"
            crossed.append(ehr.SetAside("record", "Patient", old.resource_id, reason))
            return
        if old.merged_into_id is not None:
            _part(old, by=by, now=now)
        _merge(old, into, by=by, now=now)
        changed.append(old)

    named = patient.replaced_by
    into = theirs.filter(resource_id=named).exclude(digest="").first() if named else None
    if into is not None and into.pk != patient.pk:
        bring(patient, into)
    elif (
        not named
        and patient.merged_into is not None
        and patient.resource_id not in patient.merged_into.replaces
    ):
        _part(patient, by=by, now=now)
        changed.append(patient)
    for identity in patient.replaces:
        if identity != patient.resource_id:
            old, _ = Patient.objects.get_or_create(
                source=patient.source, resource_id=identity, defaults={"changed_at": now}
            )
            bring(old, patient)
    for old in theirs.filter(replaced_by=patient.resource_id, merged_into=None).exclude(pk=patient.pk):
        bring(old, patient)  # it was read before the one who survives it
    for old in () if is_new else theirs.filter(merged_into=patient, replaced_by=""):
        if old.resource_id not in patient.replaces:
            _part(old, by=by, now=now)
            changed.append(old)
    return changed, tuple(crossed)


def note_owner(patient: Patient, resources: Iterable[tuple[str, str]], *, home: Patient) -> None:
    """Remember that these resources, kept with `home`, are said to be this patient's."""
    named = sorted(set(resources))
    if home != patient:
        _remember(patient, named)
    elif home.merged.exists():  # what had been moved here is now said to be the survivor's own
        for start in range(0, len(named), AT_ONCE):
            ids = [identity for _, identity in named[start : start + AT_ONCE]]
            found = MovedResource.objects.filter(patient__in=_tree(home)[1:], resource_id__in=ids)
            own = set(named)
            MovedResource.objects.filter(
                pk__in=[one.pk for one in found if (one.resource_type, one.resource_id) in own]
            ).delete()


def _merge(old: Patient, into: Patient, *, by: recording.Actor, now: datetime) -> None:
    home, moved = survivor(into), 0
    others = MovedResource.objects.filter(patient__in=_tree(old)[1:])
    not_own = set(others.values_list("resource_type", "resource_id"))
    for kind in rows.KINDS:
        facts = kind.model._default_manager.filter(patient=old)
        keys = set(facts.values_list("resource_type", "resource_id", "part"))
        if not keys:
            continue
        _remember(old, sorted({key[:2] for key in keys} - not_own))
        _drop_held_twice(kind.model, home, old, keys)
        moved += facts.update(patient=home)
    old.merged_into = into
    old.save(update_fields=["merged_into"])
    _touch_and_record("patient.merge", old, home, moved, by=by, now=now)


def _part(old: Patient, *, by: recording.Actor, now: datetime) -> None:
    home, moved = survivor(old), 0
    named = MovedResource.objects.filter(patient__in=_tree(old)).exclude(resource_type=STUDY)
    by_type: dict[str, set[str]] = {}
    for resource_type, resource_id in named.values_list("resource_type", "resource_id"):
        by_type.setdefault(resource_type, set()).add(resource_id)
    for resource_type, ids in by_type.items():
        wanted = sorted(ids)
        for start in range(0, len(wanted), AT_ONCE):
            for kind in rows.KINDS:
                facts = kind.model._default_manager.filter(patient=home, resource_type=resource_type)
                moved += facts.filter(resource_id__in=wanted[start : start + AT_ONCE]).update(patient=old)
    MovedResource.objects.filter(patient=old).exclude(resource_type=STUDY).delete()
    old.merged_into = None
    old.save(update_fields=["merged_into"])
    _touch_and_record("patient.part", old, home, moved, by=by, now=now)


STUDY = "Study"  # moved by `studies.receiving`, which knows of studies


def _touch_and_record(
    action: str, old: Patient, home: Patient, moved: int, *, by: recording.Actor, now: datetime
) -> None:
    for patient, other in ((old, home), (home, old)):
        patient.touch(now)
        recording.record(
            by=by,
            action=action,
            object_type="Patient",
            object_id=patient.pk,
            patient_id=patient.pk,
            now=now,
            other=str(other.pk),
            facts=moved,
        )


def _tree(patient: Patient) -> list[Patient]:
    """The patient and all who were merged into them, directly or through others."""
    found, level = [patient], [patient]
    for _ in range(LONGEST):
        level = list(Patient.objects.filter(merged_into__in=level))
        found += level
        if not level:
            break
    return found


def _remember(patient: Patient, resources: Iterable[tuple[str, str]]) -> None:
    MovedResource.objects.bulk_create(
        [
            MovedResource(patient=patient, resource_type=kind, resource_id=identity)
            for kind, identity in resources
        ],
        ignore_conflicts=True,
        batch_size=AT_ONCE,
    )


def _drop_held_twice(model: type[Fact], home: Patient, old: Patient, keys: set[tuple[str, str, str]]) -> None:
    """The same resource, by then said to be the survivor's: their copy is the later one."""
    held = model._default_manager.filter(patient=home).values_list("resource_type", "resource_id", "part")
    for resource_type, resource_id, part in keys & set(held):
        model._default_manager.filter(
            patient=old, resource_type=resource_type, resource_id=resource_id, part=part
        ).delete()
        MovedResource.objects.filter(
            patient=old, resource_type=resource_type, resource_id=resource_id
        ).delete()

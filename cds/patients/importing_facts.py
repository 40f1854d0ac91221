"""A patient's facts: what is new or changed is written, parts that a resource no longer has are removed.

Inside the transaction of `importing`, which holds the patient's lock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime

from django.db.models import Q

import ehr
from cds.patients import bulk_writing, rows
from cds.patients.models import Fact, Patient

NEW, CHANGED, UNCHANGED, REMOVED, SET_ASIDE = "new", "changed", "unchanged", "removed", "set_aside"
LOOK_UP_BY_ID = 300  # facts of a kind: fewer are looked up by id, for more all the patient's are read


class ResourceStates:
    """The state of each resource, over all its parts and kinds of fact."""

    def __init__(self) -> None:
        self._states: dict[tuple[str, str], set[str]] = {}

    def add(self, resource_type: str, resource_id: str, state: str) -> None:
        self._states.setdefault((resource_type, resource_id), set()).add(state)

    def counts(self) -> tuple[dict[str, int], dict[str, dict[str, int]]]:
        """Totals, and per type: a resource of which only parts are new or removed has changed."""
        by_type: dict[str, Counter[str]] = {}
        for (resource_type, _), states in self._states.items():
            state = next(iter(states)) if len(states) == 1 else CHANGED
            by_type.setdefault(resource_type, Counter())[state] += 1
        total: Counter[str] = Counter()
        for one in by_type.values():
            total.update(one)
        return dict(total), {name: dict(one) for name, one in sorted(by_type.items())}


def resources_of(
    facts: Sequence[dict[rows.Key, rows.Row]], identity: ehr.PatientIdentity
) -> set[tuple[str, str]]:
    """(type, id) of every resource that is kept in these rows, the Patient among them unless a stub."""
    named = set() if identity.is_stub else {("Patient", identity.resource_id)}
    return named | {key[:2] for kept in facts for key in kept}


def import_facts(
    patient: Patient,
    model: type[Fact],
    kept: dict[rows.Key, rows.Row],
    tally: ResourceStates,
    *,
    is_new: bool,
    now: datetime,
) -> list[rows.Row]:
    """Write what is new or changed, remove parts a resource no longer has; returns the rows written."""
    if not kept:
        return []
    resources = {key[:2] for key in kept}
    held = {} if is_new else _held(patient, model, resources)
    written = [row for key, row in kept.items() if held.get(key) != row.digest]
    for key, row in kept.items():
        digest = held.get(key)
        tally.add(key[0], key[1], NEW if digest is None else UNCHANGED if digest == row.digest else CHANGED)
    for key in held.keys() - kept.keys():
        if key[:2] in resources:
            model._default_manager.filter(patient=patient, **_identity(key)).delete()
            tally.add(key[0], key[1], REMOVED)
    rows.date_endings(written, now)
    if written and is_new:
        bulk_writing.insert_facts(model, [(patient, row) for row in written])
    elif written:
        columns = [*written[0].columns, "digest"]
        model._default_manager.bulk_create(
            [
                model(patient=patient, **_identity(row.key), **row.columns, digest=row.digest)
                for row in written
            ],
            batch_size=500,
            update_conflicts=True,
            unique_fields=list(Fact.IDENTITY),
            update_fields=columns,
        )
    return written


def _held(patient: Patient, model: type[Fact], resources: set[tuple[str, str]]) -> dict[rows.Key, str]:
    held = model._default_manager.filter(patient=patient)
    if len(resources) <= LOOK_UP_BY_ID:
        held = held.filter(resource_id__in={resource_id for _, resource_id in resources})
    return {
        (kind, number, part): digest
        for kind, number, part, digest in held.values_list("resource_type", "resource_id", "part", "digest")
    }


def _identity(key: rows.Key) -> dict[str, str]:
    return {"resource_type": key[0], "resource_id": key[1], "part": key[2]}


def remove_retracted(patient: Patient, retracted: Iterable[tuple[str, str]], tally: ResourceStates) -> None:
    """Remove every fact of these resources; what was held is counted."""
    gone = Q()
    for resource_type, resource_id in retracted:
        gone |= Q(resource_type=resource_type, resource_id=resource_id)
    if not gone:
        return
    for kind in rows.KINDS:
        held = kind.model._default_manager.filter(gone, patient=patient)
        for resource_type, resource_id in held.values_list("resource_type", "resource_id").distinct():
            tally.add(resource_type, resource_id, REMOVED)
        held.delete()

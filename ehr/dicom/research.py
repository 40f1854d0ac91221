"""De-identified copies of DICOM instances. A child process parses and writes (`ehr.dicom.child`)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from ehr.dicom import child, guard
from ehr.pseudonyms import Pseudonyms


@dataclass(frozen=True, slots=True, kw_only=True)
class ResearchInstance:
    """One instance as it may leave. UIDs are those of the copy.

    burned_in  what the original said of words in its picture; None when it said nothing
    """

    content: bytearray
    study_uid: str
    series_uid: str
    sop_uid: str
    burned_in: bool | None


def deidentify_instance(
    source: Path | bytes,
    *,
    names: Pseudonyms,
    person: str,
    shift: timedelta,
    characteristics: bool = False,
    burned_in: bool = False,
    known: frozenset[str] = frozenset(),
    limits: guard.Limits = guard.DEFAULT,
) -> ResearchInstance:
    """One instance, de-identified by PS3.15 Annex E (see `ehr.dicom.deidentify`).

    person           what the patient is called in the copy: PatientID and PatientName
    shift            whole days by which their dates are moved
    characteristics  keep sex, age (topped), size, weight, ethnic group, smoking and pregnancy status
    burned_in        let pictures go that show words, or of which nobody says that they do not
    known            names and numbers of this patient: a coded string that holds one is emptied
    raises           BadInstance with the reason when it cannot be made safe, TooLarge
    """
    sources = source if isinstance(source, bytes) else [source]
    result, content = child.ask(
        "deidentify",
        sources,
        limits=limits,
        key=names.key.hex(),
        person=person,
        shift_days=shift.days,
        characteristics=characteristics,
        burned_in=burned_in,
        known=sorted(one.upper() for one in known if len(one) > 2),
    )
    return ResearchInstance(content=content, **result)

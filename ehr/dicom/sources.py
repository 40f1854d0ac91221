"""What results have to say of the pictures they were made from: patient, study, geometry; no pixels.

The files are parsed in the decoding process (`ehr.dicom.child`), which hands over the few attributes that
results repeat, as DICOM JSON (PS3.18 annex F). So nothing a stranger wrote is parsed here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import Dataset, FileMetaDataset

from ehr.dicom import child, guard
from ehr.errors import BadInstance

EMPTY_WHERE_UNKNOWN = (  # type 2: results must have them, even without a value
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
SEXES = frozenset({"M", "F", "O"})


@dataclass(frozen=True, slots=True)
class Sources:
    """The instances of one Series, without pixels, by SOP Instance UID."""

    instances: dict[str, Dataset]

    def get(self, sop_uid: str) -> Dataset:
        """Raises BadInstance for an instance that is not among them."""
        if sop_uid not in self.instances:
            raise BadInstance(f"instance {sop_uid} is not among the files of the Series")
        return self.instances[sop_uid]


def read_sources(paths: Sequence[Path], *, limits: guard.Limits = guard.DEFAULT) -> Sources:
    """The headers of a Series' files. Raises BadInstance, TooLarge."""
    found: dict[str, Dataset] = {}
    for path in paths:
        told, _ = child.ask("source", [path], limits=limits)
        data = Dataset.from_json(json.dumps(told["attributes"]))
        for keyword in EMPTY_WHERE_UNKNOWN:
            if keyword not in data:
                setattr(data, keyword, None)
        if data.PatientSex not in SEXES:
            data.PatientSex = None
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = told["transfer_syntax_uid"]
        found[str(data.SOPInstanceUID)] = data
    if len({str(data.StudyInstanceUID) for data in found.values()}) != 1:
        raise BadInstance("the files of a Series must lie in one Study")
    return Sources(found)

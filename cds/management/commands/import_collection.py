"""`manage.py import_collection cxr_covid DIR`: a public research collection, through a hospital's doors."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

import ehr
from cds import ingesting
from cds.audit import recording
from cds.collections_in import dicom_out, fhir_out
from cds.collections_in.cxr_covid import Case, read_cases
from cds.errors import ClinicError, Invalid
from cds.management.commands.ingest import print_tally, show_progress, write_report
from cds.patients import importing
from cds.taking import Progress

COLLECTIONS = {"cxr_covid": ("cxr-covid", "Public chest X-ray collection (cxr_covid)")}


class Command(BaseCommand):
    help = "Turn a public research collection into FHIR R4 and DICOM, and ingest those. Safe to repeat."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", choices=sorted(COLLECTIONS))
        parser.add_argument("folder", type=Path, metavar="DIR", help="where the collection lies")
        parser.add_argument("--limit", type=int, default=0, metavar="N", help="only the first N patients")
        parser.add_argument(
            "--report", type=Path, metavar="FILE", help="write what was refused as .csv or .json"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        slug, title = COLLECTIONS[options["name"]]
        now, by = timezone.now(), recording.system("import-collection")
        work = settings.DATA_DIR / "collections" / options["name"]
        try:
            cases = list(read_cases(options["folder"]))
            cases = cases[: options["limit"] or None]
            with show_progress() as progress:
                refused = convert(cases, work, progress=progress)
                source = importing.get_source(slug, title=title, now=now)
                common: dict[str, Any] = {"source": source, "by": by, "now": now, "progress": progress}
                tally = ingesting.ingest_fhir(work / "fhir", **common)
                tally.merge(ingesting.ingest_dicom(work / "dicom", **common))
                importing.keep_set_aside(source, refused, now=now)
                tally.refuse(refused)
                ingesting.request_scores(tally, by=by, now=now, progress=progress)
        except ClinicError as error:
            raise CommandError(str(error)) from error
        print_tally(tally)
        if options["report"]:
            write_report(tally, options["report"])
        self._say_what_can_be_learned(cases)

    def _say_what_can_be_learned(self, cases: list[Case]) -> None:
        usable = [(case, case.usable()) for case in cases]
        usable = [(case, pictures) for case, pictures in usable if pictures]
        events = [pictures for case, pictures in usable if case.went_icu]
        images = sum(len(pictures) for _, pictures in usable)
        left_out = sum(case.implausible for case in cases)
        self.stdout.write(
            f"{images} images of {len(usable)} patients were taken before intensive care, outcome known; "
            f"{sum(map(len, events))} images of {len(events)} patients who were admitted to it later."
        )
        self.stdout.write(f"{left_out} values left out because they cannot be what their column says.")


def convert(cases: list[Case], work: Path, *, progress: Progress) -> list[ehr.SetAside]:
    """Write each case as a FHIR Bundle and its pictures as DICOM under `work`; what failed, with the reason.

    Files of an earlier conversion are replaced (with the same bytes), and those of nobody any more removed.
    """
    fhir, dicom = work / "fhir", work / "dicom"
    wanted: set[Path] = set()
    refused: list[ehr.SetAside] = []
    for folder in (fhir, dicom):
        folder.mkdir(parents=True, exist_ok=True)
    for done, case in enumerate(cases, 1):
        if case.pictures:
            bundle = fhir / f"{case.patient_id}.json"
            bundle.write_text(json.dumps(fhir_out.build_bundle(case), indent=1, ensure_ascii=False))
            wanted.add(bundle)
        else:
            refused.append(ehr.SetAside("patients.csv", "Patient", case.patient_id, "no picture"))
        for picture in case.pictures:
            path = dicom / f"{picture.file.stem}.dcm"
            try:
                dicom_out.write_instance(case, picture, path)
                wanted.add(path)
            except (Invalid, OSError) as error:
                reason = str(error) if isinstance(error, Invalid) else "the picture cannot be read"
                refused.append(ehr.SetAside(picture.file.name, "DICOM", "", reason))
        progress("Converted", done, len(cases))
    for path in (*fhir.iterdir(), *dicom.iterdir()):
        if path not in wanted:
            path.unlink()
    return refused

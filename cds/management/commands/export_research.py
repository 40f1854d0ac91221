"""`manage.py export_research DIR --source SLUG --as USER`: a de-identified copy, FHIR and DICOM."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.contrib.auth.models import User
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone
from rich.console import Console
from rich.table import Table

import ehr
from cds.audit import recording
from cds.errors import ClinicError
from cds.management.commands.ingest import show_progress
from cds.research import exporting


class Command(BaseCommand):
    help = (
        "Write a de-identified copy for research into a new folder (docs/guides/research.md says what is "
        "taken out, what stays and what is not promised). Broken off, the same command goes on."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("folder", type=Path, metavar="DIR")
        parser.add_argument(
            "--as", dest="user", required=True, metavar="USER", help="who exports (role admin)"
        )
        whose = parser.add_argument_group("whose data (one of these)")
        whose.add_argument("--source", action="append", default=[], metavar="SLUG", help="all patients of it")
        whose.add_argument("--cohort", default="", metavar="ID", help="its patients, with labels and splits")
        whose.add_argument("--patients", type=Path, metavar="FILE", help="our patient ids, one a line")
        parser.add_argument(
            "--keep",
            action="append",
            default=[],
            choices=exporting.KEEPABLE,
            help="may be repeated; none by default",
        )
        parser.add_argument(
            "--code-system",
            action="append",
            default=[],
            metavar="URI",
            help="a local one whose codes may leave",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        user = User.objects.filter(username=options["user"], is_active=True).first()
        if user is None:
            raise CommandError(f"no active user {options['user']!r}")
        folder, by, now = options["folder"], recording.person(user), timezone.now()
        try:
            asked = exporting.Asked(
                cohort=options["cohort"],
                sources=tuple(sorted(set(options["source"]))),
                patients=_listed(options["patients"]),
                keep=tuple(sorted(set(options["keep"]))),
                code_systems=tuple(sorted(set(options["code_system"]))),
            )
            export = exporting.begin(folder, asked, user=user, by=by, now=now)
            with show_progress() as progress:
                counts = exporting.carry_on(export, folder, by=by, now=now, progress=progress)
        except ClinicError as error:
            raise CommandError(str(error)) from error
        except (ehr.EhrError, OSError) as error:
            raise CommandError(f"broken off: {error}. The same command goes on from here.") from error
        table = Table("What", "how many", title=f"Export {export.pk}")
        for name, value in counts.items():
            rows = value.items() if isinstance(value, dict) else [("", value)]
            for kind, number in rows:
                table.add_row(f"{name.replace('_', ' ')} {kind}".strip(), str(number))
        Console().print(table)


def _listed(path: Path | None) -> tuple[str, ...]:
    if path is None:
        return ()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError):
        raise CommandError(f"cannot read {path}") from None
    return tuple(sorted({line.strip() for line in lines if line.strip()}))

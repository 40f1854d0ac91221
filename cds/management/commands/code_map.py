"""`manage.py code_map check FILE`: is a table of local codes fit for CODE_MAP?"""

from __future__ import annotations

from argparse import ArgumentParser
from collections import Counter
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

import ehr


class Command(BaseCommand):
    help = "The table that maps the site's own codes to LOINC, SNOMED CT, RxNorm and ICD-10 (CODE_MAP)."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        does = parser.add_subparsers(dest="does", required=True)
        check = does.add_parser("check", help="read a table and say what is wrong, by line and column")
        check.add_argument("file", type=Path, nargs="?", help="a CSV; the one of CODE_MAP when none is named")

    def handle(self, *args: Any, **options: Any) -> None:
        path: Path | None = options["file"] or settings.CODE_MAP
        if path is None:
            raise CommandError("name a file: CODE_MAP is not set")
        try:
            found = ehr.read_code_map(path.read_bytes())
        except OSError as error:
            raise CommandError(f"{path} cannot be read: {error.strerror}") from None
        except ehr.BadCodeMap as error:
            raise CommandError("\n".join(error.problems)) from None
        kinds = Counter(type(meaning.code).__name__ for meaning in found.entries.values())
        told = ", ".join(f"{count} to {kind}" for kind, count in sorted(kinds.items()))
        self.stdout.write(f"{len(found)} codes: {told or 'an empty table'}")

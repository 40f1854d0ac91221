"""`manage.py ingest --fhir SOURCE --dicom SOURCE`: take in what a hospital has."""

from __future__ import annotations

import csv
import json
import logging
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

import ehr
from cds import ingesting, pulling, reaching
from cds.audit import recording
from cds.errors import ClinicError
from cds.patients import importing
from cds.taking import Progress, Tally

TLS = ("tls_ca", "tls_cert", "tls_key")
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet would take for one
STATES = ("new", "changed", "unchanged", "removed", "set_aside")


class Command(BaseCommand):
    help = (
        "Take in FHIR R4 (folder of Bundles or NDJSON, or a server's base URL) and DICOM (folder, "
        "DICOMweb base URL, or DICOM node). Safe to repeat. What is refused is listed with its reason."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--fhir", action="append", default=[], metavar="SOURCE", help="folder or base URL"
        )
        parser.add_argument(
            "--dicom",
            action="append",
            default=[],
            metavar="SOURCE",
            help="folder, DICOMweb base URL, or DICOM node: dimse://TITLE@host:port (dimse+tls://…)",
        )
        parser.add_argument(
            "--changed",
            action="store_true",
            help="of a server: only patients changed since the last run; put it into a timer to poll",
        )
        node = parser.add_argument_group("Of a DICOM node (dimse://…)")
        node.add_argument("--patient-id", default="", help="studies of this PatientID only")
        node.add_argument("--accession", default="", metavar="NUMBER")
        node.add_argument("--modality", default="", help="CT, MR, US …")
        node.add_argument("--since", type=date.fromisoformat, metavar="YYYY-MM-DD", help="StudyDate")
        node.add_argument("--until", type=date.fromisoformat, metavar="YYYY-MM-DD")
        node.add_argument(
            "--announced", action="store_true", help="studies that FHIR announced and that are not here yet"
        )
        node.add_argument("--calling", default="TESSERA", metavar="AET", help="our AE title")
        node.add_argument(
            "--move-to", default="", metavar="AET", help="C-MOVE to our receive_dicom instead of C-GET"
        )
        node.add_argument("--tls-ca", type=Path, metavar="FILE", help="the CA of the node's certificate, PEM")
        node.add_argument("--tls-cert", type=Path, metavar="FILE", help="our certificate with its chain, PEM")
        node.add_argument(
            "--tls-key", type=Path, metavar="FILE", help="its private key, else in the same file"
        )
        bulk = parser.add_argument_group("Bulk Data ($export)")
        bulk.add_argument(
            "--bulk", action="append", default=[], metavar="URL", help="base URL to export from"
        )
        bulk.add_argument(
            "--bulk-of",
            default="Patient",
            metavar="WHAT",
            help="Patient (all patients, the default), Group/ID, or system",
        )
        bulk.add_argument(
            "--everything", action="store_true", help="not only what has changed since the last export"
        )
        bulk.add_argument(
            "--file-host", action="append", default=[], metavar="HOST", help="another host of its files"
        )
        signing_in = parser.add_argument_group("Sign-in by SMART Backend Services (see `fhir_key`)")
        signing_in.add_argument("--client-id", default="", help="what the FHIR server calls us")
        signing_in.add_argument(
            "--token-url", default="", metavar="URL", help="else as its smart-configuration says"
        )
        signing_in.add_argument("--scope", default="system/*.rs")
        parser.add_argument("--source", default="ingest", metavar="SLUG", help="name of where it comes from")
        parser.add_argument(
            "--report", type=Path, metavar="FILE", help="write what was refused as .csv or .json"
        )
        parser.add_argument(
            "--token-env", default="", metavar="NAME", help="environment variable that holds the bearer token"
        )
        parser.add_argument(
            "--dicom-token-env",
            default="",
            metavar="NAME",
            help="the same for DICOMweb, where it differs; it may hold user:password",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if not options["fhir"] and not options["dicom"] and not options["bulk"]:
            raise CommandError("name at least one --fhir, --bulk or --dicom source")
        now, by = timezone.now(), recording.system("ingest")
        tally = Tally()
        try:
            source = importing.get_source(options["source"], now=now)
            with show_progress() as progress:
                common: dict[str, Any] = {"source": source, "by": by, "now": now, "progress": progress}
                for where in options["fhir"]:
                    how = _fhir_how(where, options)
                    done = ingesting.ingest_fhir(
                        where,
                        token=_sign_in(where, how),
                        only_changed=options["changed"],
                        how=how,
                        **common,
                    )
                    tally.merge(done)
                of = "" if options["bulk_of"] == "system" else options["bulk_of"]
                for where in options["bulk"]:
                    how = _fhir_how(where, options)
                    done = ingesting.ingest_bulk(
                        where,
                        of=of,
                        token=_sign_in(where, how),
                        how=how,
                        file_hosts=options["file_host"],
                        everything=options["everything"],
                        **common,
                    )
                    tally.merge(done)
                for where in options["dicom"]:
                    if pulling.is_node(where):
                        tally.merge(_pull(where, options, common))
                    else:
                        tally.merge(_pull_web(where, options, common))
                ingesting.request_scores(tally, by=by, now=now, progress=progress)
        except (ClinicError, ehr.Retriable) as error:
            raise CommandError(str(error)) from error
        print_tally(tally)
        if options["report"]:
            write_report(tally, options["report"])
        if tally.interrupted:
            then = "Run the same command again" if tally.may_go_on else "Then run the same command again"
            raise CommandError(f"{tally.interrupted}. {then} to go on from here.")


def _pull(where: str, options: dict[str, Any], common: dict[str, Any]) -> Tally:
    """What a DICOM node has of what the options ask for."""
    names = ("patient_id", "accession", "modality", "since", "until", "announced")
    how = reaching.keep(title=options["calling"], **{name: options[name] for name in TLS if options[name]})
    return pulling.pull(
        where,
        wanted=pulling.Wanted(**{name: options[name] for name in names}),
        title=options["calling"],
        move_to=options["move_to"],
        tls=reaching.tls_files(how),
        how=how,
        **common,
    )


def _pull_web(where: str, options: dict[str, Any], common: dict[str, Any]) -> Tally:
    """A folder, or an archive by DICOMweb, which has a login of its own where one is named."""
    how = {}
    if ingesting.is_address(where):
        how = reaching.keep(token_env=options["dicom_token_env"] or options["token_env"])
    token = reaching.secret(how.get("token_env", ""))
    return ingesting.ingest_dicom(where, token=token, how=how, **common)


def _fhir_how(where: str, options: dict[str, Any]) -> dict[str, str]:
    """How a server is reached: by Backend Services given a client id, else by a token, or neither."""
    if not ingesting.is_address(where):
        return {}
    if not options["client_id"]:
        return reaching.keep(token_env=options["token_env"])
    return reaching.keep(**{name: options[name] for name in ("client_id", "token_url", "scope")})


def _sign_in(where: str, how: dict[str, str]) -> str | ehr.SignIn:
    try:
        return ingesting.sign_in(where, how) if how else ""
    except ehr.EhrError as error:
        raise CommandError(f"cannot sign in to {where}: {error}") from error


@contextmanager
def show_progress() -> Iterator[Progress]:
    """One bar per kind of work. That the broker is away is not said again for every job."""
    columns = (TextColumn("{task.description:18}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    quiet = logging.getLogger("cds.jobs.outbox")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with Bars(*columns, console=Console(stderr=True)) as bars:
            rows: dict[str, Any] = {}

            def progress(what: str, done: int, total: int | None) -> None:
                if what not in rows:
                    rows[what] = bars.add_task(what, total=total)
                bars.update(rows[what], completed=done, total=total)

            yield progress
    finally:
        quiet.setLevel(level)


def print_tally(tally: Tally, console: Console | None = None, *, listed: int = 200) -> None:
    """The summary: resources by type, DICOM files, and each refusal with its reason."""
    console = console or Console()
    if tally.resources:
        table = Table(
            "Resource", *(state.replace("_", " ") for state in STATES), title=f"{tally.patients} patients"
        )
        for name, states in sorted(tally.resources.items()):
            table.add_row(escape(name), *(str(states[state] or "") for state in STATES))
        console.print(table)
    if tally.passed_over:
        console.print(f"{tally.passed_over} patients were taken by the run before, which did not end")
    if tally.ignored:
        said = ", ".join(f"{name} {count}" for name, count in tally.ignored.most_common())
        console.print(
            f"Not read, because nothing in Tessera uses them: {said}", highlight=False, markup=False
        )
    if tally.instances:
        table = Table("DICOM", "files", title=f"{tally.studies} studies decoded")
        for outcome in ("new", "duplicate", "not-read", "set-aside"):
            table.add_row(outcome, str(tally.instances[outcome]))
        console.print(table)
    for words in tally.notes:
        console.print(f"Note: {words}", highlight=False, markup=False, soft_wrap=True)
    if tally.refused:
        reasons = Counter((item.kind, item.reason) for item in tally.refused)
        table = Table("Set aside", "reason", "times")
        for (kind, reason), times in reasons.most_common():
            table.add_row(escape(kind or "file"), escape(reason), str(times))
        console.print(table)
        lines = Counter(
            " ".join(filter(None, (f"{item.where}:", item.kind, item.identity, item.reason)))
            for item in tally.refused
        )
        for line, times in list(lines.items())[:listed]:
            often = f" ({times} times)" if times > 1 else ""
            console.print(f"  {line}{often}", highlight=False, markup=False, soft_wrap=True)
        if len(lines) > listed:
            console.print(f"  … and {len(lines) - listed} more; --report FILE lists them all")
        if tally.unlisted:
            console.print(
                f"  … and {tally.unlisted} more that no list holds here; the Sources screen has every reason"
            )


def write_report(tally: Tally, path: Path) -> None:
    """Everything set aside, as JSON or else CSV; a spreadsheet never takes a cell for a formula."""
    rows = [(item.where, item.kind, item.identity, item.reason) for item in tally.refused]
    names = ("where", "kind", "identity", "reason")
    if path.suffix == ".json":
        path.write_text(json.dumps([dict(zip(names, row, strict=True)) for row in rows], indent=1))
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows([[f"'{cell}" if cell.startswith(FORMULA) else cell for cell in row] for row in rows])

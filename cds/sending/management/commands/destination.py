"""`manage.py destination`: where results are sent: add, list, test, pause, resume, retry, remove."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import IO, Any, cast

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cds.audit import recording
from cds.errors import ClinicError, NotFound
from cds.patients.models import Source
from cds.sending import clients, destinations, queries
from cds.sending.models import DestinationKind

BY = recording.system("destination")


class Command(BaseCommand):
    help = (
        "Where results go back to: RiskAssessment, DiagnosticReport and Provenance to a FHIR server; SR, SEG "
        "and heat maps to an archive. Nothing is sent anywhere until a destination is added."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        does = parser.add_subparsers(dest="does", required=True)
        add = does.add_parser("add", help="send what is made from now on")
        add.add_argument("slug", help="a short name for it")
        add.add_argument(
            "address",
            help="https://host/fhir · dicomweb+https://host/dicom-web · dimse://TITLE@host:port (dimse+tls://)",
        )
        add.add_argument("--source", required=True, metavar="SLUG", help="whose patients' results go there")
        add.add_argument("--kind", action="append", default=[], help="only these documents; repeat it")
        add.add_argument("--client-id", default="", help="FHIR: sign in by Backend Services (see `fhir_key`)")
        add.add_argument("--token-url", default="", help="else as its smart-configuration says")
        add.add_argument("--scope", default="", help=f"by default {clients.SCOPE}")
        add.add_argument(
            "--secret-env", default="", metavar="NAME", help="variable with a token, or user:password"
        )
        add.add_argument("--title", default="", metavar="AET", help="DICOM node: our AE title (TESSERA)")
        add.add_argument(
            "--tls-ca", default="", metavar="FILE", help="dimse+tls: the CA of its certificate, PEM"
        )
        add.add_argument("--tls-cert", default="", metavar="FILE", help="our certificate with its chain, PEM")
        add.add_argument(
            "--tls-key", default="", metavar="FILE", help="its private key, else in the same file"
        )
        add.add_argument(
            "--allow-http",
            action="store_true",
            help="plain http to another machine: a trusted network only",
        )
        does.add_parser("list", help="each with what waits, was accepted and was refused")
        for name, told in (
            ("test", "ask whether it would take what we send; sends nothing of anybody"),
            ("refused", "what it refused, and why"),
            ("retry", "send again what it refused"),
            ("pause", "send nothing for now; what is made waits"),
            ("resume", "go on"),
            ("remove", "send nothing there any more; what waits is dropped"),
        ):
            does.add_parser(name, help=told).add_argument("slug")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            getattr(self, f"_{options['does']}")(options)
        except ClinicError as error:
            raise CommandError(str(error)) from None

    def _add(self, options: dict[str, Any]) -> None:
        source = Source.objects.filter(slug=options["source"]).first()
        if source is None:
            raise NotFound(f"no source {options['source']!r}: ingest its records first, under that name")
        added = destinations.add(
            options["slug"],
            source=source,
            address=options["address"],
            kinds=options["kind"],
            client_id=options["client_id"],
            token_url=options["token_url"],
            scope=options["scope"],
            secret_env=options["secret_env"],
            title=options["title"],
            tls_ca=options["tls_ca"],
            tls_cert=options["tls_cert"],
            tls_key=options["tls_key"],
            allow_http=options["allow_http"],
            by=BY,
            now=timezone.now(),
        )
        self.stdout.write(
            f"{added.slug}: {', '.join(added.document_kinds)} about patients of {source.slug} go to "
            f"{added.address} from now on; `destination test {added.slug}` asks whether it takes them"
        )

    def _list(self, options: dict[str, Any]) -> None:
        now = timezone.now()
        table = Table(
            "destination", "source", "address", "state", "waiting", "accepted", "refused", "last error"
        )
        for one in queries.list_destinations(now=now):
            lag = f" since {one.waiting_since:%Y-%m-%d %H:%M}" if one.waiting_since else ""
            table.add_row(
                one.slug, one.source, escape(one.address), state_of(one), f"{one.waiting}{lag}",
                str(one.accepted), str(one.refused), escape(one.last_error),
            )  # fmt: skip
        Console(file=cast(IO[str], self.stdout), width=None if self.stdout.isatty() else 240).print(table)

    def _test(self, options: dict[str, Any]) -> None:
        destination = destinations.get(options["slug"])
        problems = clients.list_problems(destination)
        if problems:
            raise CommandError("\n".join(problems))
        self.stdout.write(clients.WELL[DestinationKind(destination.kind)])

    def _refused(self, options: dict[str, Any]) -> None:
        destinations.get(options["slug"])
        for one in queries.list_refused(options["slug"]):
            self.stdout.write(f"{one.at:%Y-%m-%d %H:%M} {one.kind} {one.subject}: {one.reason}")

    def _retry(self, options: dict[str, Any]) -> None:
        count = destinations.retry(options["slug"], by=BY, now=timezone.now())
        self.stdout.write(f"{count} refused documents are sent again; what waits is tried now")

    def _pause(self, options: dict[str, Any]) -> None:
        destinations.set_active(options["slug"], False, by=BY, now=timezone.now())
        self.stdout.write("paused; what is made meanwhile is sent when you resume")

    def _resume(self, options: dict[str, Any]) -> None:
        destinations.set_active(options["slug"], True, by=BY, now=timezone.now())
        self.stdout.write("going on")

    def _remove(self, options: dict[str, Any]) -> None:
        dropped = destinations.remove(options["slug"], by=BY, now=timezone.now())
        self.stdout.write(f"removed; {dropped} waiting documents dropped")


def state_of(one: queries.DestinationView) -> str:
    """In one word or two."""
    if not one.is_active:
        return "paused"
    return f"waits until {one.paused_until:%H:%M:%S}" if one.paused_until else "active"

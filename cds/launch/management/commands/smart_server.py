"""`manage.py smart_server`: register, list or withdraw the EHRs that may launch us."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.contrib.auth.models import User
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from cds.audit import recording
from cds.errors import ClinicError
from cds.hooks import registering as clients
from cds.launch import registering
from cds.launch.models import SmartServer

BY = recording.system("smart_server")


class Command(BaseCommand):
    help = (
        "EHRs that may launch us (SMART App Launch). `add` with the same issuer replaces what is registered."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        does = parser.add_subparsers(dest="does", required=True)
        add = does.add_parser("add", help="register an EHR, or replace what is registered")
        add.add_argument("name", help="what people call it")
        add.add_argument(
            "--issuer", required=True, metavar="URL", help="its FHIR base address: a launch's `iss`"
        )
        add.add_argument("--client-id", required=True, help="what it calls us")
        add.add_argument("--source", required=True, metavar="SLUG", help="the source its patients belong to")
        add.add_argument("--confidential", action="store_true", help="sign in with our key (private_key_jwt)")
        add.add_argument(
            "--own-redirect", action="store_true", help="its sign-in leads back to an address of its own"
        )
        add.add_argument(
            "--origin", action="append", default=[], metavar="URL", help="another origin of its sign-in"
        )
        add.add_argument(
            "--frame",
            action="append",
            default=[],
            metavar="URL",
            help="web origin that may show us in a frame",
        )
        listed = does.add_parser("list", help="who may launch us")
        listed.add_argument(
            "--people", action="store_true", help="and who of theirs has come, as which account"
        )
        withdraw = does.add_parser("withdraw", help="answer an EHR's launches no more, and end theirs")
        withdraw.add_argument("--issuer", required=True)
        link = does.add_parser("link", help="say that a person of an EHR is a local account")
        link.add_argument("--issuer", required=True)
        link.add_argument("--fhir-user", required=True, metavar="TYPE/ID")
        link.add_argument("--user", required=True, metavar="NAME")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            getattr(self, f"_{options['does']}")(options)
        except ClinicError as error:
            raise CommandError(str(error)) from None

    def _add(self, options: dict[str, Any]) -> None:
        now = timezone.now()
        server, is_new = registering.register(
            options["name"],
            issuer=options["issuer"],
            client_id=options["client_id"],
            source=options["source"],
            is_confidential=options["confidential"],
            has_own_redirect=options["own_redirect"],
            origins=options["origin"],
            embedders=options["frame"],
            by=BY,
            now=now,
        )
        self.stdout.write(f"{'registered' if is_new else 'replaced'} {server.name}: {server.address}")
        if server.source.created_at == now:
            self.stdout.write(f"  new source made: {server.source.slug}")
        self._warn(server)
        self.stdout.write(f"  launch URL    {settings.PUBLIC_URL}/launch")
        self.stdout.write(f"  redirect URI  {settings.PUBLIC_URL}{server.redirect_path}")
        if server.is_confidential:
            self.stdout.write(f"  key set       {settings.PUBLIC_URL}/.well-known/jwks.json")

    def _list(self, options: dict[str, Any]) -> None:
        for server in registering.list_servers():
            kind = "confidential" if server.is_confidential else "public"
            self.stdout.write(
                f"{server.name}  {server.address}  client {server.client_id} ({kind})  source "
                f"{server.source.slug}"
            )
            self._warn(server)
            for one in registering.list_people(server) if options["people"] else []:
                name = f" ({one.user.get_full_name()})" if one.user.get_full_name() else ""
                state = "" if one.user.is_active else "  closed"
                self.stdout.write(
                    f"  {one.fhir_user}{name}  account {one.user.get_username()}  since "
                    f"{one.first_at:%Y-%m-%d}{state}"
                )

    def _warn(self, server: SmartServer) -> None:
        shared = clients.shared(server.source.slug, registering.beside(server.source, server.issuer))
        for said in filter(None, (shared, registering.mixable(server))):
            self.stdout.write(self.style.WARNING(f"  warning: {said}"))

    def _withdraw(self, options: dict[str, Any]) -> None:
        server = registering.withdraw(options["issuer"], by=BY, now=timezone.now())
        self.stdout.write(f"withdrawn: {server.name}")

    def _link(self, options: dict[str, Any]) -> None:
        user = User.objects.filter(username=options["user"]).first()
        if user is None:
            raise CommandError(f"there is no account {options['user']}: make it with `manage.py create_user`")
        server = registering.get_server(options["issuer"])
        found = registering.link(server, options["fhir_user"], user, by=BY, now=timezone.now())
        self.stdout.write(f"{found.fhir_user} of {server.name} is {user.get_username()}")

"""`manage.py hook_client`: register, list or withdraw the EHRs that may call."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import orjson
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from cds.audit import recording
from cds.errors import ClinicError
from cds.hooks import registering
from cds.hooks.models import HookClient

BY = recording.system("hook_client")


class Command(BaseCommand):
    help = "EHRs that may call CDS Hooks. `add` with the same issuer and tenant replaces what is registered."

    def add_arguments(self, parser: ArgumentParser) -> None:
        does = parser.add_subparsers(dest="does", required=True)
        add = does.add_parser("add", help="register an EHR, or replace its keys")
        add.add_argument("name", help="what people call it")
        add.add_argument("--issuer", required=True, help="`iss` of its tokens, a URL")
        keys = add.add_mutually_exclusive_group(required=True)
        keys.add_argument("--jwks", type=Path, metavar="FILE", help="its public key set, JSON")
        keys.add_argument(
            "--jwks-url",
            default="",
            metavar="URL",
            help="where its key set is read from, so that it can rotate",
        )
        add.add_argument("--source", required=True, metavar="SLUG", help="the source its patients belong to")
        add.add_argument("--origin", action="append", default=[], help="web origin it may call from (CORS)")
        add.add_argument(
            "--fhir-server",
            action="append",
            default=[],
            metavar="URL",
            help="base address of its FHIR server, from which a partial prefetch is completed",
        )
        add.add_argument(
            "--tenant", default="", help="`tenant` its tokens must carry: each is a client of its own"
        )
        does.add_parser("list", help="who may call")
        keys_now = does.add_parser("read-keys", help="read the key set at its JWKS URL now")
        withdraw = does.add_parser("withdraw", help="refuse an EHR from now on")
        for one in (keys_now, withdraw):
            one.add_argument("--issuer", required=True)
            one.add_argument("--tenant", help="which, where the issuer speaks for several")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            getattr(self, f"_{options['does'].replace('-', '_')}")(options)
        except (ClinicError, OSError) as error:
            raise CommandError(str(error)) from None
        except orjson.JSONDecodeError:
            raise CommandError(f"{options['jwks']} is not JSON") from None

    def _add(self, options: dict[str, Any]) -> None:
        now = timezone.now()
        client, is_new = registering.register(
            options["name"],
            issuer=options["issuer"],
            jwks=orjson.loads(options["jwks"].read_bytes()) if options["jwks"] else None,
            jwks_url=options["jwks_url"],
            source=options["source"],
            origins=options["origin"],
            fhir_servers=options["fhir_server"],
            tenant=options["tenant"],
            by=BY,
            now=now,
        )
        self.stdout.write(f"{'registered' if is_new else 'replaced'} {client.name}: {client.issuer}")
        if client.source.created_at == now:
            self.stdout.write(f"  new source made: {client.source.slug}")
        self._warn(client)

    def _list(self, options: dict[str, Any]) -> None:
        for client in HookClient.objects.select_related("source").order_by("name"):
            state = "active" if client.is_active else "withdrawn"
            tenant = f"  tenant {client.tenant}" if client.tenant else ""
            self.stdout.write(
                f"{client.name}  {client.issuer}{tenant}  source {client.source.slug}  keys {_kids(client)}  "
                f"{state}"
            )
            if client.jwks_url:
                read = client.keys_read_at
                self.stdout.write(
                    f"  keys from {client.jwks_url}, read last {read:%Y-%m-%d %H:%M:%S %Z}"
                    + (f"; then: {client.keys_problem}" if client.keys_problem else "")
                )
            for what, where in (("FHIR servers", client.fhir_servers), ("origins", client.origins)):
                if where:
                    self.stdout.write(f"  {what} {', '.join(where)}")
            if client.is_active:
                self._warn(client)

    def _warn(self, client: HookClient) -> None:
        said = registering.shared(client.source.slug, registering.beside(client.source, client.issuer))
        if said:
            self.stdout.write(self.style.WARNING(f"  warning: {said}"))

    def _read_keys(self, options: dict[str, Any]) -> None:
        client = registering.read_keys(options["issuer"], tenant=options["tenant"], by=BY, now=timezone.now())
        self.stdout.write(f"keys of {client.name}: {_kids(client)}")

    def _withdraw(self, options: dict[str, Any]) -> None:
        client = registering.withdraw(options["issuer"], tenant=options["tenant"], by=BY, now=timezone.now())
        self.stdout.write(f"withdrawn: {client.name}")


def _kids(client: HookClient) -> str:
    return ", ".join(key["kid"] for key in client.jwks["keys"])

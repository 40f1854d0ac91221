"""`manage.py fhir_key add | list | drop`: the keys with which we sign in to FHIR servers."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from cds import signing
from cds.errors import ClinicError


class Command(BaseCommand):
    help = "Keys of SMART Backend Services. Servers read them at /.well-known/jwks.json."

    def add_arguments(self, parser: ArgumentParser) -> None:
        does = parser.add_subparsers(dest="does", required=True)
        add = does.add_parser("add", help="make a key; it signs once servers have had the time to read it")
        add.add_argument("--kind", choices=["EC", "RSA"], default="EC", help="EC: ES384 (usual); RSA: RS384")
        does.add_parser("list", help="the keys that are served, and which signs")
        drop = does.add_parser("drop", help="serve an old key no more")
        drop.add_argument("kid")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            if options["does"] == "add":
                self.stdout.write(f"added: {signing.add_key(options['kind'])}")
            elif options["does"] == "drop":
                signing.drop_key(options["kid"])
            held, signs = signing.private_keys(), signing.signing_key()
        except ClinicError as error:
            raise CommandError(str(error)) from None
        now = timezone.now()
        for key in held:
            does = "signs" if key == signs else "served"
            if key != signs and (at := signing.settles_at(key)) > now:
                does = f"served; signs from {timezone.localtime(at):%H:%M:%S}"
            self.stdout.write(f"{key['kid']} {key['kty']} {does}")
        self.stdout.write(f"key set for servers: {settings.PUBLIC_URL}/.well-known/jwks.json")

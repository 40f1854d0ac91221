"""`manage.py fhir_key add | list | drop`: the keys with which we sign in to FHIR servers."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from cds import signing
from cds.errors import ClinicError


class Command(BaseCommand):
    help = "Keys of SMART Backend Services. Servers read them at /.well-known/jwks.json."

    def add_arguments(self, parser: ArgumentParser) -> None:
        does = parser.add_subparsers(dest="does", required=True)
        add = does.add_parser("add", help="make a key; it signs from now on, older ones are still served")
        add.add_argument("--kind", choices=["EC", "RSA"], default="EC", help="EC: ES384 (usual); RSA: RS384")
        does.add_parser("list", help="the keys that are served, the one that signs first")
        drop = does.add_parser("drop", help="serve an old key no more")
        drop.add_argument("kid")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            if options["does"] == "add":
                self.stdout.write(f"signs from now on: {signing.add_key(options['kind'])}")
            elif options["does"] == "drop":
                signing.drop_key(options["kid"])
            held = signing.private_keys()
        except ClinicError as error:
            raise CommandError(str(error)) from None
        for place, key in enumerate(held):
            self.stdout.write(f"{key['kid']} {key['kty']} {'signs' if not place else 'served'}")
        self.stdout.write(f"key set for servers: {settings.PUBLIC_URL}/.well-known/jwks.json")

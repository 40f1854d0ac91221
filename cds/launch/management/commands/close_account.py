"""`manage.py close_account NAME`: shut somebody out, whichever way they come in; `--reopen` lets them in."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from cds.audit import recording
from cds.errors import ClinicError
from cds.launch import closing

BY = recording.system("close_account")


class Command(BaseCommand):
    help = (
        "Close an account: it is refused at every entrance (password, launch, hospital sign-in), and its "
        "sessions end at once."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        which = parser.add_mutually_exclusive_group(required=True)
        which.add_argument("name", nargs="?", default="", help="the account's name")
        which.add_argument("--fhir-user", default="", metavar="TYPE/ID", help="a person of an EHR")
        which.add_argument(
            "--hospital", default="", metavar="SUBJECT", help="a person of the hospital's sign-in"
        )
        which.add_argument("--list", action="store_true", help="every account, and how its person comes in")
        parser.add_argument("--issuer", default="", metavar="URL", help="of which EHR, with --fhir-user")
        parser.add_argument("--reopen", action="store_true", help="let them in again")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["list"]:
            self._list()
            return
        try:
            user = closing.find_account(
                options["name"],
                fhir_user=options["fhir_user"],
                issuer=options["issuer"],
                subject=options["hospital"],
            )
        except ClinicError as error:
            raise CommandError(str(error)) from None
        if options["reopen"]:
            closing.reopen(user, by=BY, now=timezone.now())
            self.stdout.write(f"open again: {user.get_username()}")
            return
        ended = closing.close(user, by=BY, now=timezone.now())
        self.stdout.write(f"closed: {user.get_username()}; sessions ended: {ended}")

    def _list(self) -> None:
        for one in closing.list_accounts():
            state = "" if one.user.is_active else "  closed"
            name = f" ({one.user.get_full_name()})" if one.user.get_full_name() else ""
            roles, ways = ", ".join(one.roles) or "no role", "; ".join(one.comes_by) or "nothing"
            self.stdout.write(f"{one.user.get_username()}{name}  {roles}  by {ways}{state}")

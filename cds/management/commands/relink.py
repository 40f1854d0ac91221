"""`manage.py relink EXPORT PSEUDONYM --as USER --reason …`: whose name in a research copy it is."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.contrib.auth.models import User
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from cds.audit import recording
from cds.errors import ClinicError
from cds.research import relinking


class Command(BaseCommand):
    help = "Tell which patient of ours a pseudonym in a research copy stands for. Audited, refusals too."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("export", help="its id, from manifest.json of the copy")
        parser.add_argument("pseudonym", help="such as R-ABCDEFGHIJKLMNOP")
        parser.add_argument(
            "--as", dest="user", required=True, metavar="USER", help="who asks (role approver)"
        )
        parser.add_argument("--reason", required=True, help="why; kept in the audit trail")

    def handle(self, *args: Any, **options: Any) -> None:
        user = User.objects.filter(username=options["user"], is_active=True).first()
        if user is None:
            raise CommandError(f"no active user {options['user']!r}")
        try:
            found = relinking.get_patient(
                options["export"],
                options["pseudonym"],
                reason=options["reason"],
                user=user,
                by=recording.person(user),
                now=timezone.now(),
            )
        except ClinicError as error:
            raise CommandError(str(error)) from error
        self.stdout.write(f"{found.pk} (Patient/{found.resource_id} of {found.source.slug})")

"""`manage.py promote VERSION --requested-by U --approved-by V --reason …`: two people, as on the screen."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.models import User
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from cds.audit import recording
from cds.errors import ClinicError
from cds.registry import promoting, queries


class Command(BaseCommand):
    help = "Make a candidate the active model of its outcomes: one person asks, another approves."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("version", help='id, or "icu-admission v3", or a name for its newest version')
        parser.add_argument("--requested-by", required=True, help="user name; needs the right to request")
        parser.add_argument(
            "--approved-by", required=True, help="another user name; needs the right to approve"
        )
        parser.add_argument("--reason", required=True, help="why; kept and shown")

    def handle(self, *args: Any, **options: Any) -> None:
        version = queries.find_version(options["version"])
        if version is None:
            raise CommandError(f"no model version {options['version']!r}")
        asking, approving = _user(options["requested_by"]), _user(options["approved_by"])
        try:
            promotion = promoting.request(
                version,
                reason=options["reason"],
                by=recording.person(asking),
                user=asking,
                now=timezone.now(),
            )
            try:
                active = promoting.approve(
                    promotion, by=recording.person(approving), user=approving, now=timezone.now()
                )
            except ClinicError:
                promoting.reject(promotion, by=recording.person(asking), user=asking, now=timezone.now())
                raise
        except ClinicError as fault:
            raise CommandError(str(fault)) from fault
        self.stdout.write(f"{active.label} now answers for {', '.join(active.outcomes)}.")


def _user(name: str) -> User:
    found = User.objects.filter(username=name, is_active=True).first()
    if found is None:
        raise CommandError(f"no active user {name!r}")
    return found

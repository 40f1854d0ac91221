"""`manage.py create_user NAME --role clinician --unit "Ward 3"`: a person who may sign in."""

from __future__ import annotations

import getpass
import sys
from argparse import ArgumentParser
from typing import Any

from django.contrib.auth.models import Permission, User
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction
from django.utils import timezone

from cds.audit import recording
from cds.patients import access


class Command(BaseCommand):
    help = "Make a person who may sign in. The password is asked for, or read from standard input."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name")
        parser.add_argument(
            "--role", action="append", required=True, choices=[role.value for role in access.Role]
        )
        parser.add_argument(
            "--unit", action="append", default=[], metavar="UNIT", help="sees this unit's patients"
        )
        parser.add_argument("--all-units", action="store_true", help="sees the patients of every unit")

    def handle(self, *args: Any, **options: Any) -> None:
        name = options["name"].strip()
        if not name or User.objects.filter(username=name).exists():
            raise CommandError(f"there is already a user {name!r}" if name else "a name is needed")
        user = User(username=name)
        password = read_password()
        try:
            user.username_validator(name)
            validate_password(password, user)
        except ValidationError as error:
            raise CommandError(" ".join(error.messages)) from error
        with transaction.atomic():
            user.set_password(password)
            user.save()
            for role in options["role"]:
                access.give_role(user, access.Role(role))
            for unit in options["unit"]:
                access.join_unit(user, unit)
            if options["all_units"]:
                user.user_permissions.add(
                    Permission.objects.get(content_type__app_label="patients", codename="view_all")
                )
            recording.record(
                by=recording.system("create_user"),
                action="user.create",
                object_type="User",
                object_id=user.pk,
                now=timezone.now(),
                roles=options["role"],
                units=len(options["unit"]),
                all_units=options["all_units"],
            )
        self.stdout.write(f"{name}: {', '.join(options['role'])}")


def read_password() -> str:
    """Twice from the terminal, or one line from standard input; never from the command line."""
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    password = getpass.getpass("Password: ")
    if password != getpass.getpass("Again: "):
        raise CommandError("the two passwords differ")
    return password

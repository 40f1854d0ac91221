"""`manage.py fhir_subscription add | list | remove`: let FHIR servers tell us of changes (INTEROP 37)."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any
from uuid import UUID

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

import ehr
from cds.audit import recording
from cds.errors import ClinicError
from cds.patients import importing
from cds.subscriptions import registering
from cds.subscriptions.models import Subscription

BY = recording.system("fhir_subscription")
EVERYTHING = tuple(f"{kind}?" for kind in ehr.listened_types())


class Command(BaseCommand):
    help = "Subscriptions by rest-hook. The servers call PUBLIC_URL/fhir/subscriptions/…; workers fetch."

    def add_arguments(self, parser: ArgumentParser) -> None:
        does = parser.add_subparsers(dest="does", required=True)
        add = does.add_parser("add", help="subscribe at a server")
        add.add_argument("url", help="base URL of its FHIR API")
        add.add_argument("--source", required=True, metavar="SLUG", help="where its patients belong")
        add.add_argument("--shape", choices=[str(shape) for shape in ehr.SubscriptionShape], default="r4")
        add.add_argument(
            "--criteria",
            action="append",
            default=[],
            metavar="SEARCH",
            help="one subscription each; R4: a search (all types that are read when none is named), "
            "backport: a filter of the topic",
        )
        add.add_argument("--topic", default="", metavar="URL", help="backport: canonical URL of the topic")
        add.add_argument("--payload", choices=["empty", "id-only", "full-resource"], default="empty")
        add.add_argument("--heartbeat", type=int, metavar="SECONDS", help="backport: at least as often")
        add.add_argument(
            "--check-every", type=int, default=900, metavar="SECONDS",
            help="poll for what got lost, where the server does not count what it sends",
        )  # fmt: skip
        add.add_argument("--token-env", default="", metavar="NAME", help="variable with the bearer token")
        add.add_argument("--client-id", default="", help="what the server calls us (Backend Services)")
        add.add_argument("--token-url", default="", metavar="URL")
        add.add_argument("--scope", default="system/*.rs system/Subscription.cud")
        does.add_parser("list", help="what is subscribed to, and how it stands")
        remove = does.add_parser("remove", help="take a subscription back")
        remove.add_argument("id", type=UUID)

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            getattr(self, f"_{options['does']}")(options)
        except ClinicError as error:
            raise CommandError(str(error)) from None

    def _add(self, options: dict[str, Any]) -> None:
        now, shape = timezone.now(), ehr.SubscriptionShape(options["shape"])
        every = EVERYTHING if shape is ehr.SubscriptionShape.R4 else ("",)
        how = ("token_env", "client_id", "token_url", "scope")
        source = importing.get_source(options["source"], now=now)
        refused = []
        for criteria in options["criteria"] or every:
            try:
                made = registering.subscribe(
                    options["url"],
                    source=source,
                    shape=shape,
                    criteria=criteria,
                    topic=options["topic"],
                    payload=options["payload"],
                    heartbeat_s=options["heartbeat"],
                    check_every_s=options["check_every"],
                    sign_in={name: options[name] for name in how if options[name]},
                    by=BY,
                    now=now,
                )
            except ClinicError as error:
                refused.append(f"{criteria or options['topic']}: {error}")
                continue
            where = f"{settings.PUBLIC_URL}{registering.PATH}/{made.pk}"
            self.stdout.write(
                f"{made.pk}  {criteria or made.topic}  Subscription/{made.server_id} calls {where}"
            )
        if refused:
            raise CommandError("\n".join(refused))

    def _list(self, options: dict[str, Any]) -> None:
        for held in Subscription.objects.select_related("source").order_by("created_at"):
            heard = f"{held.heard_at:%Y-%m-%d %H:%M:%S}" if held.heard_at else "never"
            counted = f"events {held.events_seen}  " if held.shape == "backport" else ""
            self.stdout.write(
                f"{held.pk}  {held.source.slug}  {held.base_url}  {held.criteria or held.topic}  "
                f"{held.status}  heard {heard}  {counted}good until {held.good_until:%Y-%m-%d %H:%M:%S}  "
                f"gaps {held.gaps}"
            )
            for said in filter(None, (held.gap and f"open gap: {held.gap}", held.last_error)):
                self.stdout.write(f"    {said}")

    def _remove(self, options: dict[str, Any]) -> None:
        said = registering.unsubscribe(options["id"], by=BY, now=timezone.now())
        self.stdout.write("removed" if not said else f"removed here; at the server it stays: {said}")

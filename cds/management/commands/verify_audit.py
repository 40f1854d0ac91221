"""`manage.py verify_audit`: is the audit trail as it was written? Exit 1 when it is not."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from cds.audit import recording


class Command(BaseCommand):
    help = "Recompute every audit chain; print each with its length and head; exit 1 on any problem."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--anchor",
            type=Path,
            metavar="FILE",
            help="Compare with the heads kept in FILE, then keep the new ones there (on another machine).",
        )

    def handle(self, *args: Any, anchor: Path | None = None, **options: Any) -> None:
        checks = recording.verify(read_anchors(anchor) if anchor else None)
        for check in checks:
            state = "; ".join(check.problems) or "intact"
            self.stdout.write(
                f"chain {check.number:2d}  {check.length:8d} events  {check.head[:12]:12s}  {state}"
            )
        broken = [check.number for check in checks if check.problems]
        if broken:
            raise CommandError(f"audit trail damaged in chain {', '.join(map(str, broken))}", returncode=1)
        if anchor:
            heads = {str(check.number): [check.length, check.head] for check in checks}
            anchor.write_text(json.dumps(heads, indent=1))
        self.stdout.write(f"{sum(check.length for check in checks)} events, all intact")


def read_anchors(path: Path) -> dict[int, tuple[int, str]]:
    """Heads kept by an earlier run; none yet is fine, an unreadable file is not."""
    if not path.exists():
        return {}
    try:
        kept = json.loads(path.read_text())
        return {int(number): (int(length), str(head)) for number, (length, head) in kept.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise CommandError(f"{path} is not a file of anchors: {error}") from error

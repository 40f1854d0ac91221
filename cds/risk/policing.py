"""Which table of risk bounds and policy texts was in use when: kept and audited as soon as a worker has it.

The category of a score is stored with it and never changed; these rows tell by which bounds it was given.
"""

from __future__ import annotations

import hashlib
from datetime import datetime

import orjson
from django.db import transaction

from cds.audit import recording
from cds.registry import policies
from cds.risk.models import PolicyInUse


def note(*, now: datetime) -> PolicyInUse:
    """The table this process goes by; a row of its own where it is not the one used last."""
    content = {name: one.model_dump(by_alias=True) for name, one in sorted(policies.table().items())}
    digest = hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()
    last = PolicyInUse.objects.order_by("-since", "-pk").first()
    if last is not None and last.digest == digest:
        return last
    with transaction.atomic():
        found = PolicyInUse.objects.create(since=now, digest=digest, content=content)
        recording.record(
            by=recording.system("risk"),
            action="policy.change",
            object_type="PolicyInUse",
            object_id=found.pk,
            now=now,
            digest=digest,
            bounds={name: [one["moderate"], one["high"], one["very-high"]] for name, one in content.items()},
        )
    return found

"""What screens show: the EHR clients, and what was said in EHRs about a patient's cards.

Who may: `cds.patients.access`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from django.db.models import Q

from cds.errors import NotFound
from cds.hooks import registering
from cds.hooks.contexts import HOOKS
from cds.hooks.models import Feedback, HookClient
from cds.patients import access, merging
from cds.patients.models import Patient
from cds.risk import responding

MOST_SAID = 6


@dataclass(frozen=True, slots=True)
class KeyView:
    """A public key that calls may be signed with, and since when it has been here (None: not noted)."""

    kid: str
    algorithm: str
    since: datetime | None


@dataclass(frozen=True, slots=True)
class ClientView:
    """An EHR that may call, or might.

    shares  what to say where another EHR that calls has the same source; "" where none does
    """

    client: HookClient
    keys: tuple[KeyView, ...]
    shares: str = ""


@dataclass(frozen=True, slots=True)
class SaidInEhr:
    """What somebody said of a card in their EHR that is no answer on the panel: a comment, a reason of their
    own, suggestions that they accepted.

    outcome   accepted or overridden
    reason    in our words where it is one of ours (`is_ours`: said of a card without a score), else the code
              that they gave, as it came; "" for none, and for one that stands among the answers
    accepted  labels of suggestions
    """

    outcome: str
    at: datetime
    hook: str
    reason: str
    comment: str
    accepted: tuple[str, ...]
    is_ours: bool = False


def list_said(viewer: access.Viewer, patient: Patient, outcome: str) -> list[SaidInEhr]:
    """What was said in EHRs about the patient's cards of an outcome, the newest MOST_SAID, newest first.

    Answers with a reason of ours are not among them: they are answers on the panel. Raises NotAllowed.
    """
    access.check_view_patients(viewer)
    if not access.visible_patients(viewer).filter(pk=patient.pk).exists():
        raise NotFound("no such patient")
    about = Q(card__patient__in=merging.everybody(patient))
    is_told = ~Q(comment="") | ~Q(reason_code="") | ~Q(accepted_suggestions=[])
    is_answer = Q(
        card__prediction__isnull=False,
        outcome="overridden",
        reason_system=responding.REASON_SYSTEM,
        reason_code__in=responding.OVERRIDE_REASONS,
    )
    rows = Feedback.objects.filter(about, is_told, card__outcome=outcome).exclude(is_answer)
    return [_said(row) for row in rows.select_related("card").order_by("-outcome_at", "-pk")[:MOST_SAID]]


def _said(row: Feedback) -> SaidInEhr:
    offered = row.card.suggestions or {}
    hook = next((hook for hook in HOOKS if row.card.service.endswith(f"-{hook}")), row.card.service)
    accepted = tuple(offered[one] for one in row.accepted_suggestions if one in offered)
    is_ours = responding.is_ours(row.reason_system, row.reason_code)
    reason = responding.OVERRIDE_REASONS[row.reason_code].words if is_ours else row.reason_code
    return SaidInEhr(row.outcome, row.outcome_at, hook, reason, row.comment, accepted, is_ours)


def list_clients(viewer: access.Viewer) -> list[ClientView]:
    """Every EHR that was ever registered, those that may call first. Raises NotAllowed."""
    access.check_manage_clients(viewer)
    rows = HookClient.objects.select_related("source").order_by("-is_active", "name", "issuer")
    return [_view(client) for client in rows]


def get_client(viewer: access.Viewer, client_id: UUID) -> ClientView:
    """One of them. Raises NotAllowed, NotFound."""
    access.check_manage_clients(viewer)
    client = HookClient.objects.select_related("source").filter(pk=client_id).first()
    if client is None:
        raise NotFound("no such EHR client")
    return _view(client)


def _view(client: HookClient) -> ClientView:
    keys = tuple(_key(client, key) for key in client.jwks.get("keys", []))
    others = registering.beside(client.source, client.issuer) if client.is_active else []
    return ClientView(client, keys, registering.shared(client.source.slug, others))


def _key(client: HookClient, key: dict[str, str]) -> KeyView:
    since = client.keys_since.get(key["kid"])
    algorithm = "ES384" if key.get("kty") == "EC" else "RS384"
    return KeyView(key["kid"], algorithm, datetime.fromisoformat(since) if since else None)

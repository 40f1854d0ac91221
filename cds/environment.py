"""Every variable that Tessera reads from the environment, typed and described, and how lists are read."""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Literal

from django.core.exceptions import ImproperlyConfigured
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

BASE_DIR = Path(__file__).resolve().parent.parent


class Environment(BaseSettings):
    """Every variable Tessera reads, typed; a bad value stops the start and says which."""

    model_config = SettingsConfigDict(env_file=BASE_DIR / ".env", extra="ignore")

    tessera_env: Literal["embedded", "production"] = Field(
        "embedded", description="embedded: loopback and local files. production: strict checks at start."
    )
    tessera_data_dir: Path = Field(
        BASE_DIR / "var", description="Database file, studies and bundles live here."
    )
    secret_key: str = Field(
        "", description="Signing key. Required in production; made and kept in the data dir otherwise."
    )
    debug: bool = Field(False, description="Django debug pages. Refused in production.")
    allowed_hosts: str = Field("127.0.0.1,localhost", description="Host names served, comma separated.")
    public_url: str = Field(
        "http://127.0.0.1:8000", description="The address users and EHRs reach us by; https in production."
    )
    database_url: str = Field(
        "", description="postgres://user:password@host:5432/name; empty: SQLite in the data dir."
    )
    redis_url: str = Field(
        "", description="redis://host:6379/0; empty: the embedded broker that `manage.py demo` starts."
    )
    study_store: Path | None = Field(
        None, description="Where pixels are kept; empty: <data dir>/studies. Shared by web and workers."
    )
    segmenter_store: Path | None = Field(
        None,
        description="Segmenters that measure pictures on arrival; empty: <data dir>/segmenters. "
        "Read by workers.",
    )
    bundle_store: Path | None = Field(
        None, description="Where models are kept; empty: <data dir>/bundles. Shared by web and workers."
    )
    fhir_keys: Path | None = Field(
        None,
        description="Keys that sign in to FHIR servers; empty: <data dir>/fhir-keys.json. Keep it secret.",
    )
    code_map: Path | None = Field(
        None, description="CSV of the site's own codes and what they mean; check it by `code_map check FILE`."
    )
    dicom_tls_ca: str = Field(
        "",
        description="DICOM over TLS: the hospital's authority (CA), PEM, whose certificates are trusted.",
    )
    dicom_tls_cert: str = Field(
        "", description="DICOM over TLS: our certificate with its chain, PEM, for nodes that ask who calls."
    )
    dicom_tls_key: str = Field(
        "", description="Its private key, PEM without a password, where it is not in the same file."
    )
    frame_ancestors: str = Field("", description="Origins of EHRs that may embed the panel, comma separated.")
    regulatory_label: str = Field("Research use only", description="Shown beside every score.")
    hooks_open: bool = Field(
        False, description="Serve CDS Hooks without client authentication: demo on loopback only."
    )
    hooks_wait_ms: int = Field(300, ge=0, le=450, description="How long a hook call waits for a fresh score.")
    hooks_budget_ms: int = Field(
        450, ge=50, le=5000, description="After this long a hook call is answered 503, whatever it waits for."
    )
    hooks_feedback_budget_ms: int = Field(
        10_000,
        ge=50,
        le=60_000,
        description="After this long what is left of a batch of feedback is answered 503; the rest is kept.",
    )
    hooks_offered: str = Field(
        "patient-view,encounter-start,encounter-discharge,order-select,order-sign,appointment-book",
        description="CDS Hooks offered to EHRs, comma separated.",
    )
    hooks_calls_per_minute: int = Field(
        12_000, ge=0, description="Calls a minute one EHR may make; more are answered 429. 0: no limit."
    )
    hooks_alert_at: str = Field(
        "high",
        description="Category from which a card is a warning: low, moderate, high, very-high or never; "
        "for one outcome alone: death=moderate,icu-admission=high.",
    )
    hooks_critical_at: str = Field("never", description="The same for cards that are critical.")
    hooks_quiet_hours: float = Field(
        12,
        ge=0,
        description="For this long the same person is not alerted again to the same risk of a patient.",
    )
    hooks_quiet_roles: str = Field(
        "",
        description="Users whom no card ever alerts, by FHIR type or one by one: "
        "Practitioner,PractitionerRole/n17.",
    )
    risk_policies: Path | None = Field(
        None,
        description="JSON of the site's own risk bounds and policy texts, by outcome; empty: those shipped.",
    )
    score_interval_minutes: int = Field(60, ge=1, description="A score older than twice this is Stale.")
    fairness_auroc_gap: float = Field(
        0.1, ge=0, le=1, description="A model whose AUROC differs more between groups is not promoted."
    )
    fairness_calibration_gap: float = Field(
        0.1, ge=0, le=1, description="The same for the share of events observed minus that expected."
    )
    image_backbone: str = Field(
        "efficientnet_lite0",
        description="Image encoder used for studies that arrive before any model is active.",
    )
    image_weights: Path | None = Field(
        None, description="Weights of that image encoder (safetensors); empty: those of its package."
    )
    encoder_runtime: Literal["onnxruntime", "torch"] = Field(
        "onnxruntime", description="What runs the image encoders of the workers: onnxruntime or torch."
    )
    encoder_threads: int = Field(
        1, ge=1, description="Threads of one encoding; more than one pays only on an idle machine."
    )
    text_backbone: str = Field(
        "minilm",
        description="Text encoder (minilm, hashing or a folder) of notes that arrive before any model is "
        "active.",
    )
    text_store: Path | None = Field(
        None,
        description="Folder of other text encoders, one folder each; empty: <data dir>/text. "
        "Read by workers.",
    )
    oidc_issuer: str = Field(
        "", description="Issuer of the hospital's own accounts (OpenID Connect); empty: local accounts only."
    )
    oidc_client_id: str = Field("", description="What that provider calls us.")
    oidc_client_auth: Literal["secret", "private_key", "none"] = Field(
        "secret",
        description="How we sign in there: secret (OIDC_CLIENT_SECRET), private_key (that of "
        "`manage.py fhir_key`), or none (PKCE alone).",
    )
    oidc_client_secret: str = Field("", description="The secret shared with the provider.")
    oidc_scopes: str = Field("openid profile", description="Scopes asked for; openid is one of them.")
    oidc_role_claim: str = Field(
        "groups", description="Claim of the id_token that names groups, such as realm_access.roles."
    )
    oidc_roles: str = Field(
        "",
        description="Which of those groups are which role, comma separated: "
        "tessera-clinicians=clinician,tessera-admins=admin,tessera-approvers=approver.",
    )
    oidc_unit_claim: str = Field(
        "", description="Claim that names the units a person sees; empty: units are given here."
    )
    oidc_algorithms: str = Field(
        "RS256,ES256,PS256", description="Signatures of id_tokens that are accepted; never none or HMAC."
    )
    oidc_origins: str = Field("", description="Further origins of the provider's endpoints, comma separated.")
    session_idle_minutes: int = Field(15, ge=1, description="Sign out after this long without a click.")
    session_hours: int = Field(8, ge=1, description="Sign out after this long in any case.")
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR.")
    log_json: bool = Field(True, description="One JSON object a line; false: coloured text for people.")
    tls_at_proxy: bool = Field(
        True, description="Production sits behind a proxy that sets X-Forwarded-Proto."
    )
    trusted_proxies: str = Field(
        "127.0.0.1,::1",
        description="Addresses or networks of that proxy, comma separated: X-Forwarded-For counts only from "
        "there.",
    )
    tz: str = Field("UTC", description="Time zone of the screens, and of DICOM times that name none.")


def categories(said: str) -> dict[str, str]:
    """Outcome → category from which something holds; "" is for all outcomes that are not named."""
    known, found = {"low", "moderate", "high", "very-high", "never"}, {"": "never"}
    for part in said.split(","):
        outcome, _, category = part.strip().rpartition("=")
        if category not in known:
            raise ImproperlyConfigured(
                f"HOOKS_ALERT_AT and HOOKS_CRITICAL_AT take {', '.join(sorted(known))}"
            )
        found[outcome.strip()] = category
    return found


def listed(said: str) -> list[str]:
    return [one.strip() for one in said.split(",") if one.strip()]


HOOKS = (  # as `cds.hooks.contexts` reads them; in its order
    "patient-view", "encounter-start", "encounter-discharge", "order-select", "order-sign",
    "appointment-book",
)  # fmt: skip
USERS = ("Practitioner", "PractitionerRole", "Patient", "RelatedPerson")


def some_of(name: str, said: str, allowed: tuple[str, ...]) -> list[str]:
    """A list of words that are all known: a misspelt one would be passed over unseen."""
    found = listed(said)
    unknown = [one for one in found if one not in allowed]
    if unknown:
        raise ImproperlyConfigured(f"{name} takes {', '.join(allowed)}; not {', '.join(unknown)}")
    return found


def quiet_roles(said: str) -> frozenset[str]:
    """FHIR types of users, and users as an EHR names them: [Type]/[id]."""
    found = frozenset(listed(said))
    some_of("HOOKS_QUIET_ROLES", ",".join(one.partition("/")[0] for one in found), USERS)
    wrong = sorted(one for one in found if not re.fullmatch(r"\w+(/[A-Za-z0-9\-.]{1,64})?", one))
    if wrong:
        raise ImproperlyConfigured(
            f"HOOKS_QUIET_ROLES takes a FHIR type, or [Type]/[id]; not {', '.join(wrong)}"
        )
    return found


def oidc_roles(said: str) -> tuple[tuple[str, str], ...]:
    """(group there, role here), as OIDC_ROLES lists them; a group's name may hold `=`."""
    pairs = [one.rpartition("=") for one in listed(said)]
    if any(not group or role not in {"clinician", "admin", "approver"} for group, _, role in pairs):
        raise ImproperlyConfigured("OIDC_ROLES takes GROUP=clinician, GROUP=admin or GROUP=approver")
    return tuple((group.strip(), role) for group, _, role in pairs)


def networks(said: str) -> tuple[IPv4Network | IPv6Network, ...]:
    try:
        return tuple(ip_network(one) for one in listed(said))
    except ValueError as error:
        raise ImproperlyConfigured(
            f"TRUSTED_PROXIES takes addresses or networks, such as 172.18.0.1 or 10.3.0.0/16: {error}"
        ) from None

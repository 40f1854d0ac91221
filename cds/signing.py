"""Our own keys, with which Backend Services sign-in signs (INTEROP 30), and the key set that servers read.

One JSON file of private keys, newest first; only its owner may read it. Servers remember the set for
CACHED_S, so a new key is served for SETTLED_S before it signs; an older one is served until it is dropped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from django.conf import settings
from django.http import HttpRequest, JsonResponse
from django.utils import timezone
from django.views.decorators.cache import cache_control
from django.views.decorators.http import require_safe

import ehr
from cds.errors import Invalid, NotFound

CACHED_S = 300
SETTLED_S = CACHED_S + 60  # clocks differ


def private_keys() -> list[dict[str, Any]]:
    """Private JWKs, newest first. Raises Invalid when the file is not what `add_key` writes."""
    path: Path = settings.FHIR_KEYS
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text())["keys"]
        ehr.public_keys(found)
    except (OSError, ValueError, KeyError, TypeError, ehr.EhrError) as error:
        raise Invalid(
            f"{path} does not hold our signing keys; restore it, or move it away and add a key"
        ) from error
    return list(found)


def signing_key() -> dict[str, Any] | None:
    """The private JWK that signs: the newest that servers have had the time to read, the oldest when none
    is that old. None when there is no key. Raises Invalid as `private_keys` does."""
    held = private_keys()
    now = timezone.now()
    settled = [key for key in held if settles_at(key) <= now]
    return next(iter(settled or held[-1:]), None)


def settles_at(key: Mapping[str, Any]) -> datetime:
    """When a key will have been served for long enough to sign."""
    made = key.get("made_at")
    moment = datetime.fromisoformat(made) if made else datetime.min.replace(tzinfo=UTC)
    return moment + timedelta(seconds=SETTLED_S)


def add_key(kind: Literal["EC", "RSA"]) -> str:
    """A new key; its `kid`. Served at once, it signs once it has settled, or when it is the only one."""
    key = {**ehr.new_key(kind), "made_at": timezone.now().isoformat()}
    _write([key, *private_keys()])
    return str(key["kid"])


def drop_key(kid: str) -> None:
    """Serve a key no more. Raises NotFound, and Invalid for the one that signs."""
    held, signing = private_keys(), signing_key()
    if kid not in [key["kid"] for key in held]:
        raise NotFound(f"no key {kid}; `fhir_key list` shows them")
    if signing is not None and signing["kid"] == kid:
        raise Invalid(
            "this key signs; add another first, and drop this one when `fhir_key list` says that the other "
            "signs"
        )
    _write([key for key in held if key["kid"] != kid])


def sign_in(token_url: str, client_id: str, *, scope: str, allow_http: bool = False) -> ehr.BackendServices:
    """Backend Services with the key that signs. Raises Invalid when there is none."""
    key = signing_key()
    if key is None:
        raise Invalid(
            "there is no key to sign in with: run `manage.py fhir_key add`, and register its key set"
        )
    return ehr.BackendServices(token_url, client_id, key, scope=scope, allow_http=allow_http)


@require_safe
@cache_control(public=True, max_age=CACHED_S)
def jwks(request: HttpRequest) -> JsonResponse:
    """`/.well-known/jwks.json`: our public keys, for authorisation servers; no sign-in needed."""
    return JsonResponse(ehr.public_keys(private_keys()))


def _write(held: list[dict[str, Any]]) -> None:
    path: Path = settings.FHIR_KEYS
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump({"keys": held}, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)

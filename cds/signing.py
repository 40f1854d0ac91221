"""Our own keys, with which Backend Services sign-in signs (INTEROP 30), and the key set that servers read.

One JSON file of private keys, newest first; only its owner may read it. The newest signs. An older one is
still served until it is dropped, so that keys rotate while servers remember the last set for a while.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

from django.conf import settings
from django.http import HttpRequest, JsonResponse
from django.views.decorators.cache import cache_control
from django.views.decorators.http import require_safe

import ehr
from cds.errors import Invalid, NotFound

CACHED_S = 300


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


def add_key(kind: Literal["EC", "RSA"]) -> str:
    """A new key that signs from now on; its `kid`."""
    key = ehr.new_key(kind)
    _write([key, *private_keys()])
    return str(key["kid"])


def drop_key(kid: str) -> None:
    """Serve a key no more. Raises NotFound, and Invalid for the one that signs."""
    held = private_keys()
    if kid not in [key["kid"] for key in held]:
        raise NotFound(f"no key {kid}; `fhir_key list` shows them")
    if held[0]["kid"] == kid:
        raise Invalid(
            "this key signs; add another first, and drop this one when servers have read the new set"
        )
    _write([key for key in held if key["kid"] != kid])


def sign_in(token_url: str, client_id: str, *, scope: str, allow_http: bool = False) -> ehr.BackendServices:
    """Backend Services with our newest key. Raises Invalid when there is none."""
    held = private_keys()
    if not held:
        raise Invalid(
            "there is no key to sign in with: run `manage.py fhir_key add`, and register its key set"
        )
    return ehr.BackendServices(token_url, client_id, held[0], scope=scope, allow_http=allow_http)


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

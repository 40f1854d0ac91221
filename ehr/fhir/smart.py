"""SMART App Launch 2.2 for an app: discovery, the way to the EHR's sign-in, the code's exchange, who came.

Source: SMART App Launch 2.2 (launch sequence; scopes and launch context; client authentication: asymmetric),
OpenID Connect Core 3.1.3.7 (the id_token), RFC 7636 (PKCE). INTEROP 24 to 28.

How servers are called and id_tokens verified: `ehr.openid`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ehr.errors import BadResource, Refused
from ehr.fhir.client import SEARCHES
from ehr.openid import NAMES_ITSELF, OpenIdClient, Pending, name_in

RESOURCES_V2, RESOURCES_V1 = "patient/*.rs", "patient/*.read"
_RESOURCE_SCOPE = re.compile(
    r"(?:patient|user|system)/(?P<type>\*|[A-Za-z]+)\.(?P<may>read|write|\*|c?r?u?d?s?)(?P<query>\?\S*)?"
)  # of both versions
_FHIR_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")


@dataclass(frozen=True, slots=True)
class SmartConfiguration:
    """What `.well-known/smart-configuration` says, checked.

    id_issuer     the `iss` of its id_tokens, and of its answers to the browser
    names_itself  its answers always carry that `iss` (RFC 9207)
    """

    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    id_issuer: str
    capabilities: frozenset[str] = frozenset()
    names_itself: bool = False


@dataclass(frozen=True, slots=True)
class LaunchContext:
    """Who came, and for whom. The token is for this moment only: never stored, never shown.

    fhir_user    `[Type]/[id]`, or its absolute URL, as the id_token says
    app_context  what a CDS Hooks card's smart link gave along
    withheld     resource types of a record that the token may not read and search, though they were asked for
    """

    fhir_user: str
    name: str
    patient: str
    encounter: str = ""
    need_patient_banner: bool = True
    style_url: str = ""
    app_context: str = ""
    access_token: str = field(default="", repr=False)
    withheld: tuple[str, ...] = ()


class SmartApp(OpenIdClient):
    """This app towards one registered server. `issuer`: base URL of its FHIR endpoint, as `iss` names it."""

    def discover(self) -> SmartConfiguration:
        """Raises Refused (an endpoint on an unregistered origin; no PKCE), Retriable, BadResource, "
        "TooLarge."""
        said = self._get(f"{self.issuer}/.well-known/smart-configuration")
        methods = said.get("code_challenge_methods_supported")
        if isinstance(methods, list) and "S256" not in methods:
            raise Refused("the server does not support PKCE with S256, which SMART App Launch 2 requires")
        if not said.get("jwks_uri") or not said.get("issuer"):
            said = {**self._get(f"{self.issuer}/.well-known/openid-configuration"), **said}
        found = {
            name: self._checked(said.get(name), name)
            for name in ("authorization_endpoint", "token_endpoint", "jwks_uri")
        }
        listed = said.get("capabilities")
        return SmartConfiguration(
            id_issuer=str(said.get("issuer") or self.issuer),
            capabilities=frozenset(map(str, listed)) if isinstance(listed, list) else frozenset(),
            names_itself=said.get(NAMES_ITSELF) is True,
            **found,
        )

    def begin(
        self, configuration: SmartConfiguration, *, launch: str = "", aud: str = ""
    ) -> tuple[str, Pending]:
        """The address to send the browser to, and what to remember until it comes back.

        launch  the EHR's handle; "": standalone, the EHR lets the person choose a patient
        aud     the server's FHIR address as it names itself, to the letter; "": `issuer`
        """
        more = {"aud": aud or self.issuer, **({"launch": launch} if launch else {})}
        scope = scopes_for(configuration, standalone=not launch)
        return self._begin(configuration.authorization_endpoint, scope, more)

    def complete(
        self,
        configuration: SmartConfiguration,
        code: str,
        pending: Pending,
        *,
        answered_by: str = "",
        keys: Callable[[bool], Mapping[str, Any]] | None = None,
    ) -> LaunchContext:
        """Exchange the code and verify who came.

        answered_by  the `iss` that came back with the code (RFC 9207); "" for none
        keys    the server's key set, cached by the caller; called with True for a fresh one when a `kid` is
                unknown. None: it is read each time
        raises  Refused when the server refuses the code, or what it says of the person does not verify;
                Retriable, BadResource, TooLarge
        """
        issuers = {configuration.id_issuer, self.issuer}
        self._check_answered(answered_by, issuers, names_itself=configuration.names_itself)
        said = self._exchange(configuration.token_endpoint, code, pending)
        if str(said.get("token_type", "")).lower() != "bearer" or not isinstance(
            said.get("access_token"), str
        ):
            raise BadResource("the token endpoint answered without a bearer access_token")
        token = said.get("id_token")
        if not isinstance(token, str):
            raise Refused("the server gave no id_token: allow this app the scopes openid and fhirUser")
        keys = keys or (lambda fresh: self.read_keys(configuration))
        claims = self._verified(token, issuers, pending.nonce, keys)
        patient, encounter = str(said.get("patient") or ""), str(said.get("encounter") or "")
        if not _FHIR_ID.fullmatch(patient):
            raise Refused("the server named no patient: allow this app the scope launch, or launch/patient")
        return LaunchContext(
            fhir_user=str(claims.get("fhirUser") or claims.get("profile") or ""),
            name=name_in(claims),
            patient=patient,
            encounter=encounter if _FHIR_ID.fullmatch(encounter) else "",
            need_patient_banner=said.get("need_patient_banner") is not False,
            style_url=str(said.get("smart_style_url") or ""),
            app_context=str(said.get("appContext") or "")[:2000],
            access_token=said["access_token"],
            withheld=withheld_by(said.get("scope")),
        )

    def read_keys(self, configuration: SmartConfiguration) -> dict[str, Any]:
        """The key set that the server's id_tokens are signed with. Raises as `discover` does."""
        return self._get(configuration.jwks_uri)

    def read_style(self, url: str) -> dict[str, Any]:
        """A `smart_style_url` of the server. Raises as `discover` does."""
        return self._get(self._checked(url, "smart_style_url"))


def scopes_for(configuration: SmartConfiguration, *, standalone: bool) -> str:
    """INTEROP 26: SMART 2 scopes, or those of version 1 where the server lists only `permission-v1`."""
    is_old = (
        "permission-v1" in configuration.capabilities and "permission-v2" not in configuration.capabilities
    )
    who = "launch/patient" if standalone else "launch"
    return f"openid fhirUser {who} {RESOURCES_V1 if is_old else RESOURCES_V2}"


def withheld_by(granted: object) -> tuple[str, ...]:
    """The resource types of a record that the granted scopes (`scope` of a token's answer) leave out.

    A scope with a query (`?category=…`) gives only part of its type, so it does not count. Without `scope`,
    or with none that is about resources, nothing is known to be withheld (RFC 6749, 5.1).
    """
    asked = str(granted or "").split()
    found = [one for one in map(_RESOURCE_SCOPE.fullmatch, asked) if one is not None]
    if not found:
        return ()
    given = {
        one["type"]
        for one in found
        if not one["query"] and (one["may"] in ("read", "*") or {"r", "s"} <= set(one["may"]))
    }
    return () if "*" in given else tuple(one for one in ("Patient", *SEARCHES) if one not in given)


def fhir_user_of(said: str, issuer: str) -> tuple[str, str]:
    """(type, id) of a `fhirUser`, relative or absolute at the server itself. Raises Refused."""
    path = said.removeprefix(issuer.rstrip("/") + "/")
    found = re.fullmatch(r"([A-Z][A-Za-z]+)/([A-Za-z0-9\-.]{1,64})(/_history/[^/]+)?", path)
    if found is None:
        raise Refused("the id_token's fhirUser names nobody of this server")
    return found[1], found[2]

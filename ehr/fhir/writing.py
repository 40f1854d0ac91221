"""Writing to a FHIR R4 server so that nothing is there twice, whatever is lost on the way (INTEROP 36).

`put` first looks for our resource, then creates it on the condition that it is not there (If-None-Exist), or
updates the one that is there on the condition that nobody changed it meanwhile (If-Match). An answer that is
lost after the server has created is found by the next attempt. One attempt a call: whoever calls keeps what
is to be sent and asks again (`Retriable`, with Retry-After where the server gave one).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

import httpx
import orjson

from ehr.calling import ServerClient
from ehr.errors import BadResource, Refused, Retriable
from ehr.fhir.sign_in import SignIn
from ehr.fhir.waiting import is_busy, outcome_said, retry_after

ID = r"[A-Za-z0-9\-.]{1,64}"
BY_SERVER = frozenset({"id", "meta", "text", "implicitRules"})  # a server may add these to what we sent


class Done(StrEnum):
    """What `put` did."""

    CREATED = "created"
    UPDATED = "updated"
    UNCHANGED = "unchanged"  # it was there already, as it is to be


@dataclass(frozen=True, slots=True)
class Written:
    """Where a resource of ours lies on the server. `version` is its meta.versionId, "" when not told."""

    resource_id: str
    version: str
    done: Done


class FhirWriter(ServerClient):
    """Writes to one FHIR R4 server. Use in a `with`, or call `close`.

    token       bearer token, "" for none; or where tokens come from (`ehr.fhir.sign_in`)
    allow_http  plain http outside loopback, for a network that is trusted
    raises      Refused when it is not an address we may call
    """

    def __init__(
        self,
        base_url: str,
        *,
        token: str | SignIn = "",
        timeout_s: float = 20,
        transport: httpx.BaseTransport | None = None,
        allow_http: bool = False,
    ) -> None:
        super().__init__(
            base_url,
            accept="application/fhir+json",
            token=token,
            timeout_s=timeout_s,
            transport=transport,
            allow_http=allow_http,
        )

    def put(self, resource: Mapping[str, Any], *, match: Mapping[str, str], amend: bool = True) -> Written:
        """Make the server hold this resource once: found by `match` or created, updated when it differs.

        match   search parameters that only this resource answers to, such as its identifier
        amend   False leaves one that is there as it is
        raises  Refused (4xx with the server's words; several answer to `match`), Retriable, BadResource
        """
        kind = str(resource["resourceType"])
        found = self._find(kind, match)
        if found is None:
            return self._create(kind, resource, match)
        identity, version = str(found.get("id") or ""), _version_of(found)
        if not re.fullmatch(ID, identity):
            raise BadResource(f"the server gave a {kind} without an id")
        if not amend or _content(found) == _content(resource):
            return Written(identity, version, Done.UNCHANGED)
        headers = {"If-Match": f'W/"{version}"'} if version else {}
        answer, body = self._call("PUT", f"{kind}/{identity}", headers, {**resource, "id": identity})
        return Written(identity, _version_of(body) or _version_in(answer), Done.UPDATED)

    def list_problems(self, kinds: tuple[str, ...]) -> list[str]:
        """What the server cannot do of what `put` needs, in words: as its CapabilityStatement says, and as
        one bounded search of each type shows. Writes nothing; raises Refused, Retriable.
        """
        _, said = self._call("GET", "metadata", {})
        if said.get("resourceType") != "CapabilityStatement":
            raise BadResource("GET metadata was not answered by a CapabilityStatement")
        told = {
            str(one.get("type")): one
            for rest in said.get("rest", []) if isinstance(rest, dict)
            for one in rest.get("resource", []) if isinstance(one, dict)
        }  # fmt: skip
        problems = []
        for kind in kinds:
            about = told.get(kind)
            if about is None:
                problems.append(f"{kind}: the server does not know this type")
                continue
            can = {str(one.get("code")) for one in about.get("interaction", []) if isinstance(one, dict)}
            lacking = [code for code in ("create", "update", "search-type") if code not in can]
            if lacking:
                problems.append(f"{kind}: the server does not offer {', '.join(lacking)}")
            if not about.get("conditionalCreate"):
                problems.append(f"{kind}: no conditional create; found again by search only")
            problems += self._why_unreadable(kind)
        return problems

    def _why_unreadable(self, kind: str) -> list[str]:
        try:
            self._call("GET", f"{kind}?_count=1", {})
        except Refused as error:
            if error.status == 401:
                raise
            return [f"{kind}: our account may not search it ({error})"]
        return []

    def _find(self, kind: str, match: Mapping[str, str]) -> Mapping[str, Any] | None:
        """The one that answers to `match`, as a server that just created it may know it only by search."""
        _, bundle = self._call("GET", f"{kind}?{urlencode({**match, '_count': '2'})}", {})
        if bundle.get("resourceType") != "Bundle":
            raise BadResource(f"a search of {kind} was not answered by a Bundle")
        entries = bundle.get("entry") or []
        found = [
            entry["resource"]
            for entry in entries
            if isinstance(entry, dict) and isinstance(entry.get("resource"), dict)
        ]
        found = [one for one in found if one.get("resourceType") == kind]
        if len(found) > 1:
            raise Refused(
                f"the server holds more than one {kind} of ours ({_words(match)}): remove all but one there"
            )
        return found[0] if found else None

    def _create(self, kind: str, resource: Mapping[str, Any], match: Mapping[str, str]) -> Written:
        answer, body = self._call("POST", kind, {"If-None-Exist": urlencode(match)}, resource)
        done = Done.CREATED if answer.status_code == 201 else Done.UNCHANGED
        if body.get("resourceType") == kind and re.fullmatch(ID, str(body.get("id") or "")):
            return Written(str(body["id"]), _version_of(body) or _version_in(answer), done)
        named = re.search(rf"{kind}/({ID})(?:/_history/({ID}))?/?$", answer.headers.get("Location", ""))
        if named:
            return Written(named[1], named[2] or "", done)
        found = self._find(kind, match)  # it says neither in its body nor in Location where it put it
        if found is None:
            raise Retriable(f"POST {kind}: {answer.status_code}, and it cannot be found yet")
        return Written(str(found.get("id")), _version_of(found), done)

    def _call(
        self, method: str, path: str, headers: Mapping[str, str], resource: Mapping[str, Any] | None = None
    ) -> tuple[httpx.Response, dict[str, Any]]:
        """One request. Raises Retriable, Refused, TooLarge; the body is {} when it is not a JSON object."""
        url = urljoin(self.base_url, path)
        said = f"{method} {urlsplit(url).path}"
        content = orjson.dumps(resource) if resource is not None else None
        sent = {**headers, "Content-Type": "application/fhir+json"} if content is not None else dict(headers)
        answer, body = self._exchange(method, url, said=said, content=content, headers=sent)
        status = answer.status_code
        if 200 <= status < 300:
            return answer, _as_object(body)
        words = f"{said}: {status}{outcome_said(body)}"
        if is_busy(status):
            raise Retriable(words, retry_after_s=retry_after(answer))
        if method == "PUT" and status in (409, 412):
            raise Retriable(f"{words} (changed on the server meanwhile)")
        if 300 <= status < 400:
            words = f"{said}: {status} (redirects are not followed)"
        raise Refused(words, status=status)


def identified(resource: Mapping[str, Any]) -> dict[str, str]:
    """The search that finds a resource by our identifier, its first."""
    ours = resource["identifier"][0]
    return {"identifier": f"{ours['system']}|{ours['value']}"}


def _as_object(body: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(body or b"{}")
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _content(resource: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in resource.items() if name not in BY_SERVER}


def _version_of(resource: Mapping[str, Any]) -> str:
    meta = resource.get("meta")
    return str(meta.get("versionId") or "") if isinstance(meta, Mapping) else ""


def _version_in(answer: httpx.Response) -> str:
    """From ETag, else from the end of Location."""
    tagged = str(answer.headers.get("ETag", "")).removeprefix("W/").strip('"')
    return tagged or str(answer.headers.get("Location", "")).partition("/_history/")[2]


def _words(match: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in match.items())

"""A FHIR server that takes what we send, as an httpx transport or on a port; told to fail, it does.

`lose`    how many answers are lost after the server has done what was asked
`refuse`  resource type -> status it answers to a POST or PUT
`busy`    how many requests are answered 503 with `retry_after`
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, parse_qsl

import httpx

Resource = dict[str, Any]


@dataclass
class Hospital:
    resources: dict[str, Resource] = field(default_factory=dict)  # "Type/id" -> as it is now
    versions: dict[str, list[Resource]] = field(default_factory=dict)
    lose: int = 0
    busy: int = 0
    retry_after: str = "7"
    refuse: dict[str, int] = field(default_factory=dict)
    silent: bool = False  # says neither in the body nor in Location where a new resource lies
    asked: list[tuple[str, str]] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)

    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self.answer)

    def of(self, kind: str) -> list[Resource]:
        return [one for key, one in self.resources.items() if key.startswith(f"{kind}/")]

    def answer(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path.removeprefix("/fhir/")
        self.asked.append((request.method, path))
        self.tokens.append(request.headers.get("Authorization", ""))
        if self.busy:
            self.busy -= 1
            return httpx.Response(503, headers={"Retry-After": self.retry_after})
        if request.method == "GET":
            return httpx.Response(200, json=self._get(path, request.url.query.decode()))
        kind = path.partition("/")[0]
        if kind in self.refuse:
            said = {"severity": "error", "code": "invalid", "diagnostics": "not here"}
            outcome = {"resourceType": "OperationOutcome", "issue": [said]}
            return httpx.Response(self.refuse[kind], json=outcome)
        answer = self._write(request, kind, path)
        if self.lose:
            self.lose -= 1
            raise httpx.ReadError("the line was cut", request=request)
        return answer

    def _get(self, path: str, query: str) -> Resource:
        if path == "metadata":
            can = [{"code": code} for code in ("create", "update", "search-type", "read")]
            kinds = ("RiskAssessment", "DiagnosticReport", "Device")
            told = [{"type": kind, "interaction": can, "conditionalCreate": True} for kind in kinds]
            return {"resourceType": "CapabilityStatement", "rest": [{"mode": "server", "resource": told}]}
        wanted = {name: values[0] for name, values in parse_qs(query).items() if not name.startswith("_")}
        entries = [{"resource": one} for one in self.of(path) if _fits(one, wanted)]
        return {"resourceType": "Bundle", "type": "searchset", "entry": entries}

    def _write(self, request: httpx.Request, kind: str, path: str) -> httpx.Response:
        resource = json.loads(request.content)
        if request.method == "POST":
            condition = request.headers.get("If-None-Exist")
            held = [one for one in self.of(kind) if condition and _fits(one, dict(parse_qsl(condition)))]
            if held:
                return httpx.Response(200, json=held[0])
            path = f"{kind}/{len(self.of(kind)) + 1}"
            resource["id"] = path.partition("/")[2]
        elif request.headers.get("If-Match", "") not in ("", f'W/"{len(self.versions[path])}"'):
            return httpx.Response(412)
        history = self.versions.setdefault(path, [])
        resource["meta"] = {"versionId": str(len(history) + 1)}
        history.append(resource)
        self.resources[path] = resource
        if self.silent:
            return httpx.Response(201)
        place = f"https://ehr.example/fhir/{path}/_history/{len(history)}"
        return httpx.Response(201 if request.method == "POST" else 200, headers={"Location": place})


def _fits(resource: Resource, wanted: dict[str, str]) -> bool:
    told = {
        "identifier": [f"{one.get('system', '')}|{one['value']}" for one in resource.get("identifier", [])],
        "target": [one["reference"] for one in resource.get("target", [])],
        "recorded": [resource.get("recorded", "")],
    }
    return all(value in told[name] for name, value in wanted.items())

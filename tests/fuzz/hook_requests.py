"""Hook requests: sound ones of every hook, and the same broken in a few places. From a seed."""

from __future__ import annotations

import copy
import json
import random
import uuid
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.utils import timezone

from tests.cds.hooks.conftest import heart_rate, patient_resource, searchset
from tests.fuzz.test_fhir import CORPUS, ODD, places

HOOKS = (
    "patient-view",
    "encounter-start",
    "encounter-discharge",
    "order-select",
    "order-sign",
    "appointment-book",
)
WITH_ORDERS = ("order-select", "order-sign")
KEYS = (
    "patient",
    "encounters",
    "conditions",
    "medications",
    "vitals",
    "labs",
    "notes",
    "imaging",
    "other",
    "",
)
SNOMED = "http://snomed.info/sct"
ORDERS = (
    {"coding": [{"system": SNOMED, "code": "399208008"}], "text": "Chest X-ray"},
    {"coding": [{"system": "http://www.ama-assn.org/go/cpt", "code": "93306"}]},
    {"text": "MRI of the head"},
    {"text": "Full blood count"},
    {"coding": [{"system": SNOMED, "code": "26604007"}]},
)
OUTCOME = {"resourceType": "OperationOutcome", "issue": [{"severity": "error", "code": "exception"}]}
DEEP = (50, 254, 1000, 20_000)


@dataclass(frozen=True)
class Case:
    """What is sent to which hook's service.

    body      the bytes
    is_sound  nothing in it is broken: the answer must be 200
    """

    hook: str
    body: bytes
    is_sound: bool


def case(seed: int) -> Case:
    """The request of a seed: one in four is sound, the others are broken in one to four places."""
    chance = random.Random(seed)
    hook = chance.choice(HOOKS)
    body = copy.deepcopy(sound(chance, hook))  # what is bent is of this request alone
    is_sound = chance.random() < 0.25
    if not is_sound:
        _fill(chance, body)
        for _ in range(chance.randint(0, 4)):
            _bend(chance, body)
    raw = json.dumps(body).encode()  # lone surrogates as escapes, NaN as some clients write it
    if not is_sound and chance.random() < 0.1:
        raw = _torn(chance, raw)
    return Case(hook, raw, is_sound)


def sound(chance: random.Random, hook: str) -> dict[str, Any]:
    """A request that breaks no rule, with some of its prefetch."""
    patient = chance.choice(("p1", "p2", "a" * 64, "A-1.b"))
    kind = chance.choice(("Practitioner", "PractitionerRole", "Patient", "RelatedPerson"))
    context: dict[str, Any] = {"userId": f"{kind}/{chance.choice(('example', '7'))}", "patientId": patient}
    if hook.startswith("encounter") or chance.random() < 0.3:
        context["encounterId"] = "e1"
    if hook in WITH_ORDERS:
        drafts = [_order(chance, number, patient) for number in range(chance.randint(1, 4))]
        context["draftOrders"] = {"resourceType": "Bundle", "entry": [{"resource": one} for one in drafts]}
        if hook == "order-select":
            chosen = chance.sample(drafts, chance.randint(1, len(drafts)))
            context["selections"] = [f"{one['resourceType']}/{one['id']}" for one in chosen]
    if hook == "appointment-book":
        booked = {"resourceType": "Appointment", "id": "a1", "status": "proposed", "participant": []}
        context["appointments"] = {"resourceType": "Bundle", "entry": [{"resource": booked}]}
    return {
        "hook": hook,
        "hookInstance": str(uuid.UUID(int=chance.getrandbits(128), version=4)),
        "context": context,
        "prefetch": _prefetch(chance, patient),
        **({"extension": {"org.example.x": {"a": [1, None]}}} if chance.random() < 0.2 else {}),
    }


def _order(chance: random.Random, number: int, patient: str) -> dict[str, Any]:
    kind = chance.choice(("ServiceRequest", "ServiceRequest", "MedicationRequest", "NutritionOrder"))
    return {
        "resourceType": kind,
        "id": f"o{number}",
        "status": "draft",
        "intent": "order",
        "subject": {"reference": f"Patient/{patient}"},
        "code": chance.choice(ORDERS),
    }


def _prefetch(chance: random.Random, patient: str) -> dict[str, Any]:
    at = timezone.now() - timedelta(hours=chance.randint(1, 200))
    rates = [
        heart_rate(
            chance.randint(40, 180), at=at - timedelta(hours=n), resource_id=f"h{n}", patient_id=patient
        )
        for n in range(chance.randint(1, 3))
    ]
    found: dict[str, Any] = {"patient": patient_resource(patient), "vitals": searchset(*rates)}
    for key in ("encounters", "conditions", "labs"):
        found.update({key: chance.choice((None, OUTCOME, searchset()))} if chance.random() < 0.5 else {})
    return found


def _fill(chance: random.Random, body: dict[str, Any]) -> None:
    """Odd but conceivable things: records of anybody, pages, refusals, a FHIR server."""
    prefetch = body["prefetch"]
    for _ in range(chance.randint(0, 3)):
        key = chance.choice(KEYS)
        resources = [copy.deepcopy(chance.choice(CORPUS)) for _ in range(chance.randint(0, 3))]
        match chance.randint(0, 6):
            case 0:
                prefetch[key] = resources[0] if resources else None
            case 1:
                prefetch[key] = searchset(
                    *resources, link=[{"relation": "next", "url": "http://127.0.0.1:9/x"}]
                )
            case 2:
                prefetch[key] = {**OUTCOME, "issue": [copy.deepcopy(chance.choice(ODD))]}
            case 3:
                prefetch[key] = patient_resource("somebody-else")
            case 4:
                prefetch.pop(key, None)
            case 5:
                prefetch[key] = searchset(*(_of(one, body["context"]["patientId"]) for one in resources))
            case _:
                prefetch[key] = searchset(*resources)
    if chance.random() < 0.3:
        body["fhirServer"] = chance.choice(("http://127.0.0.1:9/fhir", "https://ehr.example.org", "x", 7))
        body["fhirAuthorization"] = {
            "access_token": chance.choice(("t" * 9, "é", "", "a\nb")),
            "token_type": "Bearer",
            "expires_in": chance.choice((300, -1, 2**70, True, "300")),
            "scope": "patient/*.rs",
            "subject": "x",
            "patient": chance.choice((body["context"]["patientId"], "somebody-else")),
        }


def _of(resource: dict[str, Any], patient: str) -> dict[str, Any]:
    """A resource, said to be about this patient."""
    said = {**resource}
    for name in ("subject", "patient"):
        if name in said:
            said[name] = {"reference": f"Patient/{patient}"}
    return {**said, "id": patient} if said.get("resourceType") == "Patient" else said


def _bend(chance: random.Random, body: dict[str, Any]) -> None:
    known = places(body)
    if not known:
        return
    *way, last = chance.choice(known)
    parent: Any = body
    for key in way:
        parent = parent[key]
    match chance.choice(("remove", "replace", "replace", "replace", "double", "nest", "borrow", "more")):
        case "remove":
            del parent[last]
        case "replace":
            parent[last] = copy.deepcopy(chance.choice(ODD))
        case "double":
            parent[last] = [copy.deepcopy(parent[last]) for _ in range(chance.choice((2, 50, 300)))]
        case "nest":
            for _ in range(chance.choice((1, 3, 200))):
                parent[last] = [parent[last]] if chance.random() < 0.5 else {"contained": [parent[last]]}
        case "more" if isinstance(parent, dict):
            parent[chance.choice(("extension", "x", "\0", "é\u202e", "hook", "prefetch"))] = chance.choice(
                ODD
            )
        case _:
            other = chance.choice(CORPUS)
            parent[last] = copy.deepcopy(other[chance.choice(sorted(other))])


def path(seed: int, service: str) -> str:
    """An address below /cds-services, percent-encoded as a client sends it: a few are right ones."""
    chance = random.Random(seed)
    pieces = [chance.choice((service, service, "nobody", "a" * 120, "a" * 5000, _odd(chance)))]
    if chance.random() < 0.5:
        pieces.append(chance.choice(("feedback", "feedback", "", "Feedback", _odd(chance))))
    if chance.random() < 0.3:
        pieces.append(_odd(chance))
    if chance.random() < 0.6:
        at = chance.randrange(len(pieces[0]) + 1)
        pieces[0] = pieces[0][:at] + _odd(chance) + pieces[0][at:]
    return "/cds-services/" + "/".join(pieces)


def _odd(chance: random.Random) -> str:
    """Bytes as they stand in an address: NUL, line ends, half a character, dots, slashes, anything."""
    known = (0, 0, 0, 10, 13, 32, 34, 37, 39, 46, 47, 92, 127, 0xC3, 0xED, 0xFF)
    one = chance.choice((*known, chance.randrange(256)))
    return f"%{one:02X}" * chance.choice((1, 1, 2, 40)) + chance.choice(("", "..", ";a=b", "\u00e9", "~"))


def feedback(seed: int, card: str) -> bytes:
    """What is said to have been done with a card: sound in one of three cases."""
    chance = random.Random(seed)
    items = [_item(chance, card) for _ in range(chance.choice((1, 1, 2, 5)))]
    body: dict[str, Any] = {"feedback": items}
    if chance.random() < 0.66:
        for _ in range(chance.randint(1, 3)):
            _bend(chance, body)
    return json.dumps(body).encode()


def _item(chance: random.Random, card: str) -> dict[str, Any]:
    when = chance.choice(("2026-03-01T08:00:00Z", "2026-03-01T08:00:00.123+05:30", "20260301T080000Z"))
    item: dict[str, Any] = {
        "card": card if chance.random() < 0.9 else str(uuid.UUID(int=chance.getrandbits(128), version=4)),
        "outcome": chance.choice(("accepted", "overridden")),
        "outcomeTimestamp": when,
    }
    if item["outcome"] == "accepted":
        item["acceptedSuggestions"] = [{"id": str(n)} for n in range(chance.choice((0, 0, 0, 1, 3)))]
    else:
        reason = {"code": chance.choice(("x", "insufficient-evidence")), "system": "http://example.org"}
        item["overrideReason"] = {"reason": reason, "userComment": chance.choice(("", "seen", "\u202e"))}
    return item


def _torn(chance: random.Random, raw: bytes) -> bytes:
    """Bytes that are no longer what a client would send."""
    at = chance.randrange(len(raw))
    match chance.randint(0, 5):
        case 0:
            return raw[:at]
        case 1:
            return (
                raw[:at] + bytes(chance.choice((0, 7, 34, 92, 123, 0xFF, 0xC3)) for _ in range(2)) + raw[at:]
            )
        case 2:
            depth = chance.choice(DEEP)
            return raw[:-1] + b', "x": ' + b"[" * depth + b"]" * depth + b"}"
        case 3:
            return raw[:-1] + b', "prefetch": {"patient": null}, "context": {"patientId": "p1"}}'
        case 4:
            return b"\xef\xbb\xbf" + raw
        case _:
            return raw[:-1] + b', "x": ' + b"9" * chance.choice((20, 400, 5000)) + b"}"

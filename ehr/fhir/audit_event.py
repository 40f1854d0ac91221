"""An event of our audit trail → FHIR R4 AuditEvent (INTEROP 38).

A look at a patient follows IHE's Basic Audit Log Patterns, profile PatientRead
(https://profiles.ihe.net/ITI/BALP/), and says so in `meta.profile`, when everything the profile asks for is
known. The other acts of a clinic are not RESTful calls: they are plain AuditEvents with DICOM's event types.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ehr.errors import BadResource

PATIENT_READ = "https://profiles.ihe.net/ITI/BALP/StructureDefinition/IHE.BasicAudit.PatientRead"
REQUEST_ID = "https://profiles.ihe.net/ITI/BALP/CodeSystem/BasicAuditEntityType"
DCM = "http://dicom.nema.org/resources/ontology/DCM"
TERMS = "http://terminology.hl7.org/CodeSystem"
OURS = "urn:tessera:audit-action"
OUTCOMES = {"success": "0", "refused": "4", "failed": "8"}  # 4: minor failure, 8: serious failure
LOOKS = frozenset({"view", "read", "list", "search"})
VERBS = {
    "C": frozenset({"add", "create", "import", "receive", "announce", "register", "request", "start"}),
    "D": frozenset({"remove", "delete", "withdraw", "drop"}),
    "E": frozenset({"send", "call", "export", "encode", "train", "test"}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditedAct:
    """One act as our trail keeps it. `key` is unique in the trail; `server` is the address we are reached at.

    patient_id  id of the Patient at the hospital, "" when the act concerns none or it is not known any more
    """

    key: str
    at: datetime
    actor: str
    role: str = ""
    action: str
    object_type: str
    object_id: str
    outcome: str = "success"
    address: str = ""
    request_id: str = ""
    patient_id: str = ""
    detail: Mapping[str, str] = field(default_factory=dict)
    server: str


def build_audit_event(act: AuditedAct) -> dict[str, Any]:
    """Assemble an AuditEvent. Raises BadResource for an outcome without a code, or a time without a zone."""
    if act.outcome not in OUTCOMES:
        raise BadResource("AuditEvent.outcome: neither success, refused nor failed")
    if act.at.tzinfo is None:
        raise BadResource("AuditEvent.recorded needs a zone")
    verb = act.action.rpartition(".")[2]
    is_look = verb in LOOKS
    event: dict[str, Any] = {
        "resourceType": "AuditEvent",
        "id": act.key,
        "type": _type(act, is_look=is_look),
        "subtype": [{"system": OURS, "code": act.action}],
        "action": "R" if is_look else _action(verb),
        "recorded": act.at.isoformat(timespec="milliseconds"),
        "outcome": OUTCOMES[act.outcome],
        "agent": _agents(act, is_look=is_look),
        "source": {
            "observer": {"display": f"Tessera at {act.server}"},
            "type": [_coding(f"{TERMS}/security-source-type", "4", "Application Server")],
        },
        "entity": _entities(act),
    }
    if is_look:
        event["subtype"].insert(0, _coding("http://hl7.org/fhir/restful-interaction", "read", "read"))
        if act.patient_id and act.address and act.outcome == "success":
            event["meta"] = {"profile": [PATIENT_READ]}
    return event


def _type(act: AuditedAct, *, is_look: bool) -> dict[str, str]:
    if is_look:
        return _coding(f"{TERMS}/audit-event-type", "rest", "RESTful Operation")
    if act.patient_id:
        return _coding(DCM, "110110", "Patient Record")
    return _coding(DCM, "110100", "Application Activity")


def _action(verb: str) -> str:
    return next((code for code, verbs in VERBS.items() if verb in verbs), "U")


def _agents(act: AuditedAct, *, is_look: bool) -> list[dict[str, Any]]:
    """Who acted; of a look also the two machines: ours, where the data came from, and theirs."""
    who = {"identifier": {"system": "urn:tessera:actor", "value": act.actor}}
    actor: dict[str, Any] = {"who": who, "requestor": True}
    if act.role:
        actor["role"] = [{"text": act.role}]
    if not is_look:
        if act.address:
            actor["network"] = _network(act.address)
        return [actor]
    actor["type"] = _concept(f"{TERMS}/v3-ParticipationType", "IRCP", "information recipient")
    theirs: dict[str, Any] = {
        "type": _concept(DCM, "110152", "Destination Role ID"),
        "who": {"display": act.address or "unknown"},
        "requestor": False,
    }
    if act.address:
        theirs["network"] = _network(act.address)
    ours = {
        "type": _concept(DCM, "110153", "Source Role ID"),
        "who": {"display": act.server},
        "requestor": False,
        "network": {"address": act.server, "type": "5"},
    }
    return [theirs, ours, actor]


def _entities(act: AuditedAct) -> list[dict[str, Any]]:
    details = [{"type": name, "valueString": value} for name, value in act.detail.items() if value]
    data: dict[str, Any] = {
        "what": {"identifier": {"system": f"urn:tessera:{act.object_type}", "value": act.object_id}},
        "type": _coding(f"{TERMS}/audit-entity-type", "2", "System Object"),
        "role": _coding(f"{TERMS}/object-role", "4", "Domain Resource"),
        "name": act.object_type,
    }
    if details:
        data["detail"] = details
    entities = [data]
    if act.patient_id:
        patient = {
            "what": {"reference": f"Patient/{act.patient_id}"},
            "type": _coding(f"{TERMS}/audit-entity-type", "1", "Person"),
            "role": _coding(f"{TERMS}/object-role", "1", "Patient"),
        }
        entities.append(patient)
    if act.request_id:
        entities.append(
            {"what": {"identifier": {"value": act.request_id}}, "type": _coding(REQUEST_ID, "XrequestId", "")}
        )
    return entities


def _network(address: str) -> dict[str, str]:
    return {"address": address, "type": "2"}  # an IP address


def _coding(system: str, code: str, display: str) -> dict[str, str]:
    coding = {"system": system, "code": code}
    return {**coding, "display": display} if display else coding


def _concept(system: str, code: str, display: str) -> dict[str, Any]:
    return {"coding": [_coding(system, code, display)]}

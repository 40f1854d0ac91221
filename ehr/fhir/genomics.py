"""Observations of the Genomics Reporting profile → GenomicRecords.

https://hl7.org/fhir/uv/genomics-reporting/ (STU2 and the builds before it). Read: *variant* (LOINC 69548-6),
*diagnostic implication* (its clinical significance, with gene, change and presence of the variant it derives
from) and scores: a numeric Observation of category genetics, such as a polygenic risk. Haplotypes, genotypes
and therapeutic implications are sound but not read, and are counted as such.
"""

from __future__ import annotations

from ehr.errors import BadResource
from ehr.fhir.dates import get_choice, get_span, latest
from ehr.fhir.elements import (
    Concept,
    Json,
    get_concept,
    get_concepts,
    get_list,
    get_number,
    get_object,
    get_text,
    get_texts,
)
from ehr.fhir.subject import About, Unused
from ehr.records import Fact, GenomicRecord

VARIANT, IMPLICATION = "69548-6", "diagnostic-implication"
_GENE, _SIGNIFICANCE = "48018-6", "53037-8"
_CHANGES = ("48004-6", "48005-3", "81290-9", "81252-9", "81255-2")  # c.HGVS, p.HGVS, g.HGVS, ClinVar, dbSNP
_UNREAD = {
    "84413-4": "genotype", "84414-2": "haplotype", "therapeutic-implication": "therapeutic implication",
    "53041-0": "region studied", "51968-6": "overall interpretation", "grouper": "grouper",
}  # fmt: skip
_GENOMIC = frozenset({VARIANT, IMPLICATION, _SIGNIFICANCE, *_UNREAD})
_CATEGORIES = frozenset({"GE", "genetics", "genomics"})
_PRESENT = {"LA9633-4": True, "LA9634-2": False}
# LOINC answer list LL4034-6, for senders who leave the words out
_SIGNIFICANCES = {
    "LA6668-3": "Pathogenic",
    "LA26332-9": "Likely pathogenic",
    "LA26333-7": "Uncertain significance",
    "LA26334-5": "Likely benign",
    "LA6675-8": "Benign",
}


def is_variant(resource: Json) -> bool:
    """Whether an Observation is of the variant profile, which others may derive from."""
    try:
        concept = get_concept(resource, "code", "Observation") if "component" in resource else None
    except BadResource:
        return False
    return concept is not None and any(code.code == VARIANT for code in concept.codes)


def is_genomic(resource: Json, concept: Concept | None) -> bool:
    """Whether an Observation belongs to genomics: by profile, by code or by category."""
    codes = {code.code for code in concept.codes} if concept else set()
    if not codes.isdisjoint(_GENOMIC):
        return True
    meta = get_object(resource, "meta", "Observation") or {}
    if any("/genomics-reporting/" in profile for profile in get_texts(meta, "profile", "Observation.meta")):
        return True
    categories = get_concepts(resource, "category", "Observation")
    return any(code.code in _CATEGORIES for category in categories for code in category.codes)


def read_genomics(about: About, concept: Concept | None) -> list[Fact]:
    """Read a genomic Observation. Raises BadResource, or Unused for the kinds Tessera does not read."""
    resource = about.resource
    if concept is None:
        raise BadResource("Observation.code has neither coding nor text")
    codes = {code.code for code in concept.codes}
    start, end = get_choice(resource, "effective", "Observation")
    dates = [end or start, get_span(resource, "issued", "Observation")]
    found = components_of(resource)
    for code in codes & set(_UNREAD):
        raise Unused(f"Observation (genomics: {_UNREAD[code]})")
    if codes & {VARIANT, IMPLICATION, _SIGNIFICANCE}:
        is_variant = VARIANT in codes
        own = get_concept(resource, "valueCodeableConcept", "Observation")
        present = _presence(resource) if is_variant else None
        if own and _SIGNIFICANCE in codes:
            found.setdefault(_SIGNIFICANCE, _SIGNIFICANCES.get(own.code.code, own.text))
        is_dated = any(dates)
        for source in () if is_variant else _derived_from(about):
            found = {**components_of(source), **found}
            began, ended = get_choice(source, "effective", "Observation")
            dates += [ended or began, get_span(source, "issued", "Observation")]  # what it says comes with it
            present = _presence(source) if present is None else present
        return [
            GenomicRecord(
                resource_type="Observation",
                resource_id=about.identity,
                available_at=latest(*dates) if is_dated else None,
                kind="variant",
                gene=found.get(_GENE, "")[:40],
                variant=next((found[change] for change in _CHANGES if found.get(change)), "")[:300],
                significance=found.get(_SIGNIFICANCE, "")[:60],
                present=present,
                code=concept.code,
            )
        ]
    quantity = get_object(resource, "valueQuantity", "Observation")
    value = get_number(quantity, "value", "Observation.valueQuantity") if quantity else None
    if value is None:
        raise Unused("Observation (genomics: other)")
    return [
        GenomicRecord(
            resource_type="Observation",
            resource_id=about.identity,
            available_at=latest(*dates),
            kind="score",
            gene=found.get(_GENE, "")[:40],
            value=value,
            code=concept.code,
        )
    ]


def _presence(variant: Json) -> bool | None:
    """Whether a variant was found (LOINC LL1971-2); None when it does not say so or not."""
    answer = get_concept(variant, "valueCodeableConcept", "Observation")
    codes = answer.codes if answer else ()
    return next((_PRESENT[code.code] for code in codes if code.code in _PRESENT), None)


def components_of(resource: Json) -> dict[str, str]:
    """LOINC of each component → its value in words: the symbol of a gene, the HGVS text of a change."""
    found: dict[str, str] = {}
    for part in get_list(resource, "component", "Observation"):
        code = get_concept(part, "code", "Observation.component")
        value = get_concept(part, "valueCodeableConcept", "Observation.component")
        text = get_text(part, "valueString", "Observation.component")
        if value is not None:
            named = _SIGNIFICANCES.get(value.code.code)
            text = named or value.code.display or value.text or value.code.code
        if code and text:
            found.setdefault(code.code.code, text)
    return found


def _derived_from(about: About) -> list[Json]:
    references = (
        get_text(item, "reference", "Observation.derivedFrom")
        for item in get_list(about.resource, "derivedFrom", "Observation")
    )
    found = (about.scope.find(reference, about.resource) for reference in references if reference)
    return [item for item in found if item is not None and item.get("resourceType") == "Observation"]

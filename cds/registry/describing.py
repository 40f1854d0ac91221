"""What a machine can say of a model version for its card: from its metadata, its report and its cohort.

Every sentence follows from something stored with the version or from how this software works. What only
people know (developer, funding, external validation, effect on outcomes …) is left to them: never a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from django.conf import settings

from cds.catalogue import MODALITY_WORDS
from cds.registry import attributes
from cds.registry.models import ModelVersion
from cds.registry.outcomes import OUTCOMES

WRITERS: dict[str, Callable[[ModelVersion], str]] = {}
FEW = 30  # of the rarer answer: below it, say so
USED = {"age": "date of birth (as age)", "female": "sex"}


def describe(version: ModelVersion) -> dict[str, str]:
    """Attribute key → text, for those a machine can fill."""
    said = {key: write(version).strip() for key, write in WRITERS.items()}
    return {key: text for key, text in said.items() if text}


def _writes(key: str) -> Callable[[Callable[[ModelVersion], str]], Callable[[ModelVersion], str]]:
    assert key in attributes.ATTRIBUTES, key

    def keep(write: Callable[[ModelVersion], str]) -> Callable[[ModelVersion], str]:
        WRITERS[key] = write
        return write

    return keep


@_writes("details.output")
def _output(version: ModelVersion) -> str:
    what = "; ".join(_label(name) for name in version.outcomes)
    level = float(_config(version).get("interval_level", 0.9))
    return (
        f"{what}: a calibrated probability from 0 to 100 %, counted from the moment of scoring, with a "
        f"{level:.0%} interval for the share of events among patients scored alike, a category set "
        f"by this site, "
        "what raised and lowered it, and what was missing. Where it cannot judge, it gives no "
        "number and says why."
    )


@_writes("details.output_type")
def _output_type(version: ModelVersion) -> str:
    return "Prediction."


@_writes("purpose.use")
def _use(version: ModelVersion) -> str:
    return str(version.metadata.get("intended_use", ""))


@_writes("purpose.users")
def _users(version: ModelVersion) -> str:
    return "Clinicians who look after the patient, in the EHR's own cards and on the risk panel."


@_writes("purpose.role")
def _role(version: ModelVersion) -> str:
    return (
        "Informs; it neither augments nor replaces a decision. What it names as raising an estimate is an "
        "association, not a cause. The clinician decides."
    )


@_writes("caution.out_of_scope")
def _out_of_scope(version: ModelVersion) -> str:
    scope = _mapping(version.metadata.get("scope"))
    said = [
        f"Regulatory status here: {settings.REGULATORY_LABEL}. Not for diagnosis or for choosing a treatment."
    ]
    ranges = _mapping(_mapping(scope.get("record")).get("ranges"))
    for name, bounds in sorted(ranges.items()):
        low, high = _mapping(bounds).get("low"), _mapping(bounds).get("high")
        if low is not None and high is not None:
            said.append(
                f"Patients with {name} outside {low:g} to {high:g} are not scored: it learned from none."
            )
    if scope.get("image"):
        said.append(
            "Pictures of another body part or modality, upside-down, blank or not radiographs at "
            "all are left out "
            "automatically; some will slip through."
        )
    moments = "; ".join(
        f"{_label(name)}: {OUTCOMES[name].at_risk.whom}"
        for name in version.outcomes
        if name in OUTCOMES and OUTCOMES[name].at_risk.whom
    )
    return " ".join([*said, f"Not asked of: {moments}." if moments else ""])


@_writes("caution.risks")
def _risks(version: ModelVersion) -> str:
    said = []
    if version.simulated:
        said.append("Trained on simulated patients only: its figures say nothing about real people.")
    for name, found in _measured(version).items():
        rarer = min(int(found.get("events", 0)), int(found.get("n", 0)) - int(found.get("events", 0)))
        if rarer < FEW:
            said.append(
                f"{_label(name)}: only {rarer} of the rarer answer among test patients; wide intervals."
            )
    for what, why in sorted(_mapping(version.metadata.get("left_out")).items()):
        said.append(f"Not used: {_unused(what)} ({why}).")
    said.extend(
        f"{str(note)[:1].upper()}{str(note)[1:].rstrip('.')}." for note in version.report.get("notes", ())
    )
    said.append(
        "Other scanners, other habits of recording and other patients than those of training can "
        "make it worse "
        "without any figure here showing it."
    )
    return " ".join(said)


@_writes("development.criteria")
def _criteria(version: ModelVersion) -> str:
    counts = _mapping(version.metadata.get("cohort_counts"))
    if not counts:
        return ""
    sources = ", ".join(version.run.cohort.sources if version.run else ()) or "all sources"
    moments = f" at {counts['moments']} moments" if "moments" in counts else ""
    said = [
        f"Included: {counts.get('patients', 'the')} patients of {sources}{moments}"
        + "".join(f"; a moment is {words}" for words in _moments(version))
        + "."
    ]
    for name, found in sorted(_mapping(counts.get("outcomes")).items()):
        excluded = "; ".join(
            f"{why}: {n}" for why, n in sorted(_mapping(_mapping(found).get("excluded")).items())
        )
        said.append(
            f"{_label(name)}: {found.get('members', 0)} moments with a known answer, "
            f"{found.get('events', 0)} events"
            + (
                f"; {found['lost']} more learned from until they were lost from sight"
                if found.get("lost")
                else ""
            )
            + (f"; excluded: {excluded}." if excluded else ".")
        )
    return " ".join(said)


def _moments(version: ModelVersion) -> list[str]:
    """What the moments of its outcomes are, each once; of several kinds, whose each is."""
    by_words: dict[str, list[str]] = {}
    for name in version.outcomes:
        if name in OUTCOMES:
            by_words.setdefault(OUTCOMES[name].moments.words, []).append(_label(name))
    if len(by_words) < 2:
        return list(by_words)
    return [f"{words} ({', '.join(whose)})" for words, whose in by_words.items()]


@_writes("development.variables")
def _variables(version: ModelVersion) -> str:
    fields = {str(_mapping(spec).get("name")) for spec in _config(version).get("fields", ())}
    if not fields:
        return ""
    used = [said for name, said in USED.items() if name in fields]
    health = "health status (conditions, measurements, medicines)"
    notes = "text" in _config(version).get("modalities", ())
    return (
        f"Used as inputs: {', '.join([*used, health])}. Not used: race, ethnicity, language, sexual "
        f"orientation, "
        "gender identity, social determinants of health."
        + (" Notes are read as text and may mention any of these." if notes else "")
    )


@_writes("development.representativeness")
def _representativeness(version: ModelVersion) -> str:
    said = []
    for name in version.outcomes:
        groups = ", ".join(
            f"{row.get('attribute')} {row.get('value')} {row.get('n')}"
            for row in _mapping(version.report.get("subgroups")).get(name, ())
        )
        if groups:
            said.append(
                f"{_label(name)}, moments among test patients, drawn at random from the same "
                f"cohort: {groups}."
            )
    if said:
        said.append(
            "Race, ethnicity, language and social determinants are not read from the record, so not known."
        )
    return " ".join(said)


@_writes("development.relevance")
def _relevance(version: ModelVersion) -> str:
    if version.simulated:
        return "None: the patients are simulated."
    return "" if version.run is None else "Trained on patients of the sources connected to this installation."


@_writes("fairness.approach")
def _approach(version: ModelVersion) -> str:
    limits = ", ".join(
        f"{limit:g} in {what}"
        for limit, what in (
            (settings.FAIRNESS_AUROC_GAP, "AUROC"),
            (settings.FAIRNESS_CALIBRATION_GAP, "observed minus expected"),
        )
        if limit is not None
    )
    return (
        "Every report compares discrimination, calibration, sensitivity and predictive value "
        "between groups by sex, "
        "age and source, with intervals. "
        + (
            f"A gap over {limits} that chance would not explain keeps a version from being promoted."
            if limits
            else "This site set no limit on gaps."
        )
    )


@_writes("fairness.bias")
def _bias(version: ModelVersion) -> str:
    remedy = str(_config(version).get("imbalance", "")).replace("-", " ")
    return (
        "Missing inputs are told to the model as missing, never filled in; risks are calibrated for "
        "each pattern of "
        "present inputs." + (f" Rare outcomes: {remedy}." if remedy and remedy != "none" else "")
    )


@_writes("performance.internal_validity")
def _validity(version: ModelVersion) -> str:
    said = []
    for name, found in _measured(version).items():
        calibration = _mapping(found.get("calibration"))
        figures = [
            ("AUROC", found.get("auroc")), ("AUPRC", found.get("auprc")), ("Brier score", found.get("brier")),
            ("calibration slope", calibration.get("slope")), ("intercept", calibration.get("intercept")),
        ]  # fmt: skip
        texts = ", ".join(f"{title} {_figure(value)}" for title, value in figures if _figure(value))
        said.append(
            f"{_label(name)}: {found.get('n', 0)} moments, {found.get('events', 0)} events of "
            f"patients it never "
            f"saw: {texts or 'not measured'}."
        )
    return " ".join(said)


@_writes("performance.internal_fairness")
def _fairness(version: ModelVersion) -> str:
    said = []
    for name in version.outcomes:
        found = _mapping(_mapping(version.report.get("fairness")).get(name))
        if not found:
            continue
        gaps = "; ".join(str(_mapping(gap).get("said", "")) for gap in found.get("gaps", ()))
        said.append(
            f"{_label(name)}: {found.get('verdict', 'not judged')}" + (f" ({gaps})." if gaps else ".")
        )
    return " ".join(said)


@_writes("maintenance.validity_process")
def _validity_process(version: ModelVersion) -> str:
    return (
        "Every six hours the newest scores of up to 200 patients are compared with the training "
        "patients, input by "
        "input (population stability index, share missing, kind of picture); shifts are marked on "
        "the version's page."
    )


@_writes("maintenance.local_validity")
def _local_validity(version: ModelVersion) -> str:
    here = "" if version.simulated or version.run is None else _validity(version)
    return f"Trained and tested on this installation's own sources: {here}" if here else ""


@_writes("maintenance.local_fairness")
def _local_fairness(version: ModelVersion) -> str:
    here = "" if version.simulated or version.run is None else _fairness(version)
    return f"On this installation's own sources: {here}" if here else ""


@_writes("maintenance.fairness_process")
def _fairness_process(version: ModelVersion) -> str:
    return "At every retraining, by the report's comparison of groups; none is made between retrainings."


@_writes("update.process")
def _update(version: ModelVersion) -> str:
    return (
        "By retraining, started by an admin; a second person approves before a version is used. "
        "Clinicians see a "
        "notice for 14 days after a change. No fixed interval is set by the software."
    )


def privacy(version: ModelVersion) -> str:
    """What a private training promises, and to whom it does not; "" for an ordinary one."""
    said = _mapping(_mapping(version.metadata).get("privacy"))
    if said.get("epsilon") is None:
        return ""
    return (
        f"\u03b5 = {said['epsilon']:.3g} at \u03b4 = {said['delta']:.3g}, for each {said['unit']}. "
        f"{said['mechanism']}: noise {said['noise_multiplier']:.3g} times the clip of {said['clip']:.3g}, "
        f"{said['steps']} steps, {said['patients']} patients. It covers {said['covers']}. It does not cover "
        f"{'; '.join(said['does_not_cover'])}."
    )


def _unused(what: str) -> str:
    """A modality and a head of the model, as a bundle names them ("cine, death@15d"), in words."""
    modality, _, head = what.partition(", ")
    name, _, within = head.partition("@")
    sooner = f", by {within.removesuffix('d')} days" if within else ""
    return f"{MODALITY_WORDS.get(modality, modality).lower()} for {_label(name)}{sooner}"


def _label(name: str) -> str:
    return OUTCOMES[name].label if name in OUTCOMES else name


def _measured(version: ModelVersion) -> dict[str, Mapping[str, Any]]:
    found = _mapping((version.report or {}).get("outcomes"))
    return {name: _mapping(found[name]) for name in version.outcomes if name in found}


def _config(version: ModelVersion) -> Mapping[str, Any]:
    return _mapping((version.metadata or {}).get("config"))


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _figure(said: object) -> str:
    """`0.84 (0.77 to 0.91)`; "" where there is no figure."""
    given = said if isinstance(said, Mapping) else {"value": said}
    value, low, high = given.get("value"), given.get("low"), given.get("high")
    if not isinstance(value, int | float):
        return ""
    return f"{value:.2f}" + (f" ({low:.2f} to {high:.2f})" if low is not None and high is not None else "")

"""A version's report (`fusion.Report.to_json()`, stored as it came) as what the screens show of it.

A report of an older shape, or a figure that could not be computed, is shown as missing, never as zero.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cds.registry.models import ModelVersion
from web import charts, words

FEW = 30  # of the rarer answer; below it, say so


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured figure with its 95 % interval. `name` is its key for tests: auroc, auprc, brier …"""

    name: str
    title: str
    text: str
    interval: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Measured:
    """One line of a comparison by AUROC."""

    name: str
    detail: str
    text: str
    interval: str
    mark: charts.Interval | None


@dataclass(frozen=True, slots=True)
class Subgroup:
    """One group of patients; `auroc` says why when there is none."""

    attribute: str
    value: str
    n: int
    events: int
    auroc: str
    mean_risk: str
    observed: str


@dataclass(frozen=True, slots=True)
class FairGroup:
    """One group of patients; each figure with its interval, or why there is none."""

    attribute: str
    value: str
    n: int
    events: int
    auroc: str
    sensitivity: str
    ppv: str
    calibration: str


@dataclass(frozen=True, slots=True)
class Fairness:
    """Whether the model does as well for one group as for another. `gaps`: the widest, in words, over its
    limit?"""

    verdict: str
    threshold: str
    groups: tuple[FairGroup, ...]
    gaps: tuple[tuple[str, bool], ...]


@dataclass(frozen=True, slots=True)
class OutcomeReport:
    """Everything measured about one outcome on the held-out patients."""

    outcome: str
    title: str
    n: int
    events: int
    base_rate: float | None
    figures: tuple[Figure, ...]
    coverage: str
    few: str  # a warning when there are too few events to be sure of anything
    roc: charts.Chart | None
    pr: charts.Chart | None
    calibration: charts.Chart | None
    ablation: tuple[Measured, ...]
    baselines: tuple[Measured, ...]
    subgroups: tuple[Subgroup, ...]
    fairness: Fairness | None


@dataclass(frozen=True, slots=True)
class Summary:
    """A version as one line of the list."""

    version: ModelVersion
    outcomes: tuple[OutcomeReport, ...]


def read(version: ModelVersion) -> tuple[OutcomeReport, ...]:
    """The report by outcome, in the order of the version's outcomes."""
    report: Mapping[str, Any] = version.report or {}
    measured = report.get("outcomes") or {}
    return tuple(_outcome(name, measured[name], report) for name in version.outcomes if name in measured)


def summary(version: ModelVersion) -> Summary:
    """For the list."""
    return Summary(version, read(version))


def facts(version: ModelVersion) -> tuple[tuple[str, str], ...]:
    """What a version is, in words: from its row, its run and its metadata."""
    run = version.run
    held_out = (version.report or {}).get("held_out") or {}
    rows = [
        ("Answers for", ", ".join(words.outcome(name) for name in version.outcomes)),
        ("Evidence it can use", ", ".join(words.modality(name) for name in _modalities(version))),
        (
            "Trained on",
            "simulated patients only" if version.simulated else "patients of the connected sources",
        ),
        ("Evaluated on", f"{held_out['patients']} patients it never saw" if "patients" in held_out else ""),
        ("Cohort digest", run.cohort.digest if run else ""),
        ("Bundle", version.path),
        ("Bundle digest", version.digest),
        ("Encoders", ", ".join(f"{words.modality(k)}: {v}" for k, v in sorted(version.encoders.items()))),
        ("Intended use", str(version.metadata.get("intended_use", ""))),
        ("Limits", _sentence(version.metadata.get("limits") or version.metadata.get("out_of_scope"))),
        ("Licence", str(version.metadata.get("licence") or version.metadata.get("license") or "")),
    ]
    return tuple((title, text) for title, text in rows if text)


def _modalities(version: ModelVersion) -> list[str]:
    config = version.metadata.get("config")
    given = config.get("modalities") if isinstance(config, Mapping) else version.metadata.get("modalities")
    return [str(name) for name in given] if isinstance(given, list | tuple) else sorted(version.encoders)


def _sentence(value: object) -> str:
    return "; ".join(map(str, value)) if isinstance(value, list | tuple) else str(value or "")


def _outcome(name: str, said: Mapping[str, Any], report: Mapping[str, Any]) -> OutcomeReport:
    title = words.outcome(name)
    bins = [
        (float(b["mean"]), float(b["observed"]), int(b["n"]))
        for b in (said.get("calibration") or {}).get("bins", ())
        if b.get("mean") is not None and b.get("observed") is not None
    ]
    base_rate = said.get("base_rate")
    roc, pr = said.get("roc"), said.get("pr")
    return OutcomeReport(
        outcome=name,
        title=title,
        n=int(said.get("n", 0)),
        events=int(said.get("events", 0)),
        base_rate=base_rate,
        figures=_figures(said),
        coverage=_coverage(said.get("coverage")),
        few=_few(int(said.get("n", 0)), int(said.get("events", 0))),
        roc=charts.unit_square(
            roc,
            title=f"ROC curve for {title}: AUROC {_value(said.get('auroc'))}",
            x_label="False positive rate",
            y_label="True positive rate",
            diagonal=True,
        )
        if roc
        else None,
        pr=charts.unit_square(
            pr,
            title=f"Precision-recall curve for {title}: AUPRC {_value(said.get('auprc'))}",
            x_label="Recall",
            y_label="Precision",
            level=base_rate,
        )
        if pr
        else None,
        calibration=charts.calibration(bins, title=f"Calibration for {title}: observed against predicted")
        if bins
        else None,
        ablation=_compared((report.get("ablation") or {}).get(name)),
        baselines=_compared((report.get("baselines") or {}).get(name)),
        subgroups=tuple(_subgroup(row) for row in (report.get("subgroups") or {}).get(name, ())),
        fairness=_fairness((report.get("fairness") or {}).get(name)),
    )


def _few(n: int, events: int) -> str:
    rarer = min(events, n - events)
    if rarer >= FEW:
        return ""
    what = "events" if events == rarer else "patients without the event"
    return f"Only {rarer} {what}: every figure below is uncertain, and their intervals say how much."


def _figures(said: Mapping[str, Any]) -> tuple[Figure, ...]:
    calibration = said.get("calibration") or {}
    return (
        Figure(
            "auroc",
            "AUROC",
            _value(said.get("auroc")),
            _range(said.get("auroc")),
            "0.5 is chance, 1 is perfect",
        ),
        Figure(
            "auprc",
            "AUPRC",
            _value(said.get("auprc")),
            _range(said.get("auprc")),
            "chance is the share of events",
        ),
        Figure(
            "brier", "Brier score", _value(said.get("brier"), 3), _range(said.get("brier"), 3), "0 is perfect"
        ),
        Figure(
            "calibration-slope",
            "Calibration slope",
            _value(calibration.get("slope")),
            _range(calibration.get("slope")),
            "1 is perfect",
        ),
        Figure(
            "calibration-intercept",
            "Calibration intercept",
            _value(calibration.get("intercept")),
            _range(calibration.get("intercept")),
            "0 is perfect",
        ),
        Figure(
            "ece",
            "Calibration error",
            _value(calibration.get("ece"), 3),
            _range(calibration.get("ece"), 3),
            "expected, 0 is perfect",
        ),
    )


def _compared(rows: object) -> tuple[Measured, ...]:
    if not isinstance(rows, list):
        return ()
    return tuple(
        Measured(
            name=_model_name(str(row.get("name", ""))),
            detail=", ".join(words.modality(name) for name in row.get("modalities", ())),
            text=_value(row.get("auroc")),
            interval=_range(row.get("auroc")),
            mark=_mark(row.get("auroc")),
        )
        for row in rows
    )


def _model_name(name: str) -> str:
    """`without image` is "Without image", `series only` is "Labs and vitals over time only"."""
    if name.startswith("without "):
        return f"Without {words.modality(name.removeprefix('without ')).lower()}"
    if name.endswith(" only"):
        return f"{words.modality(name.removesuffix(' only'))} only"
    return "Everything" if name == "all" else name[:1].upper() + name[1:]


def _subgroup(row: Mapping[str, Any]) -> Subgroup:
    auroc = row.get("auroc")
    text = (
        str(row.get("note") or "too few")
        if _number(auroc) is None
        else f"{_value(auroc)} {_range(auroc)}".strip()
    )
    return Subgroup(
        attribute=words.outcome(str(row.get("attribute", ""))),
        value=str(row.get("value", "")),
        n=int(row.get("n", 0)),
        events=int(row.get("events", 0)),
        auroc=text,
        mean_risk=words.percent(row.get("mean_risk")),
        observed=words.percent(row.get("observed")),
    )


def _fairness(said: object) -> Fairness | None:
    if not isinstance(said, Mapping) or not said.get("groups"):
        return None
    return Fairness(
        verdict=str(said.get("verdict", "")),
        threshold=words.percent(said.get("threshold")),
        groups=tuple(_fair_group(row) for row in said["groups"]),
        gaps=tuple((_signed(str(gap["said"])), bool(gap["over"])) for gap in said.get("gaps", ())),
    )


def _fair_group(row: Mapping[str, Any]) -> FairGroup:
    def figure(name: str) -> str:
        if _number(row.get(name)) is None:
            return str(row.get("note") or "not measured")
        between = _range(row[name])
        return f"{_value(row[name])} ({between})" if between else _value(row[name])

    return FairGroup(
        attribute=words.outcome(str(row.get("attribute", ""))),
        value=str(row.get("value", "")),
        n=int(row.get("n", 0)),
        events=int(row.get("events", 0)),
        auroc=figure("auroc"),
        sensitivity=figure("sensitivity"),
        ppv=figure("ppv"),
        calibration=figure("calibration"),
    )


def _signed(text: str) -> str:
    """A true minus sign before digits."""
    return re.sub(r"-(?=\d)", "−", text)


def _coverage(said: object) -> str:
    if not isinstance(said, Mapping) or said.get("observed") is None or said.get("level") is None:
        return ""
    groups = f" of {said['groups']} groups" if isinstance(said.get("groups"), int) else " of groups"
    return (
        f"{words.percent(said['level'])} intervals: they held the observed share of events "
        f"in {words.percent(said['observed'])}{groups} of patients scored alike."
    )


def _number(said: object) -> float | None:
    value = said.get("value") if isinstance(said, Mapping) else said
    return float(value) if isinstance(value, int | float) else None


def _value(said: object, places: int = 2) -> str:
    value = _number(said)
    return "not measured" if value is None else f"{value:.{places}f}".replace("-", "−")


def _range(said: object, places: int = 2) -> str:
    if not isinstance(said, Mapping) or said.get("low") is None or said.get("high") is None:
        return ""
    return f"{said['low']:.{places}f} to {said['high']:.{places}f}".replace("-", "−")


def _mark(said: object) -> charts.Interval | None:
    value = _number(said)
    if value is None or not isinstance(said, Mapping):
        return None
    low, high = said.get("low"), said.get("high")
    return charts.interval(
        value, value if low is None else float(low), value if high is None else float(high)
    )

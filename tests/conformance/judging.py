"""Checks with the number of their rule, and what came of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import httpx

from tests.conformance.service import Service

Check = Callable[[Service], str | None]  # what was measured, where a rule is about that


class NotApplicable(Exception):
    """The service does not offer what the rule is about; the message says what."""


class Verdict(StrEnum):
    """What came of a check."""

    HOLDS = "holds"
    FAILS = "fails"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    rule: int
    words: str
    verdict: Verdict
    why: str = ""


@dataclass(frozen=True)
class Rule:
    """A check, its number, and what it says; `timed` ones depend on the machine."""

    number: int
    words: str
    run: Check
    timed: bool = False


RULES: list[Rule] = []


def rule(number: int, words: str, *, timed: bool = False) -> Callable[[Check], Check]:
    """Register a check."""

    def keep(run: Check) -> Check:
        RULES.append(Rule(number, words, run, timed))
        return run

    return keep


def judge(service: Service, *, timed: bool = True) -> Iterator[Row]:
    """Run every check, in the order of their rules; one that breaks off has failed."""
    # not in the order in which modules happened to be imported
    for one in sorted(RULES, key=lambda r: (r.number, r.run.__module__, r.run.__code__.co_firstlineno)):
        if one.timed and not timed:
            continue
        try:
            measured = one.run(service)
        except NotApplicable as reason:
            yield Row(one.number, one.words, Verdict.NOT_APPLICABLE, str(reason))
        except (AssertionError, httpx.HTTPError, KeyError, TypeError, ValueError) as fault:
            yield Row(one.number, one.words, Verdict.FAILS, f"{type(fault).__name__}: {fault}"[:300])
        else:
            yield Row(one.number, one.words, Verdict.HOLDS, measured or "")


def status(answer: httpx.Response, *wanted: int) -> httpx.Response:
    """The answer, when its status is one of these."""
    if answer.status_code not in wanted:
        raise AssertionError(
            f"answered {answer.status_code} instead of {' or '.join(map(str, wanted))}: {answer.text[:160]}"
        )
    return answer


def outcome(answer: httpx.Response, *wanted: int, names: str = "") -> Mapping[str, Any]:
    """The OperationOutcome of a refusal; `names` must be said in it."""
    said: Mapping[str, Any] = status(answer, *wanted).json()
    if said.get("resourceType") != "OperationOutcome" or not said.get("issue"):
        raise AssertionError(f"a {answer.status_code} without an OperationOutcome")
    if names and names.lower() not in answer.text.lower():
        raise AssertionError(f"the OperationOutcome does not name {names}: {answer.text[:160]}")
    return said


def cards(answer: httpx.Response) -> list[Mapping[str, Any]]:
    """The cards of a success."""
    found = status(answer, 200).json()["cards"]
    if not isinstance(found, list):
        raise AssertionError("cards is not a list")
    return found


def empties(value: Any, where: str = "$") -> Iterator[str]:
    """Where an element is null, "" or {} (or [], unless it is `cards`)."""
    if value is None or value == "" or value == {} or (value == [] and not where.endswith(".cards")):
        yield where
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from empties(item, f"{where}.{name}")
    elif isinstance(value, list):
        for place, item in enumerate(value):
            yield from empties(item, f"{where}[{place}]")


def markdown(rows: list[Row]) -> str:
    """The table for the documentation."""
    lines = ["| rule | what is asked | verdict |", "| ---: | --- | --- |"]
    for row in rows:
        why = f": {row.why}" if row.why else ""
        verdict = f"**{row.verdict.value}**" if row.verdict is Verdict.FAILS else row.verdict.value
        lines.append(f"| {row.rule} | {row.words} | {verdict}{why.replace('|', ' ')} |")
    return "\n".join(lines) + "\n"

"""Every pattern that meets a caller's text takes time in proportion to it: work is counted, not timed."""

from __future__ import annotations

import re
from itertools import product
from typing import Any

import pytest

from cds.hooks import contexts, imaging_orders, prefetching, wire, wording
from tests import pattern_steps
from tests.pattern_steps import TooMany, steps

FEW = 10  # repeats; twice as many may cost about twice as much
WHOLE = frozenset(  # used with fullmatch
    {
        "contexts.FHIR_ID",
        "contexts.USER",
        "contexts._PATIENT",
        "imaging_orders._CATEGORY_IMAGING",
    }
)
STARTS = ("", "CT ", '"', '"prefetch"', '"patientId":"', "Patient/", "\\")
REPEATED = (
    "w/wo ", "w/o ", "portable ", "1 ", "1", "ultraso", "  ", "chest portable ct-",
    "\\", '"', '"prefetch":', "A/", "\\\\u0000",
)  # fmt: skip
JSON_ONLY = "prefetching._STRUCTURE"  # it is only ever given what a JSON parser has taken


def patterns_of(*modules: Any) -> dict[str, re.Pattern[Any]]:
    """Every compiled pattern of a module."""
    return {
        f"{module.__name__.rpartition('.')[2]}.{name}": value
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, re.Pattern)
    }


PATTERNS = patterns_of(contexts, imaging_orders, prefetching, wire, wording)
KINDS = {
    f"{kind.label}[{place}]": pattern
    for kind in imaging_orders.KINDS
    for place, pattern in enumerate(kind.words)
}


@pytest.mark.parametrize("name", sorted((PATTERNS | KINDS).keys() - {JSON_ONLY}))
def test_twice_the_text_is_about_twice_the_work(name: str) -> None:
    pattern = (PATTERNS | KINDS)[name]
    written_out = name in KINDS or name == "imaging_orders.ANY_IMAGING"  # long, and slow to count
    for start, again in product(STARTS[: 2 if written_out else None], REPEATED):
        few, many = (work(name, pattern, start, again * repeats) for repeats in (FEW, 2 * FEW))
        assert many <= 2.3 * few + 150, f"{few} steps, then {many}, for {start!r} and {again!r} repeated"


def work(name: str, pattern: re.Pattern[Any], start: str, rest: str) -> int:
    try:
        return steps(pattern, f"{start}{rest}zz", whole=name in WHOLE)
    except TooMany:
        pytest.fail(f"{name} has more to do with {start + rest!r} than its length explains")


def test_texts_in_json_are_passed_over_in_proportion() -> None:
    pattern = PATTERNS[JSON_ONLY]
    for written in ("a" * 40, r"\"" * 40, "{" * 40, r"\\" * 40):
        few, many = (steps(pattern, '{"' + written * times + '":[]}') for times in (1, 2))
        assert many <= 2.1 * few


def test_the_words_of_all_orders_of_a_call_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    def recognise(order: Any, *, most: int) -> None:
        read.append(most)

    monkeypatch.setattr(imaging_orders, "recognise", recognise)
    for orders in (1, 3, 200):
        read.clear()
        imaging_orders.imaging_named([{"resourceType": "ServiceRequest"}] * orders)
        assert len(read) == orders
        assert sum(read) <= imaging_orders.MOST_IN_ALL
        assert max(read) <= imaging_orders.MOST_WORDS


def test_the_words_of_an_order_and_of_its_categories_are_each_bounded() -> None:
    long = {"text": "zebra " * 20 + "MRI brain"}
    assert imaging_orders.recognise({"code": long}) is imaging_orders.OTHER
    assert imaging_orders.recognise({"code": long}, most=60) is None
    many = [{"text": "zebra " * 20}, {"text": "Imaging"}]
    assert imaging_orders.recognise({"category": many}) is imaging_orders.OTHER
    assert imaging_orders.recognise({"category": many}, most=60) is None


@pytest.mark.parametrize(
    ("pattern", "repeated"),
    [
        (r"(?:a|aa)+b", "a"),
        (r"\b(?:x\w*)+y", "x"),
        (r"(?:[ ,]+(?:w/wo|w|wo|[/]))*[ ,/]+z", " w/wo"),
        (r"\w+@", "a"),
    ],
)
def test_the_count_sees_what_grows_faster(pattern: str, repeated: str) -> None:
    with_few, with_many = (steps(re.compile(pattern), repeated * repeats) for repeats in (FEW, FEW + 6))
    assert with_many > 1.9 * with_few


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (r"a++b|(?>c)d", "aab cd"),
        (r"(?<!x)y(?=z)", "xyz yz"),
        (r"(?i:q(?-i:R))\b.$", "QR\nqR "),
        (r"[^\W\d_]{2,}", "a1bc"),
    ],
)
def test_the_counting_matcher_finds_what_re_finds(pattern: str, text: str) -> None:
    compiled = re.compile(pattern)
    assert steps(compiled, text) > 0
    search = pattern_steps._Search(compiled, text, 10_000)
    found = [next(search._all_of(search.tree, at, search.flags), None) for at in range(len(text))]
    assert found == [m.end() if (m := compiled.match(text, at)) else None for at in range(len(text))]

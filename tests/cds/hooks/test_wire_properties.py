"""Whatever is sent, the answer is a card or a refusal that says why: never a 5xx, never empty cards."""

from __future__ import annotations

import copy
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cds.hooks import fields, wire
from cds.hooks.fields import BadRequest
from cds.registry.models import ModelVersion
from tests.cds.hooks.conftest import SERVICE, Call, hook_body

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_subnormal=False)  # torch turns them off in its process
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += paths(inner, (*path, key))
    return found


@st.composite
def damaged(draw: st.DrawFn) -> dict[str, Any]:
    """A good request with one to three places replaced or removed."""
    body = orjson.loads(orjson.dumps(hook_body()))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(paths(body)))
        holder = body
        for key in path[:-1]:
            holder = holder[key]
        if draw(st.booleans()):
            holder[path[-1]] = draw(JSON)
        else:
            del holder[path[-1]]
        if not paths(body):
            break
    return copy.deepcopy(body)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=damaged())
@pytest.mark.django_db
def test_damaged_requests_are_answered_with_a_reason(call: Call, version: ModelVersion, body: Any) -> None:
    check(call(SERVICE, raw=orjson.dumps(body)))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=JSON | st.binary(max_size=60))
@pytest.mark.django_db
def test_any_body_at_all_is_answered_with_a_reason(call: Call, version: ModelVersion, body: Any) -> None:
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    check(call(SERVICE, raw=raw))
    assert call(f"{SERVICE}/feedback", raw=raw).status_code < 500


def check(response: Any) -> None:
    """A card with a number or without, or an OperationOutcome of the caller's fault."""
    if response.status_code == 200:
        assert response.json()["cards"]
    else:
        assert 400 <= response.status_code < 500
        assert response.json()["resourceType"] == "OperationOutcome"


@given(st.binary(max_size=200))
def test_only_bad_request_escapes_the_parser(raw: bytes) -> None:
    try:
        wire.parse_request(wire.parse_json(raw), hook="patient-view")
    except fields.BadRequest:
        pass


@pytest.mark.parametrize(
    ("written", "is_nul"),
    [
        (rb'"\u0000"', True),
        (rb'"C:\\\u0000dir"', True),  # an escaped backslash, then a NUL
        (rb'"C:\\u0000dir"', False),  # an escaped backslash, then letters
        (rb'"C:\\\\u0000dir"', False),
        (rb'"C:\\u0000 \u0000"', True),
    ],
)
def test_a_nul_is_refused_and_what_only_looks_like_one_is_not(written: bytes, is_nul: bool) -> None:
    body = b'{"a": ' + written + b"}"
    assert ("\0" in orjson.loads(body)["a"]) is is_nul
    if is_nul:
        with pytest.raises(BadRequest, match="NUL"):
            wire.parse_json(body)
    else:
        assert wire.parse_json(body) == orjson.loads(body)

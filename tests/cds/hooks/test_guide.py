"""The integrator's guide: what it shows works as shown."""

from __future__ import annotations

import ast
import json
import re
import uuid
from pathlib import Path
from typing import Any

import pytest

from cds.hooks.contexts import HOOKS
from cds.patients.models import Observation
from cds.registry.models import ModelVersion
from tests.cds.hooks.conftest import SERVICE, Call

GUIDE = (Path(__file__).parents[3] / "docs" / "guides" / "integrator.md").read_text()
CURL = re.compile(
    r"curl -s http://127\.0\.0\.1:8000(/cds-services/\S+) \\\n  -H '[^']+' -d '(\{.*?\})'\n```", re.DOTALL
)
SHOWN = CURL.findall(GUIDE)


def test_there_is_an_example_for_each_hook() -> None:
    assert [json.loads(sent)["hook"] for _, sent in SHOWN] == list(HOOKS)


@pytest.mark.parametrize(("path", "sent"), SHOWN, ids=[path for path, _ in SHOWN])
def test_each_curl_example_gets_a_card(call: Call, version: ModelVersion, path: str, sent: str) -> None:
    response = call(path, json.loads(sent))
    assert response.status_code == 200
    assert len(response.json()["cards"]) == 1
    if path == SERVICE:
        assert Observation.objects.get().value == 112


def assigned() -> dict[str, Any]:
    """What the Python examples assign as plain values, in their order."""
    found: dict[str, Any] = {"str": str, "uuid": uuid}
    for example in re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL):
        for statement in ast.parse(example).body:
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                try:
                    code = compile(ast.Expression(statement.value), "guide", "eval")
                    found[statement.targets[0].id] = eval(code, found)
                except (NameError, OSError):
                    continue  # needs a key, or a server
    return found


def test_the_python_examples_are_python_and_their_bodies_are_accepted(
    call: Call, version: ModelVersion
) -> None:
    said = assigned()
    assert call(SERVICE, said["body"]).status_code == 200
    assert list(said["bodies"]) == list(HOOKS)
    for hook, body in said["bodies"].items():
        answer = call(f"/cds-services/tessera-icu-admission-{hook}", body)
        assert (hook, answer.status_code, len(answer.json()["cards"])) == (hook, 200, 1)

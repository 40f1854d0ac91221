"""The integrator's guide: what it shows works as shown."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

from cds.patients.models import Observation
from cds.registry.models import ModelVersion
from tests.cds.hooks.conftest import SERVICE, Call

GUIDE = (Path(__file__).parents[3] / "docs" / "guides" / "integrator.md").read_text()


def test_the_curl_example_gets_a_card(call: Call, version: ModelVersion) -> None:
    (sent,) = re.findall(r"-d '(\{.*?\})'\n```", GUIDE, flags=re.DOTALL)
    assert f"curl -s http://127.0.0.1:8000{SERVICE}" in GUIDE
    assert len(call(SERVICE, json.loads(sent)).json()["cards"]) == 1
    assert Observation.objects.get().value == 112


def test_the_python_example_is_python_and_its_body_is_accepted(call: Call, version: ModelVersion) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL)
    found = {
        statement.targets[0].id: statement.value
        for statement in ast.parse(example).body
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
    }
    body = eval(
        compile(ast.Expression(found["body"]), "guide", "eval"), {"str": str, "uuid": __import__("uuid")}
    )
    assert call(SERVICE, body).status_code == 200

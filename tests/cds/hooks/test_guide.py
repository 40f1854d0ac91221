"""The integrator's guide: every example is run as it stands there, against a server that listens."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cds.hooks.contexts import HOOKS
from cds.hooks.models import CardShown, Feedback, HookClient
from cds.patients.models import Observation
from cds.registry.models import ModelVersion
from tests.cds.hooks.conftest import ISSUER, KEY
from tests.described import body_faults

GUIDE = (Path(__file__).parents[3] / "docs" / "guides" / "integrator.md").read_text()
SHELL = re.findall(r"```sh\n(.*?)```", GUIDE, flags=re.DOTALL)
CURL = [
    one
    for one in re.findall(
        r"^curl .*?(?=\n\n|\n```|\Z)", "\n```\n".join(SHELL), flags=re.DOTALL | re.MULTILINE
    )
    if "/cds-services" in one
]
PYTHON = "\n".join(re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL))
DEMO, SERVER = "http://127.0.0.1:8000", "https://tessera.example.org"


def sent(command: str) -> dict[str, Any]:
    """The body of a curl example; {} of one without."""
    found = re.search(r"-d '(\{.*\})'", command, flags=re.DOTALL)
    said: dict[str, Any] = json.loads(found[1]) if found else {}
    return said


def test_there_is_an_example_for_each_hook_with_a_body_as_described() -> None:
    bodies = [body for command in CURL if (body := sent(command))]
    assert [body["hook"] for body in bodies] == list(HOOKS)
    assert [body_faults("HookRequest", body) for body in bodies] == [[]] * len(HOOKS)


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on PATH")
def test_each_curl_example_gets_what_the_guide_says(
    live_server: Any, settings: Any, version: ModelVersion
) -> None:
    settings.HOOKS_OPEN, settings.HOOKS_WAIT_S, settings.HOOKS_BUDGET_S = True, 0, 60.0
    for command in CURL:
        asked = command.replace(DEMO, live_server.url)
        assert asked != command
        done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True, timeout=120)
        answer = json.loads(done.stdout)
        if sent(command):
            assert len(answer["cards"]) == 1, done.stdout
        else:
            assert [one["hook"] for one in answer["services"]] == list(HOOKS)
    assert Observation.objects.get().value == 112


@pytest.mark.django_db(transaction=True)
def test_the_python_examples_run_as_they_stand(
    live_server: Any,
    settings: Any,
    version: ModelVersion,
    hook_client: HookClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings.PUBLIC_URL, settings.HOOKS_WAIT_S, settings.HOOKS_BUDGET_S = live_server.url, 0, 60.0
    (tmp_path / "ehr-private-key.json").write_text(json.dumps(KEY.as_dict(private=True)))
    monkeypatch.chdir(tmp_path)
    assert ISSUER in PYTHON
    script = PYTHON.replace(SERVER, live_server.url).replace("timeout=2", "timeout=60")
    exec(compile(script, "the guide", "exec"), {})
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said] == list(HOOKS)
    assert CardShown.objects.count() == Feedback.objects.filter(reason_code="action-completed").count() == 6

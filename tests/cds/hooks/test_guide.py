"""The integrator's guide: every example is run as it stands there, against a server that listens."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from joserfc.jwk import ECKey

from cds.hooks import key_sets
from cds.hooks.contexts import HOOKS
from cds.hooks.models import CardShown, Feedback
from cds.patients.models import Observation
from cds.registry.models import ModelVersion
from tests import launching_ehr
from tests.described import body_faults

GUIDE = (Path(__file__).parents[3] / "docs" / "guides" / "integrator.md").read_text()
SHELL = re.findall(r"```sh\n(.*?)```", GUIDE, flags=re.DOTALL)
EVERY_CURL = [
    one
    for one in re.findall(
        r"^curl .*?(?=\n\n|\n```|\Z)", "\n```\n".join(SHELL), flags=re.DOTALL | re.MULTILINE
    )
    if "/cds-services" in one or "$CALL" in one
]
CURL = [one for one in EVERY_CURL if "sign.py" not in one]
FILES = {  # the Python examples, by the names the guide gives them
    name: f"# {name}\n{rest}"
    for name, rest in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", GUIDE, flags=re.DOTALL)
}
REGISTER = next(
    line for one in SHELL for line in one.splitlines() if "hook_client add" in line and "--jwks " in line
)
DEMO = "http://127.0.0.1:8000"


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


def follow(folder: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guide's files in a folder of their own, the key pair made, and the EHR registered as it says."""
    monkeypatch.chdir(folder)
    for name, text in FILES.items():
        Path(name).write_text(text.replace(DEMO, url).replace("timeout=2", "timeout=60"))
    run("make_key.py")
    words = shlex.split(REGISTER)
    assert words[:2] == [".venv/bin/python", "manage.py"]
    call_command(*words[2:], stdout=StringIO())


def run(name: str) -> str:
    done = subprocess.run([sys.executable, name], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.django_db(transaction=True)
def test_the_python_examples_run_as_they_stand_from_the_key_pair_on(
    live_server: Any, settings: Any, version: ModelVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.PUBLIC_URL, settings.HOOKS_WAIT_S, settings.HOOKS_BUDGET_S = live_server.url, 0, 60.0
    assert list(FILES) == ["make_key.py", "sign.py", "calls.py"]
    follow(tmp_path, live_server.url, monkeypatch)
    said = run("calls.py").splitlines()
    assert [line.split()[0] for line in said] == list(HOOKS)
    assert CardShown.objects.count() == Feedback.objects.filter(reason_code="action-completed").count() == 6
    assert {card.client.issuer for card in CardShown.objects.all() if card.client} == {
        "https://ehr.example.org"
    }
    pem = Path("ehr-private-key.pem").read_bytes()
    assert ECKey.import_key(pem).as_dict()["x"] == json.loads(Path("ehr-private-key.json").read_text())["x"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on PATH")
def test_the_signed_curl_examples_run_as_they_stand(
    live_server: Any, settings: Any, version: ModelVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.PUBLIC_URL, settings.HOOKS_WAIT_S, settings.HOOKS_BUDGET_S = live_server.url, 0, 60.0
    follow(tmp_path, live_server.url, monkeypatch)
    signed = next(one for one in SHELL if "sign.py" in one)
    assert len([one for one in EVERY_CURL if "sign.py" in one]) == 2
    asked = signed.replace(DEMO, live_server.url).replace(".venv/bin/python", sys.executable)
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True, timeout=120)
    found, _, answer = done.stdout.partition('{"cards"')
    assert [one["hook"] for one in json.loads(found)["services"]] == list(HOOKS)
    assert len(json.loads('{"cards"' + answer)["cards"]) == 1


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl on PATH")
def test_a_key_of_openssl_can_be_registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = re.search(r"`(openssl ecparam [^`]+)`", GUIDE)
    read = re.search(r"^`(ECKey\.import_key\([^`]+)`", GUIDE, flags=re.MULTILINE)
    assert made
    assert read
    subprocess.run(shlex.split(made[1]), check=True, timeout=60, capture_output=True)
    script = re.sub(r"ECKey\.generate_key\(.*\)", lambda _: read[1], FILES["make_key.py"])
    Path("make_key.py").write_text(script)
    run("make_key.py")
    assert (
        key_sets.check_keys(json.loads(Path("ehr-public-keys.json").read_text()))["keys"][0]["crv"] == "P-384"
    )


def test_the_practice_ehr_says_what_the_guide_types(
    capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """`python -m tests.launching_ehr` as in the guide, ended at once; its settings are the guide's."""

    def ended(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tests.launching_ehr.time.sleep", ended)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launching_ehr.main(["--port", port, "--app", DEMO])
    said = capsys.readouterr().out.replace(f":{port}", ":9000").replace(f"%3A{port}", "%3A9000")
    assert "python -m tests.launching_ehr --port 9000 --app http://127.0.0.1:8000" in GUIDE
    for part in ("--issuer http://127.0.0.1:9000/fhir --client-id tessera", "--frame http://127.0.0.1:9000"):
        assert part in said
        assert part in GUIDE
    assert (
        "http://127.0.0.1:8000/launch?iss=http%3A%2F%2F127.0.0.1%3A9000%2Ffhir&launch=launch-example-1"
        in said
    )

"""Our service, judged as a stranger's would be: by HTTP, on the server that production runs."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

import ehr
from tests.conformance import (  # noqa: F401  (register)
    rules_of_feedback,
    rules_of_launch,
    rules_of_messages,
    rules_of_reading,
    rules_of_security,
)  # fmt: skip
from tests.conformance.__main__ import write
from tests.conformance.judging import RULES, Row, Verdict, judge, markdown
from tests.conformance.ours import ISSUER, ORIGIN, ROOT, running
from tests.conformance.service import Ehr, Service


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(tmp_path_factory.mktemp("conformance")) as service:
        yield service


@pytest.fixture(scope="module")
def judged(ours: Service) -> list[Row]:
    """What the suite says of ours, but for what depends on the machine."""
    return list(judge(ours, timed=False))


def test_every_rule_holds(judged: list[Row]) -> None:
    failed = [f"{row.rule} {row.words}: {row.why}" for row in judged if row.verdict is Verdict.FAILS]
    assert not failed, "\n".join(failed)
    assert len(judged) == sum(not rule.timed for rule in RULES)


def test_a_service_that_is_wrong_is_found_wrong(tmp_path: Path) -> None:
    """What a known peer does: 200 with empty cards whatever comes, and no token asked for."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            one = {
                "hook": "patient-view",
                "id": "x",
                "description": "",
                "prefetch": {"a": "Patient?_has:x=1"},
            }
            self._answer({"services": [one]})

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self._answer({"cards": []})

        def _answer(self, said: Any) -> None:
            body = json.dumps(said).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            """Silent."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    service = Service(f"http://127.0.0.1:{server.server_port}", Ehr(ISSUER, ehr.new_key("EC"), ORIGIN))
    try:
        rows = list(judge(service, timed=False))
    finally:
        service.close()
        server.shutdown()
        server.server_close()
        thread.join(5)
    failed = {row.rule for row in rows if row.verdict is Verdict.FAILS}
    assert {4, 6, 8, 9, 10, 11, 18, 19, 20, 21, 22, 24, 29, 30} <= failed


def test_the_table_is_written_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- conformance -->\nold\n<!-- end -->\nafter\n")
    write(page, [Row(1, "words", Verdict.HOLDS)])
    assert (
        page.read_text()
        == f"before\n<!-- conformance -->\n{markdown([Row(1, 'words', Verdict.HOLDS)])}<!-- end -->\nafter\n"
    )


def test_the_documentation_holds_what_the_suite_says(judged: list[Row]) -> None:
    """Each line with its verdict, and no line of a rule that is gone: written by the suite, not by hand.

    What depends on the machine's speed is not judged here: the page has that verdict with what was measured,
    and the settings of the run.
    """
    page = (ROOT / "docs" / "conformance.md").read_text()
    written = page.partition("<!-- conformance -->\n")[2].partition("<!-- end -->")[0]
    settings, _, table = written.partition("\n\n")
    assert re.match(r"Run of \d{4}-\d\d-\d\d: .*`HOOKS_BUDGET_MS=450`", settings), "no settings of the run"
    timed = [rule.words for rule in RULES if rule.timed]
    lines = [line for line in table.splitlines(keepends=True) if not any(words in line for words in timed)]
    assert "".join(lines) == markdown(judged), "write it anew: python -m tests.conformance.ours"
    for words in timed:
        row = next(line for line in table.splitlines() if words in line)
        assert re.search(r"\| (holds: median \d+ ms, p95|\*\*fails\*\*: AssertionError: median)", row), row

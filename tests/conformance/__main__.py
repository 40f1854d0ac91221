"""`python -m tests.conformance URL`: judge a CDS Hooks service by HTTP alone; exit 1 where a rule fails."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack
from pathlib import Path

from tests.conformance import (  # noqa: F401  (register)
    peers,
    rules_of_feedback,
    rules_of_launch,
    rules_of_messages,
    rules_of_reading,
    rules_of_security,
)  # fmt: skip
from tests.conformance.judging import Row, Verdict, judge, markdown
from tests.conformance.service import Ehr, Service
from tests.launching_ehr import launching_ehr

MARK = {Verdict.HOLDS: "ok", Verdict.FAILS: "FAILS", Verdict.NOT_APPLICABLE: "n/a"}


def main(arguments: list[str] | None = None) -> int:
    """Print a line a rule; the number that fail decides the exit status."""
    asked = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    asked.add_argument("url", help="base address, above /cds-services")
    asked.add_argument("--issuer", default="", help="`iss` that the service knows")
    asked.add_argument("--key", type=Path, help="file of the private JWK of that issuer, with a kid")
    asked.add_argument("--open", action="store_true", help="the service asks for no token")
    asked.add_argument("--origin", default="", help="web origin registered with the service, for CORS")
    asked.add_argument("--frame", default="", help="web origin registered as one that may frame its pages")
    asked.add_argument("--tenant", default="")
    asked.add_argument("--patient", default="conformance-1", help="id of the patient the calls are about")
    asked.add_argument(
        "--launches", default="", metavar="ISS", help="FHIR address of an EHR whose launches it answers"
    )
    asked.add_argument(
        "--peers",
        type=int,
        metavar="PORT",
        help="run a FHIR server and a key set at http://127.0.0.1:PORT/fhir and /keys, as registered with it",
    )
    asked.add_argument(
        "--rotating", default="", metavar="ISS", help="issuer registered with that key set's address"
    )
    asked.add_argument(
        "--launching",
        type=int,
        metavar="PORT",
        help="run an EHR that launches at http://127.0.0.1:PORT/fhir, as registered with client id tessera",
    )
    asked.add_argument(
        "--launching-v1", type=int, metavar="PORT", help="another one, which lists permission-v1 only"
    )
    asked.add_argument("--launch", default="launch", help="where it is launched, below the base address")
    asked.add_argument("--keys", default=".well-known/jwks.json", help="where its public keys are")
    asked.add_argument(
        "--body-limit", type=int, default=0, metavar="BYTES", help="largest body that the service takes"
    )
    asked.add_argument("--untimed", action="store_true", help="leave out what depends on the machine's speed")
    asked.add_argument("--markdown", type=Path, help="write the table there, between its marks")
    given = asked.parse_args(arguments)
    if not given.open and not (given.key and given.issuer):
        asked.error("give --issuer and --key, or --open for a service that asks for no token")
    key = json.loads(given.key.read_text()) if given.key else None
    ehr = Ehr(
        given.issuer,
        key,
        origin=given.origin,
        frame=given.frame,
        tenant=given.tenant,
        patient=given.patient,
        launches=given.launches,
        body_limit=given.body_limit,
    )
    with ExitStack() as open_until_then:
        if given.peers is not None:
            ehr.peers, ehr.rotating = (
                open_until_then.enter_context(peers.serving(port=given.peers)),
                given.rotating,
            )
        if given.launching is not None:
            ehr.launching = open_until_then.enter_context(launching_ehr(given.launching))
            ehr.launching.add("p1", "Firstperson")
            ehr.launching.add("p2", "Secondperson")
            ehr.launches = ehr.launches or ehr.launching.fhir
        if given.launching_v1 is not None:
            ehr.launching_v1 = open_until_then.enter_context(launching_ehr(given.launching_v1))
            ehr.launching_v1.discovery = {
                "capabilities": ["launch-ehr", "permission-v1", "sso-openid-connect"]
            }
        service = Service(given.url, ehr, launch=given.launch, keys=given.keys)
        open_until_then.callback(service.close)
        return judged(service, timed=not given.untimed, page=given.markdown)


def judged(service: Service, *, timed: bool, page: Path | None = None, settings: str = "") -> int:
    """Judge and print; the table into `page`. 1 where a rule fails, else 0."""
    rows: list[Row] = []
    for row in judge(service, timed=timed):
        rows.append(row)
        print(
            f"{row.rule:>3}  {MARK[row.verdict]:<6} {row.words}" + (f"\n       {row.why}" if row.why else "")
        )
    failed = sum(row.verdict is Verdict.FAILS for row in rows)
    held = sum(row.verdict is Verdict.HOLDS for row in rows)
    print(f"{held} hold, {failed} fail, {len(rows) - held - failed} not applicable")
    if page:
        write(page, rows, settings)
    return 1 if failed else 0


def write(path: Path, rows: list[Row], settings: str = "") -> None:
    """The settings of the run and the table between `<!-- conformance -->` and `<!-- end -->`."""
    text = path.read_text()
    head, _, rest = text.partition("<!-- conformance -->\n")
    tail = rest.partition("<!-- end -->")[2]
    said = "\n\n" if settings else ""
    path.write_text(f"{head}<!-- conformance -->\n{settings}{said}{markdown(rows)}<!-- end -->{tail}")


if __name__ == "__main__":
    sys.exit(main())

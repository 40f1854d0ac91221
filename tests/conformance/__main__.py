"""`python -m tests.conformance URL`: judge a CDS Hooks service by HTTP alone; exit 1 where a rule fails."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tests.conformance import rules_of_launch, rules_of_messages, rules_of_security  # noqa: F401  (register)
from tests.conformance.judging import Row, Verdict, judge, markdown
from tests.conformance.service import Ehr, Service

MARK = {Verdict.HOLDS: "ok", Verdict.FAILS: "FAILS", Verdict.NOT_APPLICABLE: "n/a"}


def main(arguments: list[str] | None = None) -> int:
    """Print a line a rule; the number that fail decides the exit status."""
    asked = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    asked.add_argument("url", help="base address, above /cds-services")
    asked.add_argument("--issuer", default="", help="`iss` that the service knows")
    asked.add_argument("--key", type=Path, help="file of the private JWK of that issuer, with a kid")
    asked.add_argument("--open", action="store_true", help="the service asks for no token")
    asked.add_argument("--origin", default="", help="web origin registered with the service, for CORS")
    asked.add_argument("--tenant", default="")
    asked.add_argument("--patient", default="conformance-1", help="id of the patient the calls are about")
    asked.add_argument(
        "--launches", default="", metavar="ISS", help="FHIR address of an EHR whose launches it answers"
    )
    asked.add_argument("--launch", default="launch", help="where it is launched, below the base address")
    asked.add_argument("--keys", default=".well-known/jwks.json", help="where its public keys are")
    asked.add_argument("--untimed", action="store_true", help="leave out what depends on the machine's speed")
    asked.add_argument("--markdown", type=Path, help="write the table there, between its marks")
    given = asked.parse_args(arguments)
    if not given.open and not (given.key and given.issuer):
        asked.error("give --issuer and --key, or --open for a service that asks for no token")
    key = json.loads(given.key.read_text()) if given.key else None
    ehr = Ehr(given.issuer, key, given.origin, given.tenant, given.patient, given.launches)
    service = Service(given.url, ehr, launch=given.launch, keys=given.keys)
    try:
        return judged(service, timed=not given.untimed, page=given.markdown)
    finally:
        service.close()


def judged(service: Service, *, timed: bool, page: Path | None = None) -> int:
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
        write(page, rows)
    return 1 if failed else 0


def write(path: Path, rows: list[Row]) -> None:
    """The table between `<!-- conformance -->` and `<!-- end -->`."""
    text = path.read_text()
    head, _, rest = text.partition("<!-- conformance -->\n")
    tail = rest.partition("<!-- end -->")[2]
    path.write_text(f"{head}<!-- conformance -->\n{markdown(rows)}<!-- end -->{tail}")


if __name__ == "__main__":
    sys.exit(main())

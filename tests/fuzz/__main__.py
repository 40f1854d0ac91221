"""`python -m tests.fuzz [fhir] [dicom] [hooks] --examples 10000`: the nightly run. Exit 0 when nothing broke.

The same tests run with a few examples among all others. An example is a seed, printed when it fails. Tests of
FHIR and DICOM that write to database and store get a twentieth of the examples: each takes, and takes again.
"""

from __future__ import annotations

import argparse
import os
import resource
import time

import pytest

PARTS = ("fhir", "dicom", "hooks")


def main() -> int:
    """Run the parts asked for and say how many examples, how long, how much memory."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("parts", nargs="*", help="fhir, dicom, hooks; all of them without any")
    parser.add_argument("--examples", type=int, default=10_000, help="of each part (default 10,000)")
    asked = parser.parse_args()
    if unknown := set(asked.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    os.environ["TESSERA_FUZZ_EXAMPLES"] = str(asked.examples)
    worst = 0
    for part in asked.parts or PARTS:
        began = time.monotonic()
        code = pytest.main([f"tests/fuzz/test_{part}.py", "-q", "--timeout=0", "-p", "no:cacheprovider"])
        ours, children = (
            resource.getrusage(who).ru_maxrss // 1024
            for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
        took = time.monotonic() - began
        print(
            f"{part}: {asked.examples} examples in {took:.0f} s; "
            f"peak memory {ours} MiB here, {children} MiB in a child; {'BROKEN' if code else 'good'}"
        )
        worst = max(worst, int(code))
    return worst


if __name__ == "__main__":
    raise SystemExit(main())

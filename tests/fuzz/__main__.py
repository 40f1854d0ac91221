"""`python -m tests.fuzz [fhir] [dicom] [hooks] --examples 10000`: the nightly run. Exit 0 when nothing broke
and memory stayed within `--memory`.

The same tests run with a few examples among all others. An example is a seed, printed when it fails. Tests of
FHIR and DICOM that write to database and store get a twentieth of the examples: each takes, and takes again.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from contextlib import redirect_stderr

import pytest

MEMORY_MIB = 768  # the long runs need up to 463 here, 267 in a child
PARTS = ("fhir", "dicom", "hooks")
QUIETLY = ("-q", "--timeout=0", "--capture=no", "-p", "no:cacheprovider", "-p", "no:logging")


def main() -> int:
    """Run the parts asked for and say how many examples, how long, how much memory."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("parts", nargs="*", help="fhir, dicom, hooks; all of them without any")
    parser.add_argument("--examples", type=int, default=10_000, help="of each part (default 10,000)")
    parser.add_argument(
        "--memory",
        type=int,
        default=MEMORY_MIB,
        metavar="MIB",
        help=f"a peak above it, here or in a child, is a failure (default {MEMORY_MIB})",
    )
    asked = parser.parse_args()
    if unknown := set(asked.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    os.environ["TESSERA_FUZZ_EXAMPLES"] = str(asked.examples)
    worst = 0
    for part in asked.parts or PARTS:
        began = time.monotonic()
        with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):  # pytest would hold a long run's log
            code = pytest.main([f"tests/fuzz/test_{part}.py", *QUIETLY])
        ours, children = (
            resource.getrusage(who).ru_maxrss // 1024
            for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
        took = time.monotonic() - began
        is_over = max(ours, children) > asked.memory
        verdict = "BROKEN" if code else f"OVER {asked.memory} MiB" if is_over else "good"
        print(
            f"{part}: {asked.examples} examples in {took:.0f} s; "
            f"peak memory {ours} MiB here, {children} MiB in a child; {verdict}"
        )
        worst = max(worst, int(code), int(is_over))
    return worst


if __name__ == "__main__":
    raise SystemExit(main())

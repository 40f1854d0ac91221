"""`python -m tests.fuzz --examples 10000`: the nightly run. Exit 0 when only EhrError escaped.

The same tests run with a few examples among all others. An example is a seed, printed when it fails. Tests
that write to database and store get a twentieth of the examples: each takes, and takes again.
"""

from __future__ import annotations

import argparse
import os
import resource
import time

import pytest


def main() -> int:
    """Run both halves and say how many examples, how long, how much memory."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--examples", type=int, default=10_000, help="of FHIR and of DICOM (default 10,000)")
    parser.add_argument("--only", choices=("fhir", "dicom"), help="one half")
    asked = parser.parse_args()
    os.environ["TESSERA_FUZZ_EXAMPLES"] = str(asked.examples)
    worst = 0
    for half in (asked.only,) if asked.only else ("fhir", "dicom"):
        began = time.monotonic()
        code = pytest.main([f"tests/fuzz/test_{half}.py", "-q", "--timeout=0", "-p", "no:cacheprovider"])
        ours, children = (
            resource.getrusage(who).ru_maxrss // 1024
            for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
        took = time.monotonic() - began
        stored = asked.examples // 20
        print(
            f"{half}: {asked.examples} examples ({stored} of what writes to the store) in {took:.0f} s; "
            f"peak memory {ours} MiB here, {children} MiB in a child; {'BROKEN' if code else 'good'}"
        )
        worst = max(worst, int(code))
    return worst


if __name__ == "__main__":
    raise SystemExit(main())

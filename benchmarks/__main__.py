"""`python -m benchmarks` lists the measurements; `python -m benchmarks NAME …` or `all` runs them.

Each runs in a process of its own, prints its table, and replaces its part of docs/benchmarks.md. Load is
bounded in count and time, and goes to loopback only.
"""

from __future__ import annotations

import argparse
import importlib
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import measuring

NAMES = ("hook_keys", "ingest", "c_store", "decode", "study_to_score")
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
HEAD = """# Benchmarks

Written by `python -m benchmarks all` and the commands that `python -m benchmarks` lists. Each measurement
stands beside its limit: the least that would have to be done anyway, measured in the same run on the same
machine. Compare the ratio, not the milliseconds. A part measured beside other work says so, and tells no
ratio.
"""


def main() -> None:
    """List, or run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", choices=[*NAMES, "all", []], metavar="NAME")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if not asked.names:
        for name in NAMES:
            about = importlib.import_module(f"benchmarks.{name}").__doc__ or ""
            print(f"{name:16} {about.strip().splitlines()[0]}")
        print("hooks            its own command: python -m benchmarks.hooks --help")
        print("study            its own command, on real data: python -m benchmarks.study --help")
        print("fusion           its own command: python -m benchmarks.fusion --help")
        print("oracle           its own command: python -m benchmarks.oracle --help")
        print("oracle_peers     its own command: python -m benchmarks.oracle_peers --help")
        return
    names = NAMES if "all" in asked.names else asked.names
    if asked.here:
        _measure(names[0])
        return
    for name in names:
        subprocess.run([sys.executable, "-m", "benchmarks", name, "--here"], check=True)


def _measure(name: str) -> None:
    said = importlib.import_module(f"benchmarks.{name}").run()
    if isinstance(said, measuring.Table):
        said.notes.append(f"{datetime.now(UTC):%Y-%m-%d}; {measuring.machine()}.")
        said = said.to_markdown()
    print(said)
    keep(name, said)


def keep(name: str, said: str) -> None:
    """Replace one measurement's part of the page; the others stay."""
    parts = dict(re.findall(r"<!-- (\w+) -->\n(.*?)<!-- end -->\n", _page(), flags=re.DOTALL))
    parts[name] = said
    order = [*(one for one in NAMES if one in parts), *(one for one in parts if one not in NAMES)]
    kept = [f"<!-- {one} -->\n{parts[one]}<!-- end -->\n" for one in order]
    PAGE.write_text("\n".join([HEAD, *kept]))


def _page() -> str:
    return PAGE.read_text() if PAGE.exists() else ""


if __name__ == "__main__":
    main()

"""`python -m fusion.evaluate BUNDLE --collection DIR`: how a saved bundle does on patients it has never seen.

BUNDLE is a bundle, or a folder of bundles (as `python -m benchmarks.study SET DIR --save BUNDLES` writes
them); DIR is laid out like one of the collections of fusion.research. Prints AUROC, AUPRC, Brier score,
calibration slope and intercept with 95 % bootstrap intervals over groups (patients, lesions, stays, clip
groups), and the coverage of its intervals. Ends with 2, saying why, where it cannot.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from fusion.errors import FusionError
from fusion.evaluate.unseen import Scored, score_folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Score and print; 0, or 2 with the reason on standard error."""
    about = __doc__ or ""
    parser = argparse.ArgumentParser(
        prog="python -m fusion.evaluate",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--collection", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--task", action="append", help="only this one (may be given again); without: all found"
    )
    parser.add_argument(
        "--layout", default="", help="of which collection DIR is, where its files do not tell"
    )
    parser.add_argument(
        "--text-backbone", type=Path, metavar="FOLDER", help="where its text encoder lies here, if it has one"
    )
    parser.add_argument(
        "--digest", metavar="SHA256", help="what Bundle.save said of the one BUNDLE: any other is refused"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything found, as JSON")
    asked = parser.parse_args(arguments)
    for path in (asked.bundle, asked.collection):
        if not path.is_dir():
            print(f"{path}: no such folder", file=sys.stderr)
            return 2
    try:
        found = score_folder(
            asked.bundle,
            asked.collection,
            tasks=asked.task or (),
            name=asked.layout,
            text_backbone=asked.text_backbone,
            digest=asked.digest,
        )
    except FusionError as fault:
        print(f"{type(fault).__name__}: {fault}", file=sys.stderr)
        return 2
    print(table(found))
    if asked.json is not None:
        asked.json.write_text(json.dumps([one.to_json() for one in found], indent=1) + "\n")
    return 0


def table(found: Sequence[Scored]) -> str:
    """Markdown: one row a task, figures with 95 % intervals, then what must be known beside them."""
    names = list(found[0].figures)
    lines = [
        "| task | rows / groups / events | " + " | ".join(names) + " |",
        "| --- " * (len(names) + 2) + "|",
    ]
    for one in found:
        figures = " | ".join(_figure(one.figures[name]) for name in names)
        lines.append(f"| {one.label} (`{one.task}`) | {one.rows} / {one.groups} / {one.events} | {figures} |")
    notes = dict.fromkeys(f"- {note}" for one in found for note in one.notes)
    return "\n".join([*lines, "", *notes])


def _figure(found: dict[str, float | None]) -> str:
    if found["value"] is None:
        return "not computable"
    if found["low"] is None or found["high"] is None:
        return f"{found['value']:.3f}"
    return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


if __name__ == "__main__":
    raise SystemExit(main())

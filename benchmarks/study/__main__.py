"""`python -m benchmarks.study SET DIR`: the whole real-data study of one collection.

    python -m benchmarks.study cxr_covid DIR --repeats 3      # DIR holds the collection's tables and pictures
    python -m benchmarks.study cxr_covid DIR --part generalisation
    python -m benchmarks.study summary                        # all tasks at a glance, from the tables kept
    python -m benchmarks.study cxr_covid DIR --save BUNDLES   # a bundle for each task, of all of DIR …
    python -m fusion.evaluate BUNDLES --collection SEALED     # … and scored on a folder it has never seen

Tables go to standard output and, unless --quick, into docs/experiments.md.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.study import pages, summary
from fusion import BadInput
from fusion.research import recognise

PARTS = {
    "cxr_covid": {
        "comparison": "benchmarks.study.comparison",
        "detection": "benchmarks.study.detection",
        "finetune": "benchmarks.study.finetune",
        "generalisation": "benchmarks.study.generalisation",
        "heat_maps": "benchmarks.study.heat_maps",
        "scope": "benchmarks.study.scope",
        "segmentation": "benchmarks.study.segmentation",
        "severity": "benchmarks.study.severity",
        "shift": "benchmarks.study.shift",
        "simulated_chest": "benchmarks.study.simulated_chest",
        "tried": "benchmarks.study.tried",
    },
    "brain_lgg": {
        "comparison": "benchmarks.study.comparison",
        "generalisation": "benchmarks.study.generalisation",
        "measured": "benchmarks.study.measured",
        "segmentation": "benchmarks.study.segmentation",
        "tried": "benchmarks.study.tried",
        "volumes": "benchmarks.study.volumes",
    },
    "lung_ultrasound": {
        "comparison": "benchmarks.study.comparison",
        "cine": "benchmarks.study.cine",
        "simulated_echo": "benchmarks.study.simulated_echo",
        "tried": "benchmarks.study.tried",
    },
    "icu_physionet2012": {
        "comparison": "benchmarks.study.comparison",
        "survival": "benchmarks.study.survival",
        "survival_simulated": "benchmarks.study.simulated_survival",
        "privacy": "benchmarks.study.privacy",
    },
    "own_tables": {"comparison": "benchmarks.study.comparison"},
    "skin_ham10000": {
        "comparison": "benchmarks.study.comparison",
        "finetune": "benchmarks.study.finetune",
        "imbalance": "benchmarks.study.imbalance",
    },
}


def main() -> None:
    """Run the parts asked for, or train bundles."""
    about = __doc__ or ""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.study",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sets = sorted(PARTS)
    parser.add_argument(
        "set",
        choices=[*sets, summary.NAME],
        metavar="SET",
        help=f"{', '.join(sets)}; {summary.NAME}: all tasks at a glance",
    )
    parser.add_argument("folder", type=Path, nargs="?", metavar="DIR", help="the collection's folder")
    parser.add_argument("--part", action="append", help="only this part (may be given again); without: all")
    parser.add_argument("--repeats", type=int, default=3, help="of the cross-validation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a part of the rows, few epochs; keeps no table")
    parser.add_argument("--task", action="append", help="only this task (comparison, --save; keeps no table)")
    parser.add_argument("--save", type=Path, metavar="BUNDLES", help="train a bundle for each task, no study")
    asked = parser.parse_args()
    if asked.set == summary.NAME:
        print(_summarised())
        return
    if asked.folder is None:
        parser.error(f"{asked.set} needs DIR, the collection's folder")
    try:
        found = recognise(asked.folder)
    except BadInput as fault:
        parser.error(str(fault))
    if found != asked.set:
        parser.error(f"{asked.folder.name!r} is laid out like {found}, not like {asked.set}")
    if asked.save is not None:
        from benchmarks.study.saving import save_bundles

        save_bundles(asked.folder, asked.save, seed=asked.seed, quick=asked.quick, tasks=asked.task or ())
        return
    known = PARTS[asked.set]
    for part in asked.part or known:
        if part not in known:
            parser.error(f"{asked.set} has no part {part!r}; it has {', '.join(known)}")
        run = importlib.import_module(known[part]).run
        only = {"tasks": asked.task} if asked.task and part == "comparison" else {}
        said = run(asked.folder, repeats=asked.repeats, seed=asked.seed, quick=asked.quick, **only)
        print(said, flush=True)
        if not asked.quick and not only:
            pages.keep(f"{asked.set}_{part}", f"{said.strip()}\n\n{_when()}")
            if part == "comparison" and asked.set in summary.SETS:
                _summarised()


def _summarised() -> str:
    said = summary.run()
    pages.keep(summary.NAME, said)
    return said


def _when() -> str:
    import torch

    now = datetime.now(UTC)
    return (
        f"*{now.day} {now:%B %Y}, {os.cpu_count()} CPU cores, Python {sys.version.split()[0]}, "
        f"torch {torch.__version__}.*"
    )


if __name__ == "__main__":
    main()

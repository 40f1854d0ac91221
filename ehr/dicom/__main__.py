"""`python -m ehr.dicom FILE… OUT.npz`: the instances of one Series → an archive that `fusion.edge` reads.

OUT.npz holds `values` float32 [T, H, W] in [0, 1], `times_ms` float32 [T] from the first frame, and, where
the files tell them, `spacing_mm` (row, column) and `slice_mm`. Of a still image T is 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ehr.dicom.reader import read_clip
from ehr.errors import EhrError


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when written; 2, with the reason in words, when not."""
    parser = argparse.ArgumentParser(prog="python -m ehr.dicom", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="of one Series, in any order")
    parser.add_argument("out", type=Path, metavar="OUT.npz")
    asked = parser.parse_args(arguments)
    if asked.out.suffix != ".npz":
        parser.error(f"the last name is where to write, and must end in .npz: {asked.out.name}")
    try:
        clip = read_clip(asked.files)
    except (EhrError, OSError) as fault:
        print(f"nothing was written: {fault}", file=sys.stderr)
        return 2
    held = {"values": clip.frames, "times_ms": clip.times_ms}
    if clip.spacing_mm is not None:
        held["spacing_mm"] = np.array(clip.spacing_mm, np.float32)
    if clip.slice_mm is not None:
        held["slice_mm"] = np.array(clip.slice_mm, np.float32)
    with asked.out.open("wb") as written:
        np.savez(written, allow_pickle=False, **held)
    frames, rows, columns = clip.frames.shape
    print(f"{asked.out}: {frames} frame(s) of {rows} x {columns}" + "".join(f"; {n}" for n in clip.notes))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

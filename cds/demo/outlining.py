"""Segmenters for the demo, taught in seconds on simulated radiographs and echoes whose outlines are known.

They stand in SEGMENTER_STORE as a hospital's own would, and say in their title what they were taught on.

    python -m cds.demo.outlining FOLDER     # teach both, where they are not there yet
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cds.demo.echo import EchoFindings, draw_echo
from cds.demo.echo import draw_masks as echo_masks
from cds.demo.radiograph import ChestFindings, draw_chest
from cds.demo.radiograph import draw_masks as chest_masks
from fusion import Drawn, Segmenter, SegmenterConfig, train_segmenter

CHESTS, CLIPS, FRAMES = 96, 40, 4  # frames of each clip
SEED = 20261123
CHEST: dict[str, Any] = {
    "title": "U-Net, taught on simulated radiographs",
    "imaging_modalities": ["CR", "DX"],
    "body_parts": ["CHEST", ""],
    "views": ["PA", "AP", ""],
    "moving": False,
    "sizes": [
        {"name": "cardiothoracic_ratio", "of": ["heart", "lungs"]},
        {"name": "lung_area", "of": ["lungs"]},
    ],
}
ECHO: dict[str, Any] = {
    "title": "U-Net, taught on simulated echoes",
    "imaging_modalities": ["US"],
    "body_parts": ["HEART", ""],
    "views": ["A4C", ""],
    "moving": True,
    "sizes": [{"name": "measured_ejection_fraction", "of": ["left ventricle"]}],
}


@contextmanager
def taught(store: Path, log: Path) -> Iterator[Callable[[], bool]]:
    """Teach both in a process of their own while the caller goes on; what is given waits for it, and says
    whether it went well (`log` tells what did not)."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as written:
        command = [sys.executable, "-m", "cds.demo.outlining", str(store)]
        process = subprocess.Popen(command, stdout=written, stderr=written)  # noqa: S603 - our own module
        try:
            yield lambda: process.wait() == 0
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def teach_all(store: Path) -> bool:
    """Teach and store both, where they are not there yet; False where nothing was left to do."""
    todo = [
        (store / "chest-sizes", CHEST, teach_chest),
        (store / "ejection-fraction", ECHO, teach_echo),
    ]
    todo = [one for one in todo if not (one[0] / "measures.json").exists()]
    for folder, manifest, teach in todo:
        teach().save(folder)
        (folder / "measures.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return bool(todo)


def teach_chest(count: int = CHESTS, *, epochs: int = 50, seed: int = SEED) -> Segmenter:
    """Heart and lungs in frontal radiographs."""
    drawn = [draw_one_chest(np.random.default_rng((seed, number)))[0] for number in range(count)]
    config = SegmenterConfig(structures=("heart", "lungs"), size=64, epochs=epochs, widths=(16, 32, 64, 64))
    return train_segmenter(drawn[count // 8 :], drawn[: count // 8], config)


def draw_one_chest(rng: np.random.Generator) -> tuple[Drawn, ChestFindings]:
    """A simulated radiograph at a quarter of its side, its outlines, and what it shows."""
    findings = ChestFindings(
        cardiothoracic_ratio=float(rng.uniform(0.38, 0.68)),
        opacity=float(rng.beta(1.2, 2.0)),
        effusion=(float(rng.uniform(0, 0.6)), float(rng.uniform(0, 0.6)))
        if rng.random() < 0.4
        else (0.0, 0.0),
        female=bool(rng.random() < 0.5),
        portable=bool(rng.random() < 0.35),
    )
    seed = int(rng.integers(2**31))
    picture = draw_chest(findings, np.random.default_rng(seed))
    masks = chest_masks(findings, np.random.default_rng(seed))
    small = np.ascontiguousarray(picture[::4, ::4])
    return Drawn(small[None], np.stack([masks[name][::4, ::4] for name in ("heart", "lungs")])), findings


def teach_echo(clips: int = CLIPS, *, epochs: int = 20, seed: int = SEED) -> Segmenter:
    """The cavity of the left ventricle in apical echoes."""
    drawn = []
    for number in range(clips):
        rng = np.random.default_rng((seed, 1, number))
        findings = EchoFindings(
            ejection_fraction=float(rng.uniform(0.18, 0.72)),
            diastolic_ml=float(rng.uniform(70, 180)),
            heart_rate=float(rng.uniform(55, 105)),
            frame_rate=float(rng.uniform(24, 50)),
            depth_mm=float(rng.uniform(140, 180)),
            gain=float(rng.uniform(0.8, 1.2)),
            noise=float(rng.uniform(0.1, 0.4)),
        )
        frames, masks = draw_echo(findings, rng), echo_masks(findings)
        for place in np.linspace(0, len(frames) - 1, FRAMES).astype(int):
            drawn.append(
                Drawn((frames[place] / np.float32(255))[None].astype(np.float32), masks[place][None])
            )
    config = SegmenterConfig(structures=("left ventricle",), size=80, epochs=epochs, widths=(16, 32, 64, 64))
    held = FRAMES * (clips // 8)
    return train_segmenter(drawn[held:], drawn[:held], config)


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    teach_all(Path(sys.argv[1]))

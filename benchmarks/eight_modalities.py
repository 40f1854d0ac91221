"""Risk, interval and exact Shapley values over eight modalities: the whole of `fusion.predict`.

The library has seven kinds of evidence. The eighth is the electrocardiogram that docs/fusion.md adds as its
example: this applies that page's edit to a copy of `fusion/`, and trains and asks a small bundle there, so
that calibration, intervals, heard masks, 256 coalitions and Owen values are those that a patient would get.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
TUNED, FRAMES = 60, 32


def timed(kinds: Sequence[str], *, times: int = 30, trained: int = 200) -> dict[str, list[float]]:
    """Fusion kind → seconds of each warm call, in a process of its own.

    trained  simulated patients that each bundle is trained on; and TUNED more to calibrate it
    """
    with tempfile.TemporaryDirectory() as held:
        folder = Path(held)
        shutil.copytree(ROOT / "fusion", folder / "fusion", ignore=shutil.ignore_patterns("__pycache__"))
        add_the_eighth(folder)
        ended = subprocess.run(
            [sys.executable, "-m", "benchmarks.eight_modalities", str(times), str(trained), *kinds],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"},
            capture_output=True,
            text=True,
            check=False,
        )
    if ended.returncode:
        raise RuntimeError(f"the bundle of eight modalities could not be asked:\n{ended.stderr[-2000:]}")
    found: dict[str, list[float]] = json.loads(ended.stdout.splitlines()[-1])
    return found


def add_the_eighth(folder: Path) -> None:
    """The edit of docs/fusion.md, on the copy of `fusion/` in that folder."""
    page = (ROOT / "docs" / "fusion.md").read_text().split("\n## A modality\n")[1]
    edit = re.search(r"```diff\n(.*?)```", page, re.DOTALL)
    assert edit is not None
    (folder / "ecg.diff").write_text(edit[1])
    subprocess.run(["git", "init", "-q", "."], cwd=folder, check=True)
    subprocess.run(["git", "apply", "--whitespace=nowarn", "ecg.diff"], cwd=folder, check=True)


def config_of(kind: str) -> Any:
    """All eight, two outcomes; embeddings as wide as the default encoders make them."""
    from benchmarks.simulated_patients import CHANNELS, FIELDS
    from fusion import FieldSpec, FusionConfig, FusionKind, Modality, OutcomeSpec

    return FusionConfig(
        outcomes=(OutcomeSpec("icu", "ICU admission", 336.0), OutcomeSpec("death", "Death", 720.0)),
        fields=FIELDS,
        channels=CHANNELS,
        genomics=tuple(FieldSpec(f"g{i}", f"Score {i}", low=-10, high=10) for i in range(5)),
        modalities=tuple(Modality),
        fusion=FusionKind(kind),
        cine_frames=FRAMES,
        volume_slices=FRAMES,
        epochs=3,
    )


def patients(config: Any, count: int) -> list[Any]:
    """Simulated: a hidden cause shows a little in each modality. The last patient has all eight; one in five
    of the others' pictures is missing."""
    from fusion import Example, NoteInput, PatientInputs, PixelInput, SeriesPoint
    from fusion.embedding import Embedder

    rng, embedder = np.random.default_rng(0), Embedder(config)
    versions = embedder.versions

    def pixels(name: str, key: str, rows: int, width: int, cause: float) -> tuple[PixelInput, ...]:
        version = next(v for m, v in versions.items() if m.value == name)
        made = (rng.normal(size=(rows, width)) * 0.5 + cause * 0.1).astype(np.float32)
        times = np.arange(rows, dtype=np.float32) * 40
        slice_mm = 5.0 if name == "volume" else None
        held = PixelInput(f"{name}{key}", _absent, times, {version: made}, slice_mm=slice_mm)
        return (held,) if rng.random() > 0.2 or int(key) == count - 1 else ()

    def numbers(names: Any, cause: float) -> dict[str, float]:
        return {name: float(np.clip(cause + rng.normal(), -9, 9)) for name in names}

    made = []
    for number in range(count):
        key, cause = str(number), float(rng.normal())
        sentences = (rng.normal(size=(3, embedder.text_width)) * 0.5 + cause * 0.1).astype(np.float32)
        text = next(v for m, v in versions.items() if m.value == "text")
        leads = {lead: tuple(float(x + cause) for x in rng.normal(size=3)) for lead in LEADS}
        inputs = PatientInputs(
            key=key,
            fields=dict(numbers((s.name for s in config.fields), cause)),
            genomics=dict(numbers((s.name for s in config.genomics), cause)),
            series=tuple(
                SeriesPoint(spec.name, hours, float(np.clip(cause + rng.normal(), -9, 9)))
                for spec in config.channels
                for hours in (1.0, 5.0, 20.0)
            ),
            notes=(NoteInput(key, "Short of breath. No fever. Oxygen given.", {text: sentences}),),
            images=pixels("image", key, 1, embedder.image_width, cause),
            cines=pixels("cine", key, FRAMES, embedder.cine_width, cause),
            volumes=pixels("volume", key, FRAMES, embedder.volume_width, cause),
            ecg=leads,  # type: ignore[call-arg]  # of the copy
        )
        chance = 1 / (1 + np.exp(1 - 1.5 * cause))
        labels = {"icu": int(rng.random() < chance), "death": int(rng.random() < chance / 2)}
        made.append(Example(inputs, labels, key, {"sex": "female" if rng.random() < 0.5 else "male"}))
    return made


def _absent() -> Any:
    raise FileNotFoundError("only embeddings are kept")


def ask(times: int, trained: int, kinds: Sequence[str]) -> None:
    """In the copy: train a bundle of each kind, ask about one patient who has all eight, print seconds."""
    import torch

    import fusion
    from benchmarks import measuring

    torch.set_num_threads(1)
    found = {}
    for kind in kinds:
        config = config_of(kind)
        everyone = patients(config, trained + TUNED + 1)
        bundle = fusion.train(everyone[:trained], everyone[trained:-1], config)
        whole = [everyone[-1].inputs]
        (said,) = fusion.predict(bundle, whole)
        assert len(said.present) == 8 == len(said.outcomes[0].contributions), said.missing
        assert all(one.low < one.high for one in said.outcomes)
        found[kind] = measuring.timed(lambda: fusion.predict(bundle, whole), times)  # noqa: B023
    print(json.dumps(found))


if __name__ == "__main__":
    ask(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])

"""How often the out-of-scope detector is wrong, on real files: chest radiographs left out, and other things.

    python -m benchmarks.study cxr_covid DIR --part scope

The detector is fitted on the training patients of each of five folds, as `fusion.train` fits it, and asked
about the pictures of the patients left out (false alarms), about the same pictures the wrong way (detection),
and about real files of other kinds from the folders beside DIR. Nothing but training radiographs is learned
from, and no threshold is chosen here.
"""

from __future__ import annotations

import csv
import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.stats import binomtest

import ehr
import fusion
from fusion import Frames, FusionConfig, Modality, OutcomeSpec, PatientInputs, PixelInput
from fusion.embedding import Embedder
from fusion.research import read_collection
from fusion.scope import WRONG, ImageScope
from fusion.scope_fitting import fit_scope
from fusion.train import assign_folds

Floats = NDArray[np.float32]
FOLDS, MOST = 5, 300  # folds of patients; files of another set at most
SIDE = 320  # pixels to which radiographs are shrunk before anything is done to them
CHEST_FILES = ("chest_xray/", "RG1_J2KI")  # radiographs of the chest among the DICOM files
BACKBONE = "efficientnet_lite0"
SHOWS = (
    "What it shows: without a single picture of another kind in training, the distance from the mean of "
    "the training pictures tells other body parts and modalities, and the self-supervised classifier "
    "tells the wrong way round and inverted grey scale. A picture that is black to two thirds is a kind "
    "of its own in the fit since a first run without it found 70 % of such pictures. What it does not: a "
    "picture of which one side is black is mostly missed, a radiograph mirrored left to right is not "
    "found (nor looked for), other radiographs than of the chest are too few here to be judged, and the "
    "rate of false alarms holds for pictures like those of training only: another hospital's may be "
    "called out of scope more often."
)


def run(folder: Path, *, repeats: int, seed: int, quick: bool) -> str:
    """The table, in Markdown."""
    size, pictures, most = (96, 40, 40) if quick else (224, 120, MOST)
    config = FusionConfig(
        outcomes=(OutcomeSpec("event", "event", 24.0),),
        modalities=(Modality.IMAGE,),
        image_backbone=BACKBONE,
        image_size=size,
        scope_pictures=pictures,
        seed=seed,
    )
    held, groups = _radiographs(folder)
    if quick:
        held, groups = held[:80], groups[:80]
    embedder = Embedder(config)
    backbone = _Remembering(embedder.image_backbone)
    embedder.__dict__["image_backbone"] = backbone  # the same wrong pictures are asked for in several folds

    def embed(frames: Sequence[Floats]) -> Floats:
        rows = [np.zeros((0, backbone.width), np.float32)]
        rows += [backbone.embed(np.ascontiguousarray(frame), size) for frame in frames]
        return np.concatenate(rows)

    right = np.concatenate([embedder.image(p)[:1] for p in held])
    _tell(f"{len(held)} radiographs embedded")
    read = [p.read().values[:1] for p in held]
    wrong = {words: embed([make(frame) for frame in read]) for words, make in _ways().items()}
    others = {name: (embed(frames), named) for name, (frames, named) in _others(folder, most, seed).items()}
    _tell("all other files embedded")
    fold_of = assign_folds(groups, np.zeros((len(groups), 1), np.float32), FOLDS, seed)
    scopes = [_fit(held, groups, fold_of != fold, config, embedder) for fold in range(FOLDS)]
    _tell("detectors fitted")
    stated = float(np.mean([scope.false_alarms for scope in scopes]))
    lines = [
        _line("chest radiographs of patients left out (false alarms)", _cross(scopes, right, fold_of), groups)
    ]
    lines += [_line(words, _cross(scopes, rows, fold_of), groups) for words, rows in wrong.items()]
    for name, (rows, named) in others.items():
        lines.append(_line(name, np.mean([_alarms(scope, rows) for scope in scopes], axis=0), named))
    return _page(folder, lines, stated, pictures, size, len(held), len(set(groups)), quick)


class _Remembering:
    """A backbone that embeds the same frames only once."""

    def __init__(self, backbone: fusion.ImageBackbone) -> None:
        self.width, self.version, self._backbone = backbone.width, backbone.version, backbone
        self._made: dict[str, Floats] = {}

    def embed(self, values: Floats, size: int) -> Floats:
        """As `ImageBackbone.embed`."""
        key = hashlib.sha256(f"{values.shape}".encode() + np.ascontiguousarray(values).tobytes()).hexdigest()
        if key not in self._made:
            self._made[key] = self._backbone.embed(values, size)
        return self._made[key]


def _shrunk(pixels: PixelInput) -> PixelInput:
    """The picture with its longer side at most SIDE pixels, read once."""
    picture = Image.fromarray(pixels.read().values[0])
    picture.thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR)
    frame = np.clip(np.asarray(picture, np.float32), 0, 1)[None]
    return replace(pixels, read=lambda: Frames(frame, np.zeros(1, np.float32)))


def _radiographs(folder: Path) -> tuple[list[PixelInput], list[str]]:
    """Every picture of the collection once, with its patient."""
    found: dict[str, tuple[PixelInput, str]] = {}
    for task in read_collection(folder, "cxr_covid").tasks.values():
        for example in task.examples:
            for pixels in example.inputs.images:
                found.setdefault(pixels.key, (pixels, example.group))
    return [_shrunk(p) for p, _ in found.values()], [g for _, g in found.values()]


def _fit(
    held: Sequence[PixelInput],
    groups: Sequence[str],
    seen: NDArray[np.bool_],
    config: FusionConfig,
    embedder: Embedder,
) -> ImageScope:
    rows = np.flatnonzero(seen)
    inputs = [PatientInputs(key=str(i), images=(held[i],)) for i in rows]
    scope = fit_scope(inputs, [groups[i] for i in rows], config, embedder)
    assert scope is not None
    assert scope.image is not None
    return scope.image


def _ways() -> dict[str, Callable[[Floats], Floats]]:
    """The same radiographs the wrong way; mirrored left to right is not looked for, only reported."""
    ways = {
        "upside-down": WRONG["upside_down"][1],
        "flipped top to bottom": WRONG["flipped"][1],
        "turned left by a quarter": WRONG["turned_left"][1],
        "turned right by a quarter": WRONG["turned_right"][1],
        "inverted grey scale": WRONG["inverted"][1],
        "lower two thirds black": WRONG["mostly_black"][1],
        "right half black (no such picture in the fit)": lambda x: np.concatenate(
            [x[..., : x.shape[-1] // 2], 0 * x[..., x.shape[-1] // 2 :]], axis=-1
        ),
        "lower three quarters black (no such picture in the fit)": lambda x: np.concatenate(
            [x[..., : x.shape[-2] // 4, :], 0 * x[..., x.shape[-2] // 4 :, :]], axis=-2
        ),
        "mirrored left to right (not looked for)": lambda x: x[..., ::-1],
    }
    return ways


def _others(folder: Path, most: int, seed: int) -> dict[str, tuple[list[Floats], list[str]]]:
    """Files of other kinds: name → (pictures float32 [1, H, W], what each belongs to); only what is there."""
    rng = np.random.default_rng(seed)
    beside = folder.resolve().parent
    found: dict[str, tuple[list[Floats], list[str]]] = {}
    for name, reader in (
        ("photographs of skin (dermatoscope)", _skin),
        ("lung ultrasound, first frame of each clip", _ultrasound),
        ("brain MR slices (FLAIR)", _brain),
    ):
        kept = reader(beside, rng, most)
        if kept[0]:
            found[name] = kept
    files = _dicom(beside / "dicom")
    if files:
        chest = [i for i, name in enumerate(files[1]) if any(part in name for part in CHEST_FILES)]
        rest = [i for i in range(len(files[1])) if i not in chest]
        found["DICOM files other than chest radiographs"] = (
            [files[0][i] for i in rest],
            [files[1][i] for i in rest],
        )
        found["DICOM files that are chest radiographs (false alarms)"] = (
            [files[0][i] for i in chest],
            [files[1][i] for i in chest],
        )
    made = _made(rng)
    found["blank, noise and pages of text (made here)"] = (made, [str(i) for i in range(len(made))])
    return found


def _grey(path: Path) -> Floats:
    with Image.open(path) as picture:
        return (np.asarray(picture.convert("L"), np.float32) / 255)[None]


def _skin(beside: Path, rng: np.random.Generator, most: int) -> tuple[list[Floats], list[str]]:
    table = beside / "skin_ham10000" / "lesions.csv"
    if not table.exists():
        return [], []
    rows = list(csv.DictReader(table.open()))
    chosen = [rows[i] for i in rng.permutation(len(rows))[:most]]
    return [_grey(table.parent / "images" / row["image_file"]) for row in chosen], [
        row["lesion_id"] for row in chosen
    ]


def _brain(beside: Path, rng: np.random.Generator, most: int) -> tuple[list[Floats], list[str]]:
    table = beside / "brain_lgg" / "slices.csv"
    if not table.exists():
        return [], []
    rows = list(csv.DictReader(table.open()))
    chosen = [rows[i] for i in rng.permutation(len(rows))[:most]]
    frames = []
    for row in chosen:
        with Image.open(table.parent / "slices" / row["file"]) as picture:
            frames.append((np.asarray(picture.convert("RGB"), np.float32)[..., 1] / 255)[None])
    return frames, [row["patient"] for row in chosen]


def _ultrasound(beside: Path, rng: np.random.Generator, most: int) -> tuple[list[Floats], list[str]]:
    table = beside / "lung_ultrasound" / "clips.csv"
    if not table.exists():
        return [], []
    import cv2

    frames, groups = [], []
    for row in list(csv.DictReader(table.open()))[:most]:
        path = next((table.parent / "clips").glob(f"{Path(row['clip']).stem}.*"), None)
        is_read, frame = cv2.VideoCapture(str(path)).read() if path else (False, None)
        if is_read:
            frames.append((cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY).astype(np.float32) / 255)[None])
            groups.append(row["patient_group"])
    return frames, groups


def _dicom(folder: Path) -> tuple[list[Floats], list[str]]:
    """First frame of every file that `ehr` can read."""
    frames, names = [], []
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix != ".csv"):
        try:
            clip = ehr.read_clip([path])
        except ehr.EhrError:
            continue
        frames.append(clip.frames[:1])
        names.append(str(path.relative_to(folder)))
    return frames, names


def _made(rng: np.random.Generator) -> list[Floats]:
    made = [np.full((1, 256, 256), value, np.float32) for value in (0.0, 0.1, 0.5, 0.9, 1.0)]
    made += [rng.random((1, 256, 256), dtype=np.float32) for _ in range(5)]
    for i in range(10):
        page = Image.new("L", (400, 300), 0 if i % 2 else 255)
        pen = ImageDraw.Draw(page)
        for line in range(14):
            pen.text((10, 10 + 20 * line), "Findings and impression " * (1 + i % 3), fill=255 if i % 2 else 0)
        made.append((np.asarray(page, np.float32) / 255)[None])
    return made


def _alarms(scope: ImageScope, rows: Floats) -> NDArray[np.float64]:
    return np.array([bool(why) for why in scope.reasons(rows)], float)


def _cross(scopes: Sequence[ImageScope], rows: Floats, fold_of: NDArray[np.int64]) -> NDArray[np.float64]:
    """Each picture judged by the detector that never saw its patient."""
    alarms = np.zeros(len(rows))
    for fold, scope in enumerate(scopes):
        out = fold_of == fold
        alarms[out] = _alarms(scope, rows[out])
    return alarms


def _line(name: str, alarms: NDArray[np.float64], groups: Sequence[str]) -> str:
    """Share of files called out of scope; the interval counts groups, as files of one group are alike."""
    units = len(set(groups))
    share = float(alarms.mean())
    interval = binomtest(round(share * units), units).proportion_ci(method="wilson")
    return f"| {name} | {len(alarms)} / {units} | {share:.3f} | {interval.low:.3f} to {interval.high:.3f} |"


def _page(
    folder: Path,
    lines: Sequence[str],
    stated: float,
    pictures: int,
    size: int,
    held: int,
    patients: int,
    quick: bool,
) -> str:
    reduced = " (quick run: fewer pictures, smaller)" if quick else ""
    return "\n".join(
        [
            f"## Out of scope: chest radiographs, real files{reduced}",
            "",
            "`python -m benchmarks.study cxr_covid DIR --part scope`",
            "",
            f"{held} radiographs of {patients} patients in {FOLDS} patient-grouped folds; {BACKBONE} at "
            f"{size} pixels (shrunk to {SIDE} first), {pictures} training pictures embedded wrong in "
            f"{len(WRONG)} ways to fit; stated rate of false alarms at most {stated:.3f}. Files of other "
            f"kinds are judged by all {FOLDS} detectors and averaged. 95 % Wilson intervals over "
            "patients, lesions, clip groups or files.",
            "",
            "| pictures | files / groups | called out of scope | 95 % interval |",
            "| --- | --- | --- | --- |",
            *lines,
            "",
            SHOWS,
        ]
    )


def _tell(said: str) -> None:
    print(said, file=sys.stderr, flush=True)


if __name__ == "__main__":
    print(run(Path(sys.argv[1]), repeats=1, seed=0, quick="--quick" in sys.argv))

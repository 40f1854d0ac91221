"""A model exported for small machines: the same answers without torch, and refusals that say what to do."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fusion
from fusion import (
    Bundle,
    BundleMismatch,
    Frames,
    FusionConfig,
    FusionKind,
    Modality,
    NoteInput,
    PatientInputs,
    PixelInput,
)
from fusion.backbones import ImageBackbone, load_backbone
from fusion.edge import main
from fusion.edge_export import _quantise, export_bundle
from fusion.edge_inputs import read_inputs
from fusion.edge_int8 import quantise_encoder, read_check_pictures
from fusion.edge_model import EdgeModel
from fusion.errors import BadInput, ExportMismatch
from fusion.export import TOLERANCE, Int8Check, export_backbone, quantise
from fusion.serving import serve
from tests.fusion.simulated import examples, make_config

RECORD = {
    "fields": {"f0": 1.5, "flag": 1, "f1": None},
    "genomics": {"g0": 1},
    "series": [{"channel": "c0", "hours_before": h, "value": 0.2 * h} for h in (1.0, 5.0)],
    "notes": [{"text": "Patient is well. Oxygen was given.", "hours_before": 2.0}],
}


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    everyone = examples(60, 1)
    return fusion.train(everyone[:40], everyone[40:], make_config(epochs=2))


@pytest.fixture(scope="module")
def edge(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("edge")
    assert max(export_bundle(bundle, folder).values()) <= TOLERANCE
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("patient")
    rng = np.random.default_rng(3)
    (folder / "record.json").write_text(json.dumps(RECORD))
    Image.fromarray(rng.integers(0, 255, (60, 48), dtype=np.uint8)).save(folder / "picture.png")
    values = rng.random((6, 40, 40), dtype=np.float32)
    np.savez(folder / "cine.npz", values=values, times_ms=np.arange(6, dtype=np.float32) * 40)
    return [folder / "record.json", folder / "picture.png", folder / "cine.npz"]


def same_patient(files: list[Path]) -> PatientInputs:
    """What the clinic would give `fusion.predict`."""
    grey = np.asarray(Image.open(files[1]), np.float32) / 255
    with np.load(files[2]) as kept:
        clip = Frames(kept["values"], kept["times_ms"])
    picture = Frames(grey[None], np.zeros(1, np.float32))
    return PatientInputs(
        key="p",
        fields={name: None if v is None else float(v) for name, v in RECORD["fields"].items()},  # type: ignore[attr-defined]
        genomics={"g0": 1.0},
        series=tuple(
            fusion.SeriesPoint(p["channel"], p["hours_before"], p["value"]) for p in RECORD["series"]
        ),  # type: ignore[index, arg-type]
        notes=(NoteInput("n", "Patient is well. Oxygen was given.", hours_before=2.0),),
        images=(PixelInput("i", lambda: picture, picture.times_ms),),
        cines=(PixelInput("c", lambda: clip, clip.times_ms),),
    )


def test_the_same_risks_and_contributions_as_the_original(
    bundle: Bundle, edge: Path, files: list[Path]
) -> None:
    answer = EdgeModel(edge).predict(read_inputs(files))
    (wanted,) = fusion.predict(bundle, [same_patient(files)])
    for got, whole in zip(answer.risks, wanted.outcomes, strict=True):
        assert got.risk == pytest.approx(whole.risk, abs=1e-4)
        assert (got.low, got.high) == pytest.approx((whole.low, whole.high), abs=1e-4)
        assert [c.modality for c in got.contributions] == [c.modality for c in whole.contributions]
        assert [c.logit for c in got.contributions] == pytest.approx(
            [c.logit for c in whole.contributions], abs=1e-3
        )
        assert sum(c.points for c in got.contributions) == pytest.approx(got.risk - got.base_rate, abs=1e-9)


def test_any_subset_of_files_is_enough(bundle: Bundle, edge: Path, files: list[Path]) -> None:
    model = EdgeModel(edge)
    alone = model.predict(read_inputs(files[1:2]))
    assert Modality.TABULAR in alone.missing
    assert [c.modality for c in alone.risks[0].contributions] == ["image"]
    nothing = model.predict(PatientInputs(key="p"))
    assert nothing.risks == ()
    assert nothing.out_of_scope


def record_only(kind: FusionKind) -> FusionConfig:
    """Quick to export: no backbones."""
    return make_config(epochs=1, fusion=kind, folds=2, modalities=(Modality.TABULAR, Modality.SERIES))


@pytest.mark.parametrize("kind", [FusionKind.GATED, FusionKind.ATTENTION, FusionKind.STACKING])
def test_every_fusion_can_be_exported(tmp_path: Path, kind: FusionKind) -> None:
    everyone = examples(50, 2)
    trained = fusion.train(everyone[:40], everyone[40:], record_only(kind))
    assert max(export_bundle(trained, tmp_path).values()) <= TOLERANCE
    known = everyone[45].inputs
    (wanted,) = fusion.predict(trained, [PatientInputs(key="p", fields=known.fields, series=known.series)])
    got = EdgeModel(tmp_path).predict(PatientInputs(key="p", fields=known.fields, series=known.series))
    assert [r.risk for r in got.risks] == pytest.approx([o.risk for o in wanted.outcomes], abs=1e-4)


WITHOUT = (
    "import sys\n"
    "for name in ('torch', 'transformers', 'django', 'sklearn', 'onnx'): sys.modules[name] = None\n"
    "from fusion.edge import main\n"
    "sys.exit(main(sys.argv[1:]))\n"
)


def test_it_runs_where_neither_torch_nor_django_is(edge: Path, files: list[Path]) -> None:
    command = [sys.executable, "-c", WITHOUT, str(edge), *map(str, files), "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    assert 0 < json.loads(ended.stdout)["risks"][0]["risk"] < 1


def test_what_it_says_to_people(edge: Path, files: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(edge), *map(str, files)]) == 0
    said = capsys.readouterr().out
    assert "ICU admission within 14 days" in said
    assert "Among patients scored alike" in said


BAD = [
    ("notes.docx", b"x", "expected .json"),
    ("record.json", b"{nonsense", "not a readable JSON"),
    ("record.json", b'{"vitals": {}}', "vitals"),
    ("record.json", b'{"series": [{"channel": "c0"}]}', "hours_before"),
    ("picture.png", b"not a picture", "not a readable picture"),
    ("cine.npz", b"not an archive", "times_ms"),
]


@pytest.mark.parametrize(("name", "content", "words"), BAD)
def test_bad_files_are_refused_in_words(
    edge: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert main([str(edge), str(tmp_path / name)]) == 2
    assert words in capsys.readouterr().err


def test_a_changed_file_or_another_folder_is_refused(
    edge: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), "x.png"]) == 2
    shutil.copytree(edge, tmp_path / "edge")
    changed = tmp_path / "edge" / "fuse.onnx"
    changed.write_bytes(changed.read_bytes() + b" ")
    with pytest.raises(BundleMismatch, match=r"fuse\.onnx"):
        EdgeModel(tmp_path / "edge")


def test_a_folder_of_another_digest_is_refused(
    tmp_path: Path, files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Of an edge folder and of a bundle; each consistent in itself after the change."""
    everyone = examples(50, 2)
    trained = fusion.train(everyone[:40], everyone[40:], record_only(FusionKind.LATE))
    digest, whole, made = trained.save(tmp_path / "bundle"), str(tmp_path / "bundle"), str(tmp_path / "edge")
    assert main(["--export", whole, made, "--digest", digest]) == 0
    of_edge = capsys.readouterr().out.split("digest: ")[1].strip()
    record = str(files[0])
    assert main([made, record, "--digest", of_edge]) == 0
    for folder, known, name in ((made, of_edge, "edge.json"), (whole, digest, "metadata.json")):
        said = json.loads((Path(folder) / name).read_text())
        said["calibration"]["base_logit"][0] += 0.5
        (Path(folder) / name).write_text(json.dumps(said))
        capsys.readouterr()
        assert main([folder, record, "--digest", known]) == 2
        told = capsys.readouterr()
        assert "was registered" in told.err
        assert not told.out
    assert main([made, record]) == 0, "by itself it is an edge folder"
    assert main(["--export", whole, str(tmp_path / "again"), "--digest", digest]) == 2
    assert not (tmp_path / "again").exists()


def test_an_edge_folder_whose_numbers_cannot_be_is_refused(edge: Path, tmp_path: Path) -> None:
    shutil.copytree(edge, tmp_path / "edge")
    said = json.loads((edge / "edge.json").read_text())
    said["intervals"][0]["q"] = -3.0
    (tmp_path / "edge" / "edge.json").write_text(json.dumps(said))
    with pytest.raises(BundleMismatch, match=r"edge\.json: intervals\[0\]\.q is -3\.0, expected"):
        EdgeModel(tmp_path / "edge")


def test_a_copy_that_answers_otherwise_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = load_backbone("small_cnn")
    frames = backbone.prepare(np.random.default_rng(0).random((2, 40, 40), dtype=np.float32), 32)
    monkeypatch.setattr("fusion.export.TOLERANCE", -1.0)
    with pytest.raises(ExportMismatch, match="differs"):
        export_backbone(backbone, tmp_path / "a.onnx", frames)
    assert not list(tmp_path.iterdir())


def test_int8_is_kept_only_where_it_agrees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = load_backbone("small_cnn")
    frames = backbone.prepare(np.random.default_rng(0).random((16, 40, 40), dtype=np.float32), 32)
    export_backbone(backbone, tmp_path / "a.onnx", frames[:2])
    check = quantise(tmp_path / "a.onnx", tmp_path / "int8.onnx", frames.numpy())
    assert check.passed
    assert (tmp_path / "int8.onnx").exists()
    monkeypatch.setattr("fusion.export.LEAST_COSINE", 1.1)
    check = quantise(tmp_path / "a.onnx", tmp_path / "other.onnx", frames.numpy())
    assert not check.passed
    assert not (tmp_path / "other.onnx").exists()
    with pytest.raises(BadInput, match="16 pictures"):
        quantise(tmp_path / "a.onnx", tmp_path / "b.onnx", frames.numpy()[:3])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 grey pictures, the second ten brighter, in a folder of their own."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(5)
    for number in range(20):
        shown = rng.integers(0, 128, (40, 40)) + (100 if number >= 10 else 0)
        Image.fromarray(shown.astype(np.uint8)).save(folder / f"{number:02}.png")
    return folder


def labels_of(pictures: Path, path: Path) -> Path:
    lines = [f"{file.name},{int(int(file.stem) >= 10)}" for file in sorted(pictures.iterdir())]
    path.write_text("\n".join(["picture,label", *lines]))
    return path


def test_an_int8_encoder_that_passes_is_what_the_small_machine_uses(
    bundle: Bundle, files: list[Path], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle.save(tmp_path / "bundle")
    edge = tmp_path / "edge"
    asked = ["--export", str(tmp_path / "bundle"), str(edge), "--int8", str(pictures)]
    assert main(asked) == 0
    said = capsys.readouterr().out
    assert "image-1.onnx: int8; smallest cosine 0.99" in said
    assert "AUROC not checked: no labels" in said
    assert "image-3.onnx: stays float32, 0 colour pictures can be used, and 16 are needed" in said
    assert "cine-1.onnx: stays float32, 0 frames of clips" in said
    assert not (edge / "image-1.onnx").exists()
    opened: list[str] = []
    model = EdgeModel(edge)
    original = model.open
    model.open = lambda name: opened.append(name) or original(name)  # type: ignore[method-assign, func-returns-value]
    answer = model.predict(read_inputs(files))
    assert "image-1.int8.onnx" in opened
    (wanted,) = fusion.predict(bundle, [same_patient(files)])
    assert [r.risk for r in answer.risks] == pytest.approx([o.risk for o in wanted.outcomes], abs=0.02)


@pytest.fixture
def encoder(tmp_path: Path) -> tuple[Path, dict[str, Any], ImageBackbone]:
    """An exported encoder of grey pictures, and its entry in edge.json."""
    backbone = load_backbone("small_cnn")
    frames = backbone.prepare(np.random.default_rng(0).random((2, 40, 40), dtype=np.float32), 32)
    export_backbone(backbone, tmp_path / "image-1.onnx", frames)
    return tmp_path, {"1": {"file": "image-1.onnx"}}, backbone


@pytest.mark.parametrize("limit", ["LEAST_COSINE", "MOST_AUROC_LOST"])
def test_an_int8_encoder_that_does_not_pass_is_not_kept(
    encoder: tuple[Path, dict[str, Any], ImageBackbone],
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
) -> None:
    folder, files, backbone = encoder
    monkeypatch.setattr(f"fusion.export.{limit}", {"LEAST_COSINE": 1.1, "MOST_AUROC_LOST": -1.0}[limit])
    shown = read_check_pictures([pictures], labels_of(pictures, folder / "labels.csv"))
    (told,) = quantise_encoder(folder, files, backbone, 32, shown)
    assert not told["kept"]
    assert "stays float32, int8 refused" in told["said"]
    assert files["1"]["file"] == "image-1.onnx"
    assert (folder / "image-1.onnx").exists()
    assert not (folder / "image-1.int8.onnx").exists()


def test_labels_are_those_of_the_half_that_checks(
    encoder: tuple[Path, dict[str, Any], ImageBackbone], pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, files, backbone = encoder
    given: dict[str, Any] = {}

    def seen(path: Path, out: Path, frames: np.ndarray, *, labels: list[int]) -> Int8Check:
        given.update(frames=frames, labels=labels)
        return Int8Check(0.5, 10)

    monkeypatch.setattr("fusion.edge_int8.quantise", seen)
    shown = read_check_pictures([pictures], labels_of(pictures, folder / "labels.csv"))
    quantise_encoder(folder, files, backbone, 32, shown)
    assert given["labels"] == [0] * 5 + [1] * 5
    bright = given["frames"][10:].mean(axis=(1, 2, 3))
    assert bright[:5].max() < bright[5:].min()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (["--export", "b", "e", "--labels", "x.csv"], "--labels with --int8"),
        (["e", "x.png", "--int8", "x.png"], "--int8 goes with --export"),
    ],
)
def test_what_int8_needs_is_said(asked: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(asked) == 2
    assert words in capsys.readouterr().err


def test_too_few_pictures_or_labels_are_said(bundle: Bundle, pictures: Path, tmp_path: Path) -> None:
    few = read_check_pictures(sorted(pictures.iterdir())[:4])
    with pytest.raises(BadInput, match=r"int8 needs 16 pictures.*4 grey pictures can be used"):
        _quantise(bundle, {"image": {"files": {"1": {"file": "image-1.onnx"}}}}, tmp_path, few)
    (tmp_path / "labels.csv").write_text("picture,label\n00.png,1\n")
    with pytest.raises(BadInput, match=r"labels\.csv has no label of 01\.png"):
        read_check_pictures([pictures], tmp_path / "labels.csv")
    (tmp_path / "labels.csv").write_text("file,shows\n00.png,ill\n")
    with pytest.raises(BadInput, match="columns picture and label"):
        read_check_pictures([pictures], tmp_path / "labels.csv")


def test_workers_are_served_the_same_embeddings(tmp_path: Path) -> None:
    original = load_backbone("small_cnn")
    served = serve(original, tmp_path)
    rng = np.random.default_rng(0)
    for values in (rng.random((19, 30, 44), dtype=np.float32), rng.random((1, 3, 30, 44), dtype=np.float32)):
        assert np.abs(served.embed(values, 32) - original.embed(values, 32)).max() <= TOLERANCE
    assert (served.version, served.width) == (original.version, original.width)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.onnx")}
    serve(original, tmp_path).embed(rng.random((1, 30, 44), dtype=np.float32), 32)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.onnx")} == kept  # made once
    for path in kept:
        path.write_bytes(b"something else")
    with pytest.raises(BundleMismatch, match="made anew"):
        serve(original, tmp_path).embed(rng.random((1, 30, 44), dtype=np.float32), 32)

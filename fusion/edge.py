"""A model on a small machine: `python -m fusion.edge EDGE FILE…`. No Django, no broker, no torch.

    python -m fusion.edge --export BUNDLE EDGE            # once, where torch is installed
    python -m fusion.edge --export BUNDLE EDGE --int8 PICTURES   # smaller and faster, where a check allows it
    python -m fusion.edge EDGE record.json picture.png    # anywhere numpy, Pillow and ONNX Runtime are

A bundle may stand where EDGE does: then it is exported to a temporary folder first.

PICTURES are files or folders of the site's own pictures and clips, 16 or more of a kind: half of them
calibrate the int8 encoders, the other half checks them. One is kept where each embedding points the same way
(cosine 0.995) and, where --labels tells what the pictures show, where AUROC falls by 0.002 at most; what was
found is printed.

--digest refuses a folder that is not the one it was taken of: of a bundle what its saving said, of an EDGE
what --export printed (the SHA-256 of its edge.json, which holds that of every other file).

A record is JSON: {"fields": {name: value}, "genomics": {…},
"series": [{"channel", "hours_before", "value"}], "notes": [{"text", "hours_before"}],
"attributes": {"sex": …}} (subgroups, for the interval); what is not there is
missing. Pictures are PNG or JPEG files. A cine, decoded already, is an .npz file with `values` [T, H, W] in
[0, 1] and `times_ms` [T]. DICOM files are turned into such by `python -m ehr.dicom FILE… OUT.npz`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from fusion.edge_inputs import read_inputs
from fusion.edge_model import DESCRIPTION, EdgeAnswer, EdgeModel, edge_digest
from fusion.errors import BadInput, FusionError


def to_text(answer: EdgeAnswer) -> str:
    """What a person reads."""
    lines = [f"{name}: left out, {why}" for name, why in answer.left_out.items()]
    if answer.out_of_scope:
        lines.append(f"Not scored: {answer.out_of_scope}")
    lines += [risk.summary for risk in answer.risks]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Export, or answer about one patient; 2 when something is wrong with what was given."""
    parser = argparse.ArgumentParser(
        prog="python -m fusion.edge",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, help="an edge folder, or a bundle (needs torch)")
    parser.add_argument("files", type=Path, nargs="*", help="record, pictures, cine; with --export: EDGE")
    parser.add_argument("--export", action="store_true", help="turn the bundle into an edge folder")
    parser.add_argument(
        "--int8", type=Path, nargs="+", metavar="PICTURES", help="with --export: try int8 encoders on these"
    )
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="CSV",
        help="with --int8: columns picture (file name) and label (0 or 1)",
    )
    parser.add_argument("--json", action="store_true", help="numbers for programs instead of sentences")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--text-backbone", type=Path, metavar="FOLDER", help="where a bundle's text encoder lies here"
    )
    parser.add_argument("--digest", metavar="SHA256", help="of the folder: one that differs is refused")
    asked = parser.parse_args(arguments)
    try:
        if (asked.int8 and not asked.export) or (asked.labels and not asked.int8):
            raise BadInput("--int8 goes with --export, and --labels with --int8")
        if asked.export:
            return _export(asked)
        if not asked.files:
            raise BadInput("no file to look at: name a record, a picture or a cine")
        inputs = read_inputs(asked.files)
        with _opened(asked) as model:
            answer = model.predict(inputs)
    except FusionError as fault:
        print(fault, file=sys.stderr)
        return 2
    print(json.dumps(asdict(answer), indent=1) if asked.json else to_text(answer))
    return 0


def _export(asked: argparse.Namespace) -> int:
    if len(asked.files) != 1:
        raise BadInput("--export takes a bundle and the folder to write")
    from fusion.bundle import Bundle
    from fusion.edge_export import export_bundle
    from fusion.edge_int8 import read_check_pictures

    (folder,) = asked.files
    pictures = read_check_pictures(asked.int8, asked.labels) if asked.int8 else None
    whole = Bundle.load(asked.model, digest=asked.digest, text_backbone=asked.text_backbone)
    for name, difference in export_bundle(whole, folder, int8=pictures).items():
        print(f"{name}: largest difference from the original {difference:.1e}")
    for tried in json.loads((folder / DESCRIPTION).read_text())["int8"]:
        print(tried["said"])
    print(f"digest: {edge_digest(folder)}")
    return 0


@contextmanager
def _opened(asked: argparse.Namespace) -> Iterator[EdgeModel]:
    """The edge folder, or the bundle exported to a folder that is gone afterwards."""
    model: Path = asked.model
    if (model / DESCRIPTION).exists() or not (model / "metadata.json").exists():
        yield EdgeModel(model, threads=asked.threads, digest=asked.digest)
        return
    try:
        from fusion.bundle import Bundle
        from fusion.edge_export import export_bundle
    except ImportError as fault:
        raise BadInput("this is a bundle; export it first where torch is installed (--export)") from fault
    with tempfile.TemporaryDirectory() as scratch:
        whole = Bundle.load(model, digest=asked.digest, text_backbone=asked.text_backbone)
        export_bundle(whole, Path(scratch))
        yield EdgeModel(Path(scratch), threads=asked.threads)


if __name__ == "__main__":
    sys.exit(main())

"""DICOM: sound files with bytes turned, cut, doubled, lengths that lie, nesting without end, small bombs."""

from __future__ import annotations

import contextlib
import io
import random
import struct
import zlib
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import JPEGBaseline8Bit, RLELossless

import ehr
from cds.patients.models import SetAside
from cds.studies import receiving
from cds.studies.models import Instance, Series, Study
from ehr.dicom import guard
from tests.ehr.dicom.making import make_dataset
from tests.factories import NOW, TESTS, make_source
from tests.fuzz.examples import SEEDS, few, forgotten, many
from tests.shared import SHARED

pytestmark = pytest.mark.django_db
LIMITS = replace(
    guard.DEFAULT,
    inflated_bytes=8 * guard.MIB,
    frame_bytes=32 * guard.MIB,
    memory_bytes=1024 * guard.MIB,
    seconds=30.0,
)
EXTREMES = (0, 1, 2, 0x7F, 0xFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF)
NAMES = ehr.Pseudonyms(b"f" * 32)
SMALL = 60_000  # bytes of a real file worth bending


def _bytes_of(data: Any) -> bytes:
    held = io.BytesIO()
    data.save_as(held, enforce_file_format=True)
    return held.getvalue()


def _made() -> list[bytes]:
    """Plain, multi-frame, in colour, compressed, nested, deflated."""
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    plain = make_dataset(ramp, BurnedInAnnotation="NO", WindowCenter=128, WindowWidth=256)
    cine = make_dataset(np.stack([ramp] * 3), FrameTime=33, BurnedInAnnotation="NO")
    deep = make_dataset(ramp.astype(np.uint16), BurnedInAnnotation="NO", PixelSpacing=[0.5, 0.5])
    for _ in range(3):
        item = Dataset()
        item.ReferencedSOPInstanceUID, item.CodeValue = "1.2.3", "X"
        deep.ReferencedImageSequence = Sequence([item, item])
    jpeg = make_dataset(ramp, BurnedInAnnotation="NO")
    content = io.BytesIO()
    Image.fromarray(ramp).save(content, "JPEG", comment=b"hello")
    jpeg.PixelData = encapsulate([content.getvalue() + b"\0" * (len(content.getvalue()) % 2)])
    jpeg["PixelData"].VR, jpeg["PixelData"].is_undefined_length = "OB", True
    jpeg.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    rle = make_dataset(ramp, BurnedInAnnotation="NO")
    rle.compress(RLELossless, encoding_plugin="pydicom")
    colour = make_dataset(np.stack([ramp] * 3, axis=-1), BurnedInAnnotation="NO")
    return [*map(_bytes_of, (plain, cine, deep, jpeg, rle, colour)), _deflated(_bytes_of(plain))]


def _deflated(whole: bytes) -> bytes:
    start = guard.read_meta(io.BytesIO(whole))
    assert start is not None
    engine = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return _head(guard.DEFLATED) + engine.compress(whole[start[1] :]) + engine.flush()


def _head(syntax: str) -> bytes:
    uid = syntax.encode() + b"\0" * (len(syntax) % 2)
    element = struct.pack("<HH2sH", 2, 0x10, b"UI", len(uid)) + uid
    return b"\0" * 128 + b"DICM" + struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(element)) + element


def _real() -> list[bytes]:
    found = (path for path in sorted((SHARED / "data" / "dicom").rglob("*.dcm")))
    return [path.read_bytes() for path in found if path.stat().st_size < SMALL]


CORPUS = _made() + _real()


def nested(depth: int, *, length: int) -> bytes:
    """A file of sequences within sequences."""
    item = struct.pack("<HHI", 0xFFFE, 0xE000, length)
    opened = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, length) + item
    uid = struct.pack("<HH2sH", 0x0008, 0x0018, b"UI", 4) + b"1.2\0"
    return _head(guard.EXPLICIT_LITTLE) + uid + opened * depth


def bombed(kilobytes: int) -> bytes:
    """A deflated file that inflates a thousandfold."""
    element = struct.pack("<HH2sHI", 0x0009, 0x1001, b"OB", 0, kilobytes * 1024)
    engine = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = engine.compress(element) + engine.compress(bytes(kilobytes * 1024)) + engine.flush()
    return _head(guard.DEFLATED) + packed


def bent(seed: int) -> bytes:
    """A sound file with one to six things done to it; now and then one that was never sound."""
    chance = random.Random(seed)
    kind = chance.randrange(60)
    if kind == 0:
        return nested(chance.choice((5, 100, 3000)), length=chance.choice((0xFFFFFFFF, 8, 2**31)))
    if kind == 1:
        return bombed(chance.choice((100, 9000)))
    if kind == 2:
        return chance.randbytes(chance.randrange(400))
    data = bytearray(chance.choice(CORPUS))
    for _ in range(chance.randint(1, 6)):
        if data:
            _break(data, chance)
    return bytes(data)


def _break(data: bytearray, chance: random.Random) -> None:
    """Half of what is done is done to the first part, where the elements are."""
    at = chance.randrange(len(data) if chance.random() < 0.5 else min(len(data), 1500))
    match chance.choice(("turn", "turn", "cut", "extreme", "extreme", "double", "drop", "insert", "vr")):
        case "turn":
            data[at] = chance.randrange(256)
        case "cut":
            del data[at:]
        case "extreme":
            size = chance.choice((2, 4))
            value = chance.choice(EXTREMES) & (2 ** (8 * size) - 1)
            data[at : at + size] = value.to_bytes(size, "little" if chance.random() < 0.7 else "big")
        case "double":
            data[at:at] = data[at : at + chance.choice((8, 40, 400))] * chance.choice((1, 30))
        case "drop":
            del data[at : at + chance.choice((1, 2, 8, 100))]
        case "insert":
            data[at:at] = chance.randbytes(chance.randrange(30))
        case _:
            data[at : at + 2] = chance.choice((b"SQ", b"UN", b"OB", b"US", b"PN", b"DS", b"FD", b"??"))


@many
@given(seed=SEEDS)
def test_only_an_ehr_error_escapes_the_readers(seed: int) -> None:
    content = bent(seed)
    for read in (
        lambda: ehr.read_header(content, limits=LIMITS),
        lambda: ehr.pixel_digest(content, limits=LIMITS),
        lambda: ehr.read_clip(content, limits=LIMITS),
        lambda: ehr.deidentify_instance(
            content, names=NAMES, person="R-X", shift=timedelta(days=-40), burned_in=True, limits=LIMITS
        ),
    ):
        with contextlib.suppress(ehr.EhrError):
            read()


@few
@given(seed=SEEDS)
@example(seed=2850285865078)  # a Modality bent into one without pictures
def test_what_is_refused_leaves_nothing_behind(settings: Any, tmp_path_factory: Any, seed: int) -> None:
    content = bent(seed)
    path: Path = tmp_path_factory.getbasetemp() / "one.dcm"
    path.write_bytes(content)
    store: Path = settings.STUDY_STORE
    with forgotten():
        received = receiving.receive_file(path, source=make_source(), by=TESTS, now=NOW)
        held = (Study.objects.count(), Series.objects.count(), Instance.objects.count())
        files = [one for one in store.rglob("*") if one.is_file()] if store.exists() else []
        if received.outcome in (receiving.Outcome.SET_ASIDE, receiving.Outcome.NOT_READ):
            assert received.reason
            assert held == (0, 0, 0)
            assert SetAside.objects.count() == 1
            assert not files
        else:
            assert held == (1, 1, 1)
            assert [one.stat().st_size for one in files] == [len(content)]
    for one in files:
        one.unlink()

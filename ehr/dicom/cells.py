"""Pixel cells that today's decoders do not read, though archives hold them. For the decoding process.

PS3.5 8.1.1 allocates whole bytes and puts the stored bits at the bottom. Older files pack cells of 12 bits
end to end (annex D as it was), or store their bits further up (High Bit above Bits Stored - 1).
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless

from ehr.dicom import guard
from ehr.dicom.advice import AGAIN
from ehr.dicom.dataset import text, whole
from ehr.errors import BadInstance

Array = NDArray[Any]
PACKED = 12
LITTLE = frozenset({guard.IMPLICIT_LITTLE, guard.EXPLICIT_LITTLE, guard.DEFLATED})
NATIVE = LITTLE | {guard.EXPLICIT_BIG}


def is_packed(data: Dataset) -> bool:
    """Whether its cells are 12 bits, packed end to end."""
    return (
        whole(data, "BitsAllocated") == PACKED
        and whole(data, "SamplesPerPixel") == 1
        and str(data.file_meta.TransferSyntaxUID) in LITTLE
    )


def unpack(data: Dataset, indices: list[int]) -> Iterator[tuple[Array, dict[str, Any]]]:
    """Frames of packed cells, two in three bytes, the first in the lower bits. Raises BadInstance."""
    rows, columns = whole(data, "Rows") or 0, whole(data, "Columns") or 0
    frames, size = whole(data, "NumberOfFrames") or 1, rows * columns
    content = np.frombuffer(data.get("PixelData", b""), np.uint8)
    if len(content) < (frames * size * PACKED + 7) // 8:
        raise BadInstance(
            f"the pixel data is not as long as rows x columns x frames, it is truncated: {AGAIN}"
        )
    about = {"photometric_interpretation": text(data, "PhotometricInterpretation")}
    stored = whole(data, "BitsStored") or PACKED
    for index in indices:
        first = index * size // 2 * 2  # a pair begins on a byte
        last = (index * size + size + 1) // 2 * 2
        triples = content[first * 3 // 2 : last * 3 // 2]
        triples = np.pad(triples, (0, -len(triples) % 3)).reshape(-1, 3).astype(np.uint16)
        cells = np.empty(len(triples) * 2, np.uint16)
        cells[::2] = triples[:, 0] | (triples[:, 1] & 0x0F) << 8
        cells[1::2] = triples[:, 1] >> 4 | triples[:, 2] << 4
        frame = cells[index * size - first :][:size].reshape(rows, columns)
        yield settle(frame, data, whole(data, "HighBit") or stored - 1), about


def is_raised(data: Dataset) -> bool:
    """Whether its stored bits lie higher in the cell than the lowest one."""
    stored, high = whole(data, "BitsStored") or 0, whole(data, "HighBit") or 0
    syntax = str(data.file_meta.TransferSyntaxUID)
    return (
        (whole(data, "BitsAllocated") or 0) in (8, 16, 32)
        and 0 < stored <= high < (whole(data, "BitsAllocated") or 0)
        and (syntax in NATIVE or syntax == RLELossless)
    )


def with_whole_cells(data: Dataset) -> Dataset:
    """The same instance, every bit of a cell counted as stored."""
    whole_cells = Dataset()
    for element in data.group_dataset(0x0028):
        whole_cells[element.tag] = copy(element)
    whole_cells.add(data["PixelData"])
    whole_cells.file_meta = data.file_meta
    allocated = whole(data, "BitsAllocated") or 16
    whole_cells.BitsStored, whole_cells.HighBit = allocated, allocated - 1
    whole_cells.PixelRepresentation = 0
    return whole_cells


def settle(cells: Array, data: Dataset, high: int) -> Array:
    """Stored values out of unsigned cells: the bits up to `high`, with their sign."""
    stored = whole(data, "BitsStored") or 0
    values = cells >> (high + 1 - stored) & ((1 << stored) - 1)
    if whole(data, "PixelRepresentation") == 1:
        unused = cells.dtype.itemsize * 8 - stored
        return (values.astype(cells.dtype) << unused).view(f"i{cells.dtype.itemsize}") >> unused
    return values.astype(cells.dtype)

"""Backbones served through ONNX Runtime: the same embeddings (to 1e-4) at a fraction of the time.

The copy is made once per weights, size and number of channels, and kept in a folder that worker processes
share; it is named by the backbone's version, so other weights never meet an old copy. Heat maps need
gradients and go on using torch.
"""

from __future__ import annotations

import fcntl
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusion.backbones import ImageBackbone
from fusion.backbones.image import FRAMES_AT_ONCE
from fusion.errors import BadInput, BundleMismatch
from fusion.export import export_backbone
from fusion.inputs import FloatArray
from fusion.runtime import open_session


class ServedBackbone(ImageBackbone):
    """An ImageBackbone whose `embed` runs in ONNX Runtime; everything else is the original's.

    Same name, version and width. A size it has no copy for yet is exported at the first call (some seconds).
    """

    def __init__(self, original: ImageBackbone, folder: Path, *, threads: int = 1) -> None:
        self.__dict__.update(original.__dict__)
        self._original, self._folder, self._threads = original, folder, threads
        self._sessions: dict[tuple[int, int], Any] = {}
        self._lock = threading.Lock()

    def prepare(self, values: FloatArray, size: int) -> Tensor:
        """As the original does."""
        return self._original.prepare(values, size)

    def embed(self, values: FloatArray, size: int) -> FloatArray:
        """Frames [T, H, W] or [T, C, H, W] in [0, 1] → embeddings float32 [T, D].

        Raises BadInput for frames that cannot be embedded, BundleMismatch for a kept copy that was changed.
        """
        if not len(values):
            raise BadInput("no frames to embed")
        parts = []
        for start in range(0, len(values), FRAMES_AT_ONCE):
            frames = self.prepare(values[start : start + FRAMES_AT_ONCE], size)
            parts.append(self.session(frames).run(None, {"frames": frames.numpy()})[0])
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def session(self, frames: Tensor) -> Any:
        """The session for prepared frames of this number of channels and this size."""
        shape = (frames.shape[1], frames.shape[2])
        with self._lock:
            if shape not in self._sessions:
                self._sessions[shape] = self._open(frames)
            return self._sessions[shape]

    def _open(self, frames: Tensor) -> Any:
        channels, size = frames.shape[1], frames.shape[2]
        path = self._folder / f"{self.version.replace(':', '-')}-{size}x{channels}.onnx"
        sealed = path.with_suffix(".sha256")
        self._folder.mkdir(parents=True, exist_ok=True)
        with _alone(path.with_suffix(".lock")):
            if not (path.exists() and sealed.exists()):
                export_backbone(self._original, path, torch.cat([frames[:1], frames[-1:].flip(3)]))
                sealed.write_text(hashlib.sha256(path.read_bytes()).hexdigest() + "\n")
        held = path.read_bytes()
        if hashlib.sha256(held).hexdigest() != sealed.read_text().strip():
            raise BundleMismatch(
                f"{path.name} is not the file that was exported (SHA-256 differs); delete it and "
                f"{sealed.name}, and it is made anew"
            )
        return open_session(held, threads=self._threads)


def serve(backbone: ImageBackbone, folder: Path, *, threads: int = 1) -> ServedBackbone:
    """The same backbone through ONNX Runtime, with its copies kept in `folder` (made when it is absent).

    threads  of ONNX Runtime within one call
    """
    return ServedBackbone(backbone, folder, threads=threads)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time: workers that start together export once. Freed when the process ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

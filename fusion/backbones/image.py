"""Image backbones by name: one frame, grey or RGB → feature maps → one embedding.

The version names what an embedding depends on: architecture, weights and the constants of preparation.
Weights: `efficientnet_lite0` carries ImageNet weights in its package; the others start from a fixed seed
unless a safetensors file is given (parameter names as in the published checkpoints).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from fusion.backbones import networks
from fusion.backbones.first_layer import fold_first, grey_constants
from fusion.backbones.resizing import squared
from fusion.errors import BadInput, UnknownEncoder
from fusion.harmonise import HARMONISED, harmonise
from fusion.inputs import FloatArray
from fusion.numerics import without_denormals
from fusion.preparing import check_range

MEAN = (0.485, 0.456, 0.406)  # ImageNet, RGB, of intensities in [0, 1]
SCALE = (0.229, 0.224, 0.225)
CONSTANTS = {  # (mean, scale) of networks whose published weights were trained with others
    "inception_v3": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
Constants = tuple[tuple[float, ...], tuple[float, ...]]  # mean and scale of each channel
PREPARATION = "grey x3, bilinear antialiased square resize, ImageNet mean and scale, v1"
TUNED = "+tuned"  # in a version, after the name
SEED = 20261123
FRAMES_AT_ONCE = 16

BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "convnext_tiny": networks.convnext_tiny,
    "densenet121": networks.densenet121,
    "efficientnet_lite0": networks.efficientnet_lite0,
    "inception_v3": networks.inception_v3,
    "resnet18": networks.resnet18,
    "resnet50": networks.resnet50,
    "small_cnn": networks.small_cnn,
    "vgg16": networks.vgg16,
}


def image_backbone_names() -> list[str]:
    """Names that `load_backbone` knows (an extra may still be missing for some)."""
    return sorted(BUILDERS)


class ImageBackbone:
    """A frozen CNN: frames → feature maps → embeddings. Grey frames go in as one channel (see first_layer).

    name     as in `FusionConfig.image_backbone`
    version  "name:" + 8 hex digits over weights and preparation: equal versions, equal embeddings;
             "name+tuned:…" for weights that were fine-tuned here and travel in a bundle
    width    D of an embedding
    """

    def __init__(
        self, name: str, network: nn.Module, *, is_tuned: bool = False, constants: Constants | None = None
    ) -> None:
        self.name = name
        self.is_tuned = is_tuned
        self.is_harmonised = name.endswith(HARMONISED)
        self.constants = constants or CONSTANTS.get(name.removesuffix(HARMONISED), (MEAN, SCALE))
        mean, scale = self.constants
        fold_first(network, mean, scale)
        self.network = network.eval().requires_grad_(False)
        called = name + (TUNED if is_tuned else "")  # the name tells whether it harmonises
        self.version = f"{called}:{_digest(network, mean, scale)}"
        self.width = int(network.width)  # type: ignore[arg-type]
        self._colour = _columns(mean), _columns(scale)
        self._grey = grey_constants(mean, scale)

    def prepare(self, values: FloatArray, size: int) -> Tensor:
        """Frames in [0, 1] → what the network takes, float32 [T, C, size, size].

        values  float32 [T, H, W] or [T, 1, H, W], grey; or [T, 3, H, W], RGB or three sequences of one slice
        """
        frames = self.resize(values, size)
        mean, scale = self._grey if frames.shape[1] == 1 else self._colour
        return frames.sub_(mean).div_(scale)  # in place: nobody else has seen them

    def resize(self, values: FloatArray, size: int) -> Tensor:
        """The same frames, still in [0, 1], float32 [T, C, size, size]. Raises BadInput."""
        if values.ndim == 3:
            values = values[:, None]
        if values.ndim != 4 or 0 in values.shape or values.shape[1] not in (1, 3):
            raise BadInput(
                "frames must be [T, H, W] (grey) or [T, 3, H, W] (colour) without an empty axis, "
                f"not {list(values.shape)}"
            )
        frames = np.ascontiguousarray(values, np.float32)  # a copy only where it must be
        if not self.is_harmonised:
            made, is_within = squared(frames, size)
            return made if is_within else squared(_cut(frames), size)[0]
        # Each frame by itself: crops differ in size until they are resized.
        return torch.cat([squared(harmonise(frame[None]), size)[0] for frame in _cut(frames)])

    def normalise(self, frames: Tensor) -> Tensor:
        """float32 [T, C, size, size] in [0, 1] → with the mean and scale its weights were trained with."""
        mean, scale = self._grey if frames.shape[1] == 1 else self._colour
        if isinstance(mean, Tensor):
            mean, scale = mean.to(frames.device), scale.to(frames.device)  # type: ignore[union-attr]
        return (frames - mean) / scale

    def maps(self, prepared: Tensor) -> Tensor:
        """float32 [T, C, size, size] → feature maps float32 [T, D, h, w]; the embedding is `pool` of them."""
        return self.network(prepared)  # type: ignore[no-any-return]

    @staticmethod
    def pool(maps: Tensor) -> Tensor:
        """Feature maps [T, D, h, w] → embeddings [T, D]: the mean over space."""
        return maps.mean(dim=(2, 3))

    def embed(self, values: FloatArray, size: int) -> FloatArray:
        """Frames float32 [T, H, W] or [T, C, H, W] in [0, 1] → embeddings float32 [T, D]. Raises BadInput."""
        parts = []
        with torch.inference_mode(), without_denormals():
            for start in range(0, len(values), FRAMES_AT_ONCE):
                parts.append(self.pool(self.maps(self.prepare(values[start : start + FRAMES_AT_ONCE], size))))
        if not parts:
            raise BadInput("no frames to embed")
        return torch.cat(parts).numpy().astype(np.float32)

    def randomised(self, seed: int) -> ImageBackbone:
        """The same architecture with random weights, for the sanity check of heat maps (Adebayo 2018)."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = networks.randomised(self.network)
        return ImageBackbone(self.name, network, constants=self.constants)


def load_backbone(name: str, *, weights: Path | None = None) -> ImageBackbone:
    """The image backbone of that name; with "+harmonised" after it, intensities are harmonised beforehand.

    weights  a safetensors file with the architecture's parameter names, or None for the package's own weights
             (efficientnet_lite0) or weights drawn from a fixed seed (all others; not pretrained: for tests)
    Raises UnknownEncoder (no such name, or its extra is missing) and BadInput (weights that do not fit).
    """
    base = name.removesuffix(HARMONISED)
    if base not in BUILDERS:
        raise UnknownEncoder(
            f"no image backbone {name!r}; known: {', '.join(image_backbone_names())}, each also with "
            f"{HARMONISED!r} after its name"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        network = BUILDERS[base]()
    constants = None
    if weights is not None:
        state, constants = read_weights(weights, name)
        _put(network, state, name)
    return ImageBackbone(name, network, constants=constants)


def tuned_backbone(name: str, weights: Path) -> ImageBackbone:
    """The backbone of that name with fine-tuned weights. Raises UnknownEncoder and BadInput."""
    found = load_backbone(name, weights=weights)
    return ImageBackbone(name, found.network, is_tuned=True, constants=found.constants)


def image_version(name: str, weights: Path | None = None) -> str:
    """The version `load_backbone(name, weights=…)` has here."""
    if weights is None:
        return _version(name, None, 0, 0)
    held = weights.stat() if weights.is_file() else None
    return _version(name, weights, *((held.st_mtime_ns, held.st_size) if held else (0, 0)))


@lru_cache(maxsize=16)
def _version(name: str, weights: Path | None, changed: int, size: int) -> str:
    return load_backbone(name, weights=weights).version


def read_weights(path: Path, name: str) -> tuple[dict[str, Tensor], Constants | None]:
    """A safetensors file's tensors, and the mean and scale it was trained with where the file tells.

    Raises BadInput, saying how to make one.
    """
    base = name.removesuffix(HARMONISED)
    how = f"make it with `python -m fusion.backbones.convert {base} FILE OUT.safetensors`"
    if path.suffix != ".safetensors":
        raise BadInput(f"weights of {name} must be a .safetensors file, not {path.name}; {how}")
    if not path.is_file():
        raise BadInput(f"weights of {name} are not at {path}; put them there, or {how}")
    try:
        with safe_open(path, framework="pt") as file:
            said = json.loads((file.metadata() or {}).get("constants", "null"))
        constants = None if said is None else (tuple(map(float, said[0])), tuple(map(float, said[1])))
        return load_file(path), constants
    except (SafetensorError, ValueError, TypeError, IndexError) as fault:
        raise BadInput(f"{path.name} is no safetensors file; {how}") from fault


def _put(network: nn.Module, state: dict[str, Tensor], name: str) -> None:
    """Load weights by name; classifier heads in the file are left aside, anything else must fit."""
    own = network.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    wrong = [key for key in own if key in state and state[key].shape != own[key].shape]
    if missing or wrong:
        raise BadInput(
            f"weights do not fit {name}: missing {missing[:3]}, of another shape {wrong[:3]}. Published "
            "checkpoints are renamed where needed by `python -m fusion.backbones.convert`"
        )
    if bad := [
        key for key in own if own[key].is_floating_point() and not bool(torch.isfinite(state[key]).all())
    ]:
        raise BadInput(f"weights of {name} hold values that are not finite: {bad[:3]}")
    network.load_state_dict({key: state.get(key, value) for key, value in own.items()})


def _cut(frames: FloatArray) -> FloatArray:
    """Within 0 and 1. Raises BadInput for values that are not finite, or far outside."""
    low, high = float(frames.min()), float(frames.max())  # a NaN is both bounds
    check_range(low, high, "frames")
    return np.clip(frames, 0, 1) if low < 0 or high > 1 else frames


def _columns(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values).view(1, 3, 1, 1)


def _digest(network: nn.Module, mean: tuple[float, ...], scale: tuple[float, ...]) -> str:
    found = hashlib.sha256(f"{PREPARATION} {mean} {scale}".encode())
    state: dict[str, Any] = network.state_dict()
    for key in sorted(state):
        if not key.endswith("num_batches_tracked"):
            found.update(key.encode())
            found.update(state[key].detach().contiguous().numpy().tobytes())
    return found.hexdigest()[:8]

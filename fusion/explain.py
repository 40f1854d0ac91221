"""Heat maps: Grad-CAM (Selvaraju 2017) of the fused logit through the image backbone, with a sanity check.

The map shows where the feature maps move *this patient's fused estimate*, all other inputs held as they are.
The check (Adebayo 2018) repeats it with the backbone's weights drawn at random: a map that hardly changes
shows the picture, not the model, and is not to be trusted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fusion.backbones import ImageBackbone
from fusion.batch import Batch, collate
from fusion.bundle import Bundle
from fusion.errors import BadInput
from fusion.inputs import FloatArray, Modality, PatientInputs, PixelInput
from fusion.train import settled

METHOD = "Grad-CAM"
ALIKE = 0.5  # correlation with the randomised map from which on the map fails its check
LONG_SIDE = 224  # pixels of a map


@dataclass(frozen=True, eq=False, slots=True)
class ImageExplanation:
    """values float32 [h, w] in [0, 1], stretched over the image; all zero when it does not move the estimate.

    sanity  {"check", "correlation" with the map of a randomised backbone, "passed"}
    frame   index of the frame explained (0 for a still image)
    """

    values: FloatArray
    method: str
    sanity: dict[str, float | str | bool] = field(default_factory=dict)
    frame: int = 0


def explain_image(
    bundle: Bundle, inputs: PatientInputs, pixels: PixelInput, *, outcome: str, frame: int | None = None
) -> ImageExplanation:
    """Heat map of one image, or of one kept frame of the cine (default: the most weighted). Reads the pixels.

    Raises BadInput: no such outcome, or pixels that the model does not look at.
    """
    names = [spec.name for spec in bundle.config.outcomes]
    if outcome not in names:
        raise BadInput(f"the model has no outcome {outcome!r}; it has {', '.join(names)}")
    with settled(bundle.config):
        batch = collate([inputs], bundle.config, bundle.embedder)
        place, row, index, backbone, size = _find(bundle, inputs, pixels, batch, frame)
        grey = pixels.read().values
        if index >= len(grey):
            raise BadInput(f"frame {index} asked for; {len(grey)} could be read")
        picture = grey[index : index + 1]
        r = names.index(outcome)
        heat = _grad_cam(bundle, batch, place, row, r, backbone, picture, size)
        random = _grad_cam(
            bundle, batch, place, row, r, backbone.randomised(bundle.config.seed), picture, size
        )
        correlation = _rank_correlation(heat, random)
        h, w = picture.shape[1:]
        scale = LONG_SIDE / max(h, w)
        shape = (max(1, round(h * scale)), max(1, round(w * scale)))
        smooth = F.interpolate(heat[None, None], size=shape, mode="bilinear", align_corners=False)[0, 0]
    top = float(smooth.max())
    values = (smooth / top if top > 0 else torch.zeros(shape)).clamp(0, 1).numpy().astype(np.float32)
    sanity: dict[str, float | str | bool] = {
        "check": "rank correlation with the map of a backbone with random weights",
        "correlation": correlation,
        "passed": abs(correlation) < ALIKE,
    }
    return ImageExplanation(values, METHOD, sanity, index)


def _find(
    bundle: Bundle, inputs: PatientInputs, pixels: PixelInput, batch: Batch, frame: int | None
) -> tuple[Modality, int, int, ImageBackbone, int]:
    """Modality, token row, frame index, backbone and size of these pixels."""
    config = bundle.config
    for modality, held, most in (
        (Modality.IMAGE, inputs.images, config.max_images),
        (Modality.CINE, inputs.cines, 1),
    ):
        keys = [p.key for p in held[:most]]
        if modality not in config.modalities or pixels.key not in keys:
            continue
        if modality == Modality.IMAGE:
            return modality, keys.index(pixels.key), 0, bundle.embedder.image_backbone, config.image_size
        kept = batch.frames[0]
        if frame is None:
            with torch.no_grad():
                weights = bundle.model.encode(batch).encoded[modality].weights
            assert weights is not None
            frame = kept[int(weights[0, : len(kept)].argmax())]
        if frame not in kept:
            raise BadInput(f"frame {frame} is not among the {len(kept)} frames the model looks at")
        return modality, kept.index(frame), frame, bundle.embedder.cine_backbone, config.cine_size
    raise BadInput("these pixels are not among those the model looks at")


def _grad_cam(
    bundle: Bundle,
    batch: Batch,
    modality: Modality,
    row: int,
    outcome: int,
    backbone: ImageBackbone,
    picture: NDArray[np.float32],
    size: int,
) -> Tensor:
    """Map float32 [h, w] >= 0 at the size of the feature maps."""
    with torch.no_grad():
        found = backbone.maps(backbone.prepare(picture, size))
    maps = found.clone().requires_grad_(True)
    with torch.enable_grad():
        tokens = batch.tokens[modality]
        values = tokens.values.clone()
        values[0, row] = backbone.pool(maps)[0]
        changed = {**batch.tokens, modality: type(tokens)(values, tokens.known, tokens.times_ms)}
        evidence = bundle.model.encode(Batch(changed, batch.present, batch.frames, batch.refused))
        logit = bundle.model.fuse(evidence.logits, evidence.present)[0, outcome]
        if not logit.requires_grad:
            return torch.zeros(maps.shape[2:])
        (gradient,) = torch.autograd.grad(logit, maps)
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    return F.relu((weights * found).sum(dim=1)[0])


def _rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's, of two maps; 0 when one of them is flat."""
    ranks = [np.argsort(np.argsort(x.flatten().numpy(), kind="stable")).astype(float) for x in (a, b)]
    if float(a.std()) < 1e-12 or float(b.std()) < 1e-12 or len(ranks[0]) < 2:
        return 0.0
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def frames_explained(
    bundle: Bundle, inputs: PatientInputs, *, outcome: str, most: int = 3
) -> Sequence[ImageExplanation]:
    """Maps of the most weighted frames of the newest cine, most weighted first; () without one."""
    if Modality.CINE not in bundle.config.modalities or not inputs.cines:
        return ()
    with settled(bundle.config), torch.no_grad():
        batch = collate([inputs], bundle.config, bundle.embedder)
        weights = bundle.model.encode(batch).encoded[Modality.CINE].weights
    assert weights is not None
    kept = batch.frames[0]
    order = weights[0, : len(kept)].argsort(descending=True)[:most].tolist()
    return tuple(
        explain_image(bundle, inputs, inputs.cines[0], outcome=outcome, frame=kept[i]) for i in order
    )

"""Heat maps of one patient's pictures, each with its checks (`fusion.heat_maps` says which, and why).

found = explain_image(bundle, inputs, inputs.images[0], outcome="icu")
found.values      # float32 [h, w] in [0, 1], stretched over the picture
found.sanity      # the checks, and `passed`: whether the map is to be trusted at all
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional as F

from fusion.backbones import ImageBackbone
from fusion.batch import Batch, collate
from fusion.bundle import Bundle
from fusion.errors import BadInput
from fusion.harmonise import kept_box
from fusion.heat_maps import HeatMapMethod, Look, cascade, curves, draw, mean_of
from fusion.inputs import FloatArray, Modality, PatientInputs, PixelInput
from fusion.scope import screen
from fusion.train import settled

ALIKE = 0.5  # correlation with the randomised map from which on the map fails its check
COMPLETE = 0.25  # share of the difference that integrated gradients may leave unexplained
LONG_SIDE = 224  # pixels of a map

Checks = dict[str, float | str | bool]


@dataclass(frozen=True, eq=False, slots=True)
class ImageExplanation:
    """values float32 [h, w] in [0, 1], stretched over the image; all zero when it does not move the estimate.

    sanity  what the map was asked, and `passed`:
            direction      "raises" or "lowers": how the picture moves the estimate; the map shows where
            correlation    with the map of a backbone with random weights; fails from 0.5 on
            correlation_1_of_3, correlation_2_of_3   the same with the last third, two thirds random
            deletion, insertion, random_deletion, random_insertion   areas under curves, in [0, 1]
            faithful       whether it beats every random order of places
            completeness_gap   integrated gradients only: share of the difference left unexplained
            why            "" or, when it failed, what it failed, in words
    frame   index of the frame explained (0 for a still image)
    """

    values: FloatArray
    method: str
    sanity: Checks = field(default_factory=dict)
    frame: int = 0


def explain_image(
    bundle: Bundle,
    inputs: PatientInputs,
    pixels: PixelInput,
    *,
    outcome: str,
    frame: int | None = None,
    method: HeatMapMethod = HeatMapMethod.GRAD_CAM,
) -> ImageExplanation:
    """Heat map of one image, or of one kept frame of the cine (default: the most weighted). Reads the pixels.

    About 80 pictures go through the backbone, and for integrated gradients some 35 gradients come back,
    whatever the picture: a few seconds on one thread.
    Raises BadInput: no such outcome, or pixels that the model does not look at.
    """
    names = [spec.name for spec in bundle.config.outcomes]
    if outcome not in names:
        raise BadInput(f"the model has no outcome {outcome!r}; it has {', '.join(names)}")
    with settled(bundle.config):
        screened = screen(bundle.scope, inputs, bundle.config, bundle.embedder)
        if pixels.key in screened.left_out:
            raise BadInput(f"this picture was left out: {screened.left_out[pixels.key]}")
        inputs = screened.inputs
        batch = collate([inputs], bundle.config, bundle.embedder)
        place, row, index, backbone, size = _find(bundle, inputs, pixels, batch, frame)
        values = pixels.read().values
        if index >= len(values):
            raise BadInput(f"frame {index} asked for; {len(values)} could be read")
        picture = values[index : index + 1]
        prepared = backbone.prepare(picture, size)
        look = Look(bundle, batch, place, row, names.index(outcome), backbone, prepared)
        direction = look.direction()
        heat, gap = draw(look, method, direction)
        sanity = _check(look, method, direction, heat, gap)
        whole = _over(picture, heat, is_cropped=backbone.is_harmonised)
    return ImageExplanation(whole, method.value, sanity, index)


def _over(picture: FloatArray, heat: torch.Tensor, *, is_cropped: bool) -> FloatArray:
    """The map stretched over the picture [1, .., H, W], or over the part of it that the backbone sees."""
    h, w = picture.shape[-2:]
    scale = LONG_SIDE / max(h, w)
    shape = (max(1, round(h * scale)), max(1, round(w * scale)))
    top, bottom, left, right = kept_box(picture) if is_cropped else (0, h, 0, w)
    box = (slice(round(top * scale), round(bottom * scale)), slice(round(left * scale), round(right * scale)))
    whole = torch.zeros(shape)
    size = whole[box].shape
    whole[box] = F.interpolate(heat[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
    highest = float(whole.max())
    return (whole / highest if highest > 0 else whole).clamp(0, 1).numpy().astype(np.float32)


def _check(
    look: Look, method: HeatMapMethod, direction: float, heat: torch.Tensor, gap: float | None
) -> Checks:
    """What a map is asked, and whether it passed."""
    third, two_thirds, correlation = cascade(look, method, direction, heat)
    found = curves(look, heat, direction)
    random_deletion, random_insertion = mean_of(found.random)
    faults = []
    if float(heat.max()) <= 0:
        faults.append("it marks nothing")
    if abs(correlation) >= ALIKE:
        faults.append("it looks like that of a random model")
    if not found.beats_random:
        faults.append("places it marks matter no more than places drawn at random")
    if gap is not None and gap > COMPLETE:
        faults.append("its parts do not sum to what the picture adds")
    checks: Checks = {
        "check": "rank correlation with the map of a backbone with random weights; "
        "deletion and insertion beside random orders",
        "direction": "raises" if direction > 0 else "lowers",
        "correlation": correlation,
        "correlation_1_of_3": third,
        "correlation_2_of_3": two_thirds,
        "deletion": found.deletion,
        "insertion": found.insertion,
        "random_deletion": random_deletion,
        "random_insertion": random_insertion,
        "faithful": found.beats_random,
        "passed": not faults,
        "why": " and ".join(faults),
    }
    if gap is not None:
        checks["completeness_gap"] = gap
    return checks


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

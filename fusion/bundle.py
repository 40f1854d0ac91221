"""A model as a folder: `model.safetensors` and `metadata.json`, checked on load. Nothing is unpickled.

Where the image backbone was fine-tuned it travels along, in `backbone.safetensors`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from fusion.backbones import ImageBackbone, same_text, tuned_backbone
from fusion.calibrate import Calibration
from fusion.config import FusionConfig, OutcomeSpec
from fusion.config_json import config_from_json, config_to_json, declared_inputs, declared_outputs
from fusion.conformal import Interval
from fusion.embedding import Embedder, backbone_versions
from fusion.errors import BadInput, BundleMismatch, UnknownEncoder
from fusion.inputs import Modality
from fusion.model import FusionModel
from fusion.scope import Scope
from fusion.shift import Summary
from fusion.stated import read_stated
from fusion.widths import WIDTHS, folder_name

if TYPE_CHECKING:
    from fusion.examples import Example

Beside = TypeVar("Beside", Scope, Summary)
FORMAT = 1
SCOPE, SUMMARY = "scope.", "training_inputs."  # prefixes of the tensors that are kept beside the model
WEIGHTS, METADATA, BACKBONE = "model.safetensors", "metadata.json", "backbone.safetensors"
REQUIRED = (
    "format", "config", "inputs", "outputs", "encoders", "calibration", "intervals", "cohort", "metrics",
    "intended_use", "licence", "created_at", "torch_version", "weights_sha256",
)  # fmt: skip
INTENDED_USE = (
    "Research and evaluation of risk estimates shown to clinicians beside the record. Not for diagnosis, "
    "not for treatment decisions without a clinician's own judgement, not validated for use at any site but "
    "the one it was trained at."
)


@dataclass(eq=False)
class Bundle:
    """A trained model with all that is needed to use it and to know what it is.

    versions  modality → version of the backbone whose embeddings it reads
    examples  the training examples while in memory (baselines are fitted on them); never saved
    out_of_fold  what its encoders said of the training patients they had not seen, while in memory: evidence
              [B, M, R], present [B, M], labels [B, R]; never saved
    scope     what it must not judge; None when that was not asked of the training
    summary   what its training inputs looked like, for telling a shift; None when that was not asked either
    """

    config: FusionConfig
    model: FusionModel
    calibration: Calibration
    intervals: tuple[Interval, ...]
    versions: dict[Modality, str]
    metadata: dict[str, Any] = field(default_factory=dict)
    embedder: Embedder = None  # type: ignore[assignment]
    examples: tuple[Example, ...] = ()
    out_of_fold: tuple[Tensor, Tensor, Tensor] | None = None
    scope: Scope | None = None
    summary: Summary | None = None

    def __post_init__(self) -> None:
        self.model.eval().requires_grad_(False)
        if self.embedder is None:
            self.embedder = Embedder(self.config, self.versions)

    @property
    def encoders(self) -> dict[str, str]:
        """Modality → backbone version, as plain words."""
        return {modality.value: version for modality, version in self.versions.items()}

    @cached_property
    def base_rates(self) -> tuple[float, ...]:
        """Event rate per outcome where it was trained."""
        return tuple(map(float, self.calibration.base_risks()))

    def save(self, folder: Path, *, created_at: str = "") -> str:
        """Write the folder; its digest (SHA-256, hex; the metadata holds those of the other files).

        created_at  ISO 8601 moment, given by the caller: fusion has no clock
        """
        folder.mkdir(parents=True, exist_ok=True)
        state = dict(self.model.state_dict())
        state |= {f"{SCOPE}{k}": v for k, v in self.scope.tensors().items()} if self.scope else {}
        state |= {f"{SUMMARY}{k}": v for k, v in self.summary.tensors().items()} if self.summary else {}
        weights = save_tensors({k: v.contiguous() for k, v in state.items()})
        created = created_at or str(self.metadata.get("created_at", ""))
        self.metadata.update(self._declared(hashlib.sha256(weights).hexdigest(), created))
        self.metadata["backbone_sha256"] = self._save_backbone(folder)
        (folder / WEIGHTS).write_bytes(weights)
        (folder / METADATA).write_text(
            json.dumps(self.metadata, indent=1, sort_keys=True, allow_nan=False) + "\n"
        )
        return folder_digest(folder)

    def _save_backbone(self, folder: Path) -> str:
        """SHA-256 of the fine-tuned backbone's file; "" where there is none."""
        if self.embedder.tuned is None:
            return ""
        state = self.embedder.tuned.network.state_dict()
        constants = {"constants": json.dumps(self.embedder.tuned.constants)}
        weights = save_tensors({k: v.contiguous().clone() for k, v in state.items()}, constants)
        (folder / BACKBONE).write_bytes(weights)
        return hashlib.sha256(weights).hexdigest()

    def _declared(self, weights_sha256: str, created_at: str) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "config": config_to_json(self.config),
            "inputs": declared_inputs(self.config, self.encoders),
            "outputs": declared_outputs(self.config),
            "encoders": self.encoders,
            "calibration": self.calibration.to_json(),
            "intervals": [interval.to_json() for interval in self.intervals],
            "cohort": self.metadata.get("cohort", {}),
            "metrics": self.metadata.get("metrics", {}),
            "intended_use": self.metadata.get("intended_use", INTENDED_USE),
            "licence": self.metadata.get("licence", "Apache-2.0"),
            "created_at": created_at,
            "torch_version": str(torch.__version__),
            "scope": self.scope.to_json() if self.scope else {},
            "training_inputs": self.summary.to_json() if self.summary else {},
            "weights_sha256": weights_sha256,
        }

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        digest: str | None = None,
        image_weights: Path | None = None,
        text_backbone: Path | None = None,
    ) -> Bundle:
        """Read and check a folder. Raises BundleMismatch, saying what differs.

        digest         what `save` returned, as kept elsewhere: any change to any file is refused
        image_weights  where the image backbone's weights lie here, for a model that was trained with
                       `FusionConfig.image_weights`; its version tells whether they are the same
        text_backbone  where the folder of its text encoder lies here, for a model trained with one;
                       without, it is looked for beside the bundle's files
        """
        check_digest(folder, digest)
        metadata = _read_metadata(folder / METADATA)
        weights = (folder / WEIGHTS).read_bytes()
        if hashlib.sha256(weights).hexdigest() != metadata["weights_sha256"]:
            raise BundleMismatch(f"{WEIGHTS} is not the file that {METADATA} describes (SHA-256 differs)")
        try:
            config = _with_text(config_from_json(metadata["config"]), folder, text_backbone)
            versions = {Modality(name): str(version) for name, version in metadata["encoders"].items()}
            model = FusionModel(config)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as fault:
            raise BundleMismatch(f"{METADATA} does not describe a model: {fault}") from fault
        calibration, intervals = read_stated(METADATA, metadata, config)
        if metadata["inputs"] != declared_inputs(config, metadata["encoders"]):
            raise BundleMismatch("declared inputs do not follow from the config")
        tuned = _read_backbone(folder, config, metadata)
        config = _with_weights(config, folder, image_weights, is_tuned=tuned is not None)
        _check_versions(config, versions, tuned)
        beside = _load_weights(model, weights)
        scope = _read_beside(Scope.from_json, metadata.get("scope", {}), beside, SCOPE)
        summary = _read_beside(Summary.from_json, metadata.get("training_inputs", {}), beside, SUMMARY)
        embedder = Embedder(config, versions, tuned=tuned)
        return cls(
            config, model, calibration, intervals, versions, metadata, embedder, scope=scope, summary=summary
        )


def check_digest(folder: Path, digest: str | None) -> None:
    """Raises BundleMismatch where a file of the bundle is missing or, if one is given, its digest differs."""
    for name in (WEIGHTS, METADATA):
        if not (folder / name).is_file():
            raise BundleMismatch(f"the bundle has no {name}")
    if digest is not None and (found := folder_digest(folder)) != digest:
        raise BundleMismatch(f"digest is {found[:12]}… where {digest[:12]}… was registered")


def folder_digest(folder: Path) -> str:
    """SHA-256 (hex) over both files of a bundle."""
    found = hashlib.sha256()
    for name in (METADATA, WEIGHTS):
        found.update(hashlib.sha256((folder / name).read_bytes()).digest())
    return found.hexdigest()


def describe(
    bundle: Bundle,
    *,
    train: Sequence[Example],
    tuning: Sequence[Example],
    left_out: Mapping[str, str],
    base: Mapping[str, float],
) -> dict[str, Any]:
    """What the metadata says of the cohort: counts and a digest, never a patient."""
    found = hashlib.sha256()
    for split, examples in (("train", train), ("tuning", tuning)):
        for line in sorted(
            f"{split} {e.inputs.digest()} {json.dumps(dict(e.labels), sort_keys=True)}{_followed(e)}"
            for e in examples
        ):
            found.update(line.encode())
    names = [spec.name for spec in bundle.config.outcomes]
    return {
        "cohort": {
            "digest": found.hexdigest(),
            "train": len(train),
            "tuning": len(tuning),
            "events": {spec.name: sum(_had_event(e, spec) for e in train) for spec in bundle.config.outcomes},
            "base_rate": {**base, **dict(zip(names, bundle.base_rates, strict=True))},
            "present": {
                m.value: sum(m in e.inputs.present() for e in train) for m in bundle.config.modalities
            },
        },
        "left_out": dict(left_out),
    }


def _followed(example: Example) -> str:
    said = {event: [one.hours, one.observed] for event, one in sorted(example.follow_up.items())}
    return f" {json.dumps(said)}" if said else ""


def _had_event(example: Example, spec: OutcomeSpec) -> bool:
    followed = example.follow_up.get(spec.event)
    if followed is None:
        return example.labels.get(spec.name) == 1
    return followed.observed and followed.hours <= spec.horizon_hours


def _read_metadata(path: Path) -> dict[str, Any]:
    try:
        metadata = json.loads(path.read_text())
    except ValueError as fault:
        raise BundleMismatch(f"{METADATA} is not JSON") from fault
    if not isinstance(metadata, dict):
        raise BundleMismatch(f"{METADATA} is not an object")
    if missing := [key for key in REQUIRED if key not in metadata]:
        raise BundleMismatch(f"{METADATA} lacks {', '.join(missing)}")
    if metadata["format"] != FORMAT:
        raise BundleMismatch(f"bundle format is {metadata['format']!r}; this version reads {FORMAT}")
    return metadata


def _read_backbone(folder: Path, config: FusionConfig, metadata: Mapping[str, Any]) -> ImageBackbone | None:
    """The fine-tuned image backbone; None for a bundle without one."""
    wanted = metadata.get("backbone_sha256", "")
    if not wanted:
        return None
    if not (folder / BACKBONE).is_file():
        raise BundleMismatch(f"the bundle has no {BACKBONE}, and its image backbone was fine-tuned")
    held = (folder / BACKBONE).read_bytes()
    if hashlib.sha256(held).hexdigest() != wanted:
        raise BundleMismatch(f"{BACKBONE} is not the file that {METADATA} describes (SHA-256 differs)")
    try:
        return tuned_backbone(config.image_backbone, folder / BACKBONE)
    except (BadInput, UnknownEncoder) as fault:
        raise BundleMismatch(f"{BACKBONE} does not fit {config.image_backbone}: {fault}") from fault


def _with_weights(config: FusionConfig, folder: Path, given: Path | None, *, is_tuned: bool) -> FusionConfig:
    """The config with the place of the image weights on this machine, where the model needs them."""
    uses = {m for m in (Modality.IMAGE, Modality.CINE, Modality.VOLUME) if m in config.modalities} - (
        {Modality.IMAGE} if is_tuned else set()
    )
    if not config.image_weights or not uses:
        return replace(config, image_weights="")
    here = given or folder / config.image_weights
    if not here.is_file():
        raise BundleMismatch(
            f"the bundle was trained with the image weights {config.image_weights}, which are not at {here}: "
            "fetch that file and name it (IMAGE_WEIGHTS in the settings, image_weights= in Bundle.load)"
        )
    return replace(config, image_weights=str(here))


def _with_text(config: FusionConfig, folder: Path, given: Path | None) -> FusionConfig:
    """The config with the place of the text encoder's folder on this machine, where the model needs one.

    Bundles from before hold the whole path of where they were trained: there it is looked for last.
    """
    kept = config.text_backbone
    if Modality.TEXT not in config.modalities or kept in WIDTHS:
        return config
    name = folder_name(kept)
    places = [given] if given else [folder / name, Path(kept)]
    here = next((place for place in places if (place / "config.json").is_file()), None)
    if here is None or folder_name(str(here)) != name:
        raise BundleMismatch(
            f"the bundle was trained with the text encoder in a folder called {name!r}, which is not at "
            f"{places[0]}: copy that folder and name it (TEXT_BACKBONE or TEXT_STORE in the settings, "
            "text_backbone= in Bundle.load, --text-backbone of the commands)"
        )
    return replace(config, text_backbone=str(here))


def _check_versions(
    config: FusionConfig, declared: Mapping[Modality, str], tuned: ImageBackbone | None
) -> None:
    try:
        here = backbone_versions(config, tuned)
    except (UnknownEncoder, BadInput) as fault:
        raise BundleMismatch(f"an encoder of the bundle is not available here: {fault}") from fault
    for modality in sorted(here.keys() | declared.keys()):
        found, wanted = here.get(modality, ""), declared.get(modality, "")
        if found != wanted and not (modality == Modality.TEXT and same_text(found, wanted)):
            other = f"; {config.image_weights} holds other weights" if config.image_weights else ""
            raise BundleMismatch(
                f"{modality.value} encoder: the bundle declares {wanted or None}, "
                f"here is {found or None}{other}"
            )


def _load_weights(model: FusionModel, weights: bytes) -> dict[str, Tensor]:
    """Fill the model; the tensors that are kept beside it."""
    try:
        state = load_tensors(weights)
    except SafetensorError as fault:
        raise BundleMismatch(f"{WEIGHTS} is not a safetensors file") from fault
    beside = {name: state.pop(name) for name in list(state) if name.startswith((SCOPE, SUMMARY))}
    own = model.state_dict()
    for name in own:  # of bundles from before a fusion could leave a modality out, or these were learned
        if name == "heard" or name.endswith((".projection.limit", ".trees.share")):
            state.setdefault(name, own[name])
        if ".trees." in name and name in state and state[name].dim() == 3:  # … or a series had so many trees
            lacking = own[name].shape[1] - state[name].shape[1]
            if lacking > 0:  # a tree of zeros says nothing
                state[name] = torch.nn.functional.pad(state[name], (0, 0, 0, lacking))
    if differ := sorted(own.keys() ^ state.keys()):
        raise BundleMismatch(f"tensors do not fit the config: {', '.join(differ[:3])}")
    for name, tensor in state.items():
        if tensor.shape != own[name].shape or tensor.dtype != own[name].dtype:
            raise BundleMismatch(
                f"tensor {name} is {tensor.dtype} {list(tensor.shape)}, expected {own[name].dtype} "
                f"{list(own[name].shape)}"
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise BundleMismatch(f"tensor {name} holds values that are not finite")
    model.load_state_dict(state)
    return beside


def _read_beside(
    read: Callable[[Mapping[str, Any], Mapping[str, Tensor]], Beside],
    said: Mapping[str, Any],
    beside: Mapping[str, Tensor],
    prefix: str,
) -> Beside | None:
    """What is kept beside the model (`Scope`, `Summary`); None for bundles that do not hold it."""
    if not said:
        return None
    own = {name.removeprefix(prefix): t for name, t in beside.items() if name.startswith(prefix)}
    try:
        return read(said, own)
    except (KeyError, TypeError, ValueError, AttributeError) as fault:
        raise BundleMismatch(f"{prefix}* of {METADATA} and {WEIGHTS} do not fit: {fault}") from fault

"""The mathematics, in pure PyTorch: what is known of a patient in, a calibrated and explained risk out.

The door of `fusion`: everything other rooms may use is named here. Knows no Django, no hospital, no clock;
reads no files but bundles. `fusion.model` is the file to read first.
"""

from importlib.util import find_spec as _find_spec

if _find_spec("torch") is not None:  # without it, on a small machine, `fusion.edge` is all there is
    from fusion.backbones import (
        ImageBackbone,
        TextBackbone,
        VolumeBackbone,
        image_backbone_names,
        load_backbone,
        load_text_backbone,
        same_text,
        split_sentences,
        text_backbone_names,
    )
    from fusion.bundle import Bundle
    from fusion.config import (
        Augment,
        CinePooling,
        FieldKind,
        FieldSpec,
        FusionConfig,
        FusionKind,
        Imbalance,
        OutcomeSpec,
        VolumeKind,
    )
    from fusion.embedding import volume_backbone_name
    from fusion.errors import (
        BadInput,
        BlankPixels,
        BundleMismatch,
        Cancelled,
        FusionError,
        NotEnoughData,
        UnknownEncoder,
    )
    from fusion.evaluate import Report, evaluate, evaluate_beside
    from fusion.explain import ImageExplanation, explain_image, frames_explained
    from fusion.heat_maps import HeatMapMethod
    from fusion.imaging.quantify import Size, area, cardiothoracic_ratio, ejection_fraction, largest, volume
    from fusion.imaging.segment import Drawn, Segmenter, SegmenterConfig, SegmenterKind, train_segmenter
    from fusion.inputs import Frames, Modality, NoteInput, PatientInputs, PixelInput, SeriesPoint
    from fusion.predict import predict
    from fusion.prediction import Contribution, Driver, OutcomePrediction, Prediction
    from fusion.serving import serve
    from fusion.shift import Band, ShiftReport, compare_inputs
    from fusion.survival import FollowUp
    from fusion.train import Example, Progress, train

__all__ = [
    "Augment",
    "BadInput",
    "Band",
    "BlankPixels",
    "Bundle",
    "BundleMismatch",
    "Cancelled",
    "CinePooling",
    "Contribution",
    "Drawn",
    "Driver",
    "Example",
    "FieldKind",
    "FieldSpec",
    "FollowUp",
    "Frames",
    "FusionConfig",
    "FusionError",
    "FusionKind",
    "HeatMapMethod",
    "ImageBackbone",
    "ImageExplanation",
    "Imbalance",
    "Modality",
    "NotEnoughData",
    "NoteInput",
    "OutcomePrediction",
    "OutcomeSpec",
    "PatientInputs",
    "PixelInput",
    "Prediction",
    "Progress",
    "Report",
    "Segmenter",
    "SegmenterConfig",
    "SegmenterKind",
    "SeriesPoint",
    "ShiftReport",
    "Size",
    "TextBackbone",
    "UnknownEncoder",
    "VolumeBackbone",
    "VolumeKind",
    "area",
    "cardiothoracic_ratio",
    "compare_inputs",
    "ejection_fraction",
    "evaluate",
    "evaluate_beside",
    "explain_image",
    "frames_explained",
    "image_backbone_names",
    "largest",
    "load_backbone",
    "load_text_backbone",
    "predict",
    "same_text",
    "serve",
    "split_sentences",
    "text_backbone_names",
    "train",
    "train_segmenter",
    "volume",
    "volume_backbone_name",
]

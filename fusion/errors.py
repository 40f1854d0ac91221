"""What can go wrong in the mathematics.

    FusionError
    ├── BadInput          shapes, ranges or names of the inputs do not fit the model
    │   └── BlankPixels   a picture, clip or volume that shows nothing: every pixel is the same
    ├── NotEnoughData     a run cannot be trained or calibrated on what it was given, and what is missing
    ├── BundleMismatch    a bundle's files, digests, versions or declared inputs do not fit
    ├── ExportMismatch    an ONNX copy does not answer as the original does; it was not kept
    ├── UnknownEncoder    no encoder of that name, or its extra is not installed (the message says which)
    └── Cancelled         the progress callback asked the run to stop

Messages name fields, shapes and units; never a patient's values.
"""


class FusionError(Exception):
    """Base of every error raised by `fusion`."""


class BadInput(FusionError, ValueError):
    """Inputs do not fit the model."""


class BlankPixels(BadInput):
    """Pixels that show nothing."""


class NotEnoughData(FusionError):
    """Too little data to do what was asked."""


class BundleMismatch(FusionError):
    """A bundle that must not be used."""


class ExportMismatch(FusionError):
    """An exported copy that differs from what it was made of."""


class UnknownEncoder(FusionError, KeyError):
    """No encoder of that name can be built here."""


class Cancelled(FusionError):
    """The caller asked the run to stop."""

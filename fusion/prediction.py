"""What a model says about one patient, with everything needed to explain it. No torch here."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from fusion.inputs import Modality


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one modality adds to the estimate: its Shapley value over all 2^M subsets (Shapley 1953).

    points  on the risk scale: base_rate + sum(points) = risk
    logit   on the logit scale: logit(base) + sum(logit) = logit of the risk
    """

    modality: Modality
    points: float
    logit: float


@dataclass(frozen=True, slots=True)
class Driver:
    """What one field, channel, variant or note sentence adds: its Owen value (Owen 1977), so that the drivers
    of a modality sum to that modality's contribution. `value` is the latest known one."""

    modality: Modality
    name: str
    label: str
    points: float
    value: float | None = None
    unit: str = ""
    hours_before: float | None = None
    text: str = ""  # the sentence, for notes
    key: str = ""  # note or pixel key

    def worth(self, points: float) -> Driver:
        """The same with so many points; `dataclasses.replace` takes three times as long."""
        return Driver(
            self.modality, self.name, self.label, points,
            self.value, self.unit, self.hours_before, self.text, self.key,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class OutcomePrediction:
    """One outcome within one horizon.

    risk        calibrated probability in [0, 1]
    low, high   conformal interval of the event rate among patients scored alike, at `level`
    base_rate   event rate where the model was trained, in [0, 1]: what is said when nothing is known
    """

    outcome: str
    label: str
    horizon_hours: float
    risk: float
    low: float
    high: float
    level: float
    logit: float
    base_rate: float
    contributions: tuple[Contribution, ...] = ()
    drivers: tuple[Driver, ...] = ()
    summary: str = ""  # a paragraph in plain words made from these numbers alone


@dataclass(frozen=True, slots=True)
class Prediction:
    """All outcomes for one patient."""

    outcomes: tuple[OutcomePrediction, ...]
    present: tuple[Modality, ...]
    missing: tuple[Modality, ...]
    pending: tuple[Modality, ...]
    missing_fields: tuple[str, ...]  # fields the model learned from and this patient lacks
    inputs_digest: str
    frame_weights: dict[str, list[float]] = field(
        default_factory=dict
    )  # cine key -> weight per kept frame, sums to 1
    frame_indices: dict[str, list[int]] = field(default_factory=dict)  # cine key -> index of each kept frame
    out_of_scope: str = ""  # why the model abstains, else ""
    left_out: dict[str, str] = field(default_factory=dict)  # pixel key -> why that picture was not used

    def to_json(self) -> dict[str, Any]:
        """Plain data, for storage."""
        return asdict(self)

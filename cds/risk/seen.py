"""What people see of a risk: frozen dataclasses, made by `risk.queries`, drawn by `web`."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from cds.risk.standing import DataState


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What the worklist shows. Empty = no limit. `search` matches name or record number."""

    outcome: str = ""
    unit: str = ""
    category: str = ""  # thresholds.Category
    state: str = ""  # DataState
    version: str = ""  # id of a model version
    search: str = ""
    unacknowledged: bool = False
    rising: bool = False  # by 10 points or more over 24 h
    has_image: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WorklistRow:
    """One patient. `risk` is None when there is no number; then `reason` says why."""

    patient_id: str
    name: str
    record_number: str
    age_years: int | None
    sex: str
    location: str
    simulated: bool
    state: DataState
    reason: str
    risk: float | None = None
    low: float | None = None
    high: float | None = None
    level: float | None = None
    category: str = ""
    change_points: float | None = None  # over 24 h, in percentage points
    scored_at: datetime | None = None
    as_of: datetime | None = None
    retrospective: bool = False
    top_driver: str = ""
    image_series_id: str = ""
    acknowledged_by: str = ""
    response: str = ""  # acknowledged | overridden | snoozed
    assessment_id: str = ""
    failed_assessment_id: str = ""  # to try again
    prediction_id: int | None = None
    version_label: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorklistPage:
    """25 rows. `not_scored` counts the rows in the group at the end."""

    outcome: str
    outcome_label: str
    outcomes: tuple[tuple[str, str], ...]  # (name, label) of those that have an active model
    units: tuple[str, ...]
    rows: tuple[WorklistRow, ...]
    total: int
    not_scored: int
    page: int
    pages: int
    by_category: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Banner:
    """Who the panel is about. paused_since: since when nothing of their source is taken in."""

    patient_id: str
    name: str
    birth_date: str
    age_years: int | None
    sex: str
    record_number: str
    location: str
    source: str
    simulated: bool
    deceased: bool
    paused_since: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The number with all that must stand beside it."""

    risk: float
    low: float
    high: float
    level: float
    base_rate: float
    category: str
    category_word: str
    sentence: str  # "23 in 100 patients like this …"
    threshold: float
    policy: str
    policy_link: str
    summary: str


@dataclass(frozen=True, slots=True)
class TrendPoint:
    """One score; `event` marks a new model version."""

    at: datetime
    risk: float
    low: float
    high: float
    version_label: str
    new_version: bool = False
    response: str = ""


@dataclass(frozen=True, slots=True)
class ContributionView:
    """One modality: points on the risk scale (1 = 100 percentage points), its state and the model's AUROC."""

    modality: str
    label: str
    points: float
    present: bool
    pending: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class RawValue:
    """A source value behind a driver."""

    at: datetime
    value: float
    unit: str
    low: float | None
    high: float | None
    resource: str  # "Observation/…"


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverView:
    """One driver, in clinical words; `raw` are its source values, newest first."""

    modality: str
    name: str
    label: str
    points: float
    value: float | None
    unit: str
    at: datetime | None
    reference_low: float | None = None
    reference_high: float | None = None
    raw: tuple[RawValue, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteHit:
    """A sentence that moved the estimate."""

    text: str
    points: float
    strong: bool
    title: str
    author: str
    at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatMapView:
    """A heat map of one outcome on one Series. `passed`: its checks; None when they were not made."""

    heat_map_id: int
    method: str
    frame: int
    passed: bool | None
    sanity: dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageView:
    """A Series that can be shown. weights: (frame index, weight) of the frames a cine model kept."""

    series_id: str
    study_uid: str
    is_cine: bool
    taken_at: datetime | None
    imaging_modality: str
    body_part: str
    view: str
    laterality: str
    frames: int
    rows: int
    columns: int
    frame_ms: float | None
    spacing_row_mm: float | None
    remarks: tuple[str, ...]
    used: bool
    left_out: str = ""  # why the model did not judge it: out of scope
    heat_map: HeatMapView | None = None
    weights: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasurementView:
    """A size measured in a picture. value None: not known, `why` says so.

    reference   usual range, None: open;  earlier, the same size by the same method in the study before
    confidence  mean probability inside the masks, 0.5 to 1
    """

    name: str
    label: str
    value: float | None
    unit: str
    why: str
    reference: tuple[float | None, float | None]
    reference_source: str
    method: str
    method_version: str
    confidence: float | None
    series_id: str
    is_cine: bool
    taken_at: datetime | None
    earlier: float | None = None
    earlier_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """About this score."""

    version_id: str
    label: str
    active_since: datetime | None
    is_new: bool  # active for less than 14 days
    has_earlier: bool  # another answered before it
    trained_patients: int | None
    simulated: bool
    digest: str
    inputs_digest: str
    auroc: tuple[float, float, float] | None  # value, low, high on held-out patients
    correlation_id: str
    basis: tuple[tuple[str, str], ...]  # (resource type, id)
    unused: tuple[str, ...] = ()  # modalities it says nothing from: too few patients had them in training
    milliseconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseView:
    """What somebody answered."""

    response_id: str
    kind: str
    by: str
    at: datetime
    reason: str
    comment: str
    until: datetime | None
    via: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomePanel:
    """Everything about one outcome. `answer` is None when there is no number: see `state` and `reason`."""

    outcome: str
    label: str
    horizon_hours: float
    state: DataState
    reason: str
    freshness: str
    as_of: datetime | None
    retrospective: bool
    scored_at: datetime | None
    data_until: datetime | None
    answer: Answer | None
    assessment_id: str
    failed_assessment_id: str
    prediction_id: int | None
    trend: tuple[TrendPoint, ...]
    missing_modalities: tuple[str, ...]
    missing_fields: tuple[str, ...]  # labels, in clinical words
    contributions: tuple[ContributionView, ...]
    drivers: tuple[DriverView, ...]
    notes: tuple[NoteHit, ...]
    images: tuple[ImageView, ...]
    cines: tuple[ImageView, ...]
    measurements: tuple[MeasurementView, ...]
    model: ModelFacts
    responses: tuple[ResponseView, ...]  # newest first

    @property
    def response(self) -> ResponseView | None:
        """The answer that counts now, if any."""
        latest = self.responses[0] if self.responses else None
        return None if latest is None or latest.kind == "undone" else latest


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """The risk panel of one patient. `outcomes` is empty when no model is active."""

    banner: Banner
    outcomes: tuple[OutcomePanel, ...]
    now: datetime


@dataclass(frozen=True, slots=True)
class CardScore:
    """A score that stood on a card in the EHR, as it was then: told beside the one that is shown instead."""

    assessment_id: str
    risk: float
    low: float
    high: float
    category_word: str
    as_of: datetime
    scored_at: datetime | None

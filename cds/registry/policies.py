"""From which risk on the site acts, and what its policy says there: its own table, or the one shipped here.

RISK_POLICIES names a JSON file. Of each outcome in it, all is said there; outcomes it leaves out keep what is
shipped:

    {"icu-admission": {"moderate": 0.1, "high": 0.2, "very-high": 0.4,
                       "texts": {"high": "Call the outreach team.", "very-high": "Call the ICU registrar."},
                       "link": "https://intranet.example.org/deterioration"}}

A process reads it when it first needs it, so all are restarted to change it. A file that cannot be used stops
the start. Which table was in use when is kept (`risk.policing`); a score keeps the category it was given.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from django.conf import settings
from django.core.checks import CheckMessage, Error, register
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from cds.errors import Unavailable
from cds.registry.outcomes import OUTCOMES

Bound = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=300)]
Link = Annotated[str, StringConstraints(pattern=r"^(https://[^\s\"<>]{1,480})?$")]


class Policy(BaseModel):
    """Lower bounds of moderate, high and very high; a risk on a bound belongs to the higher category.

    texts  what the policy says of a category; one without a text has that of the next lower one that has
    link   where people read the whole of it; "" for nowhere
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    moderate: Bound
    high: Bound
    very_high: Bound = Field(alias="very-high")
    texts: dict[Literal["moderate", "high", "very-high"], Text] = Field(default_factory=dict)
    link: Link = ""

    @model_validator(mode="after")
    def _rise(self) -> Policy:
        if not self.moderate < self.high < self.very_high:
            raise ValueError("moderate must be below high, and high below very-high")
        return self


NOT_SET = "No local policy is set for this outcome."
_TABLE = TypeAdapter(dict[str, Policy])
SHIPPED: dict[str, Policy] = _TABLE.validate_python(
    {
        "icu-admission": {
            "moderate": 0.10,
            "high": OUTCOMES["icu-admission"].act_at,
            "very-high": 0.50,
            "texts": {
                "high": "At 25 % and above: ask a senior clinician to review, and observe at least every "
                "4 hours."
            },
        },
        "death": {
            "moderate": 0.05,
            "high": OUTCOMES["death"].act_at,
            "very-high": 0.35,
            "texts": {"high": "At 15 % and above: ask a senior clinician to review goals and level of care."},
        },
    }
)
OTHERWISE = Policy.model_validate(
    {"moderate": 0.10, "high": 0.25, "very-high": 0.50, "texts": {"high": NOT_SET}}
)


def policy_of(outcome: str) -> Policy:
    """What holds for an outcome here. Raises Unavailable where the site's table cannot be used."""
    return table().get(outcome, OTHERWISE)


def table() -> Mapping[str, Policy]:
    """Every outcome's policy. Raises Unavailable where the site's table cannot be used."""
    return _table(settings.RISK_POLICIES)


@lru_cache(maxsize=2)
def _table(path: Path | None) -> dict[str, Policy]:
    return SHIPPED if path is None else SHIPPED | _read(path)


def _read(path: Path) -> dict[str, Policy]:
    try:
        found = _TABLE.validate_json(path.read_bytes())
    except OSError as error:
        raise Unavailable(f"RISK_POLICIES: {path} cannot be read ({error.strerror})") from error
    except ValidationError as error:
        said = "; ".join(
            f"{' › '.join(str(part) for part in one['loc']) or 'the file'}: {one['msg']}"
            for one in error.errors()[:5]
        )
        raise Unavailable(f"RISK_POLICIES: {path}: {said}") from error
    unknown = sorted(found.keys() - OUTCOMES.keys())
    if unknown:
        known = ", ".join(OUTCOMES)
        raise Unavailable(
            f"RISK_POLICIES: {path}: no outcome is called {', '.join(unknown)}; there are {known}"
        )
    return found


@register
def check_policies(app_configs: Any, **_: Any) -> list[CheckMessage]:
    """Servers and workers do not start with a table that cannot be used."""
    try:
        table()
    except Unavailable as error:
        hint = "docs/guides/admin.md shows a whole table; unset RISK_POLICIES for the one that is shipped"
        return [Error(str(error), hint=hint, id="tessera.E002")]
    return []

"""The card about an imaging study being ordered: what the risk knows already, what the study would add."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from cds.hooks import ordering, wording
from cds.hooks.cards import CardKind, Said, Setting, Shown, said_of, shown_as
from cds.risk.standing import Standing

WITHOUT = {CardKind.OUT_OF_SCOPE: "not scored", CardKind.FAILED: "the score could not be computed"}


@dataclass(frozen=True, slots=True)
class Known:
    """What a version knows of a kind of imaging study for one patient.

    is_read     the model takes such studies;  is_used  the score shown used one, taken at `taken_at`
    with_all    AUROC on held-out patients with every input;  without  leaving this kind out; None: not known
    """

    is_read: bool
    is_used: bool = False
    is_pending: bool = False
    taken_at: datetime | None = None
    with_all: float | None = None
    without: float | None = None


def order_card(standing: Standing, setting: Setting, study: ordering.Imaging, known: Known) -> Shown:
    """The card about an imaging study being ordered: what the risk knows already, what it would add."""
    said = said_of(standing, setting)
    number = said.prediction
    kind = wording.escape(study.label)
    when, age = "", ""
    if known.is_used and known.taken_at is not None:
        age = wording.age_in_words(setting.now - known.taken_at)
        when = f" of {wording.moment(known.taken_at)} ({age} ago)"
    if not known.is_read:
        head = "would not change the risk"
        tell = [f"**The model does not read this kind of study:** {kind} adds nothing to it."]
    elif known.is_pending and not known.is_used:
        head = "one is here and still being read"
        tell = ["**Known soon:** one is here and being read; the next score uses it."]
    elif number is None and known.is_used:
        head = "one is here already"
        tell = [f"**Here already:** the latest of its kind{when} was read, and no risk could be given."]
    elif number is None:
        head = "the model reads such studies"
        tell = ["**The model reads this kind of study,** and uses it once it can give a risk at all."]
    elif known.is_used:
        head = "the risk already uses one" + (f", {age} old" if age else "")
        tell = [
            f"**Known already:** the score uses the latest of its kind{when}.",
            "A new one replaces it in the next score, as soon as it is here.",
        ]
    else:
        head = "the risk was computed without one"
        tell = [
            "**It would add what the score does without.** The next score uses it, as soon as it is here."
        ]
    if known.is_read and known.without is not None and known.with_all is not None:
        tell.append(
            f"On patients held out, AUROC was {known.with_all:.2f} with every input and {known.without:.2f} "
            "without this one."
        )
    summary = f"{study.label}: {head}; {_risk(said)}"
    return shown_as(
        Said(
            CardKind.ORDER,
            summary,
            [" ".join(tell), *_shorter(said.lines)],
            number,
            said.indicator,
            said.suggestions,
        ),
        standing,
        setting,
    )


def _risk(said: Said) -> str:
    """What is known of the risk, at the end of a summary; where there is no number, why in a few words."""
    number = said.prediction
    if number is None:
        return WITHOUT.get(said.kind, "no risk yet")
    if said.kind is CardKind.STALE:
        return f"risk was {wording.percent(number.risk)} (stale), {wording.event(number)}"
    return f"risk {wording.percent(number.risk)} ({wording.interval(number)}) {wording.event(number)}"


def _shorter(lines: list[str]) -> list[str]:
    """One line less, where there are five: the number and as of when it is on one."""
    said = [line for line in lines if line]
    return [wording.sentences(*said[:2]), *said[2:]] if len(said) > 4 else said

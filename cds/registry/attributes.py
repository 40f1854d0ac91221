"""The 31 source attributes of a predictive decision support intervention, in their 9 groups. Data only.

Source: 45 CFR 170.315(b)(11)(iv)(B), ONC's HTI-1 final rule (2024). Keys are ours, `group.attribute`;
`clause` is the place in (B). All are shown for every version; one without a text reads "not provided".
"""

from __future__ import annotations

from dataclasses import dataclass

NOT_PROVIDED = "not provided"


@dataclass(frozen=True, slots=True)
class Attribute:
    """One thing people must be told. `ask` helps whoever writes it."""

    key: str
    clause: str
    title: str
    ask: str


@dataclass(frozen=True, slots=True)
class Group:
    """Attributes that answer one question."""

    key: str
    title: str
    attributes: tuple[Attribute, ...]


def _group(number: int, key: str, title: str, *asked: tuple[str, str, str]) -> Group:
    steps = ("i", "ii", "iii", "iv", "v")
    return Group(
        key,
        title,
        tuple(
            Attribute(f"{key}.{name}", f"({number})({step})", said, ask)
            for step, (name, said, ask) in zip(steps, asked, strict=False)
        ),
    )


GROUPS: tuple[Group, ...] = (
    _group(
        1, "details", "Details and output",
        ("developer", "Developer", "Who developed the model, and how to reach them."),
        ("funding", "Funding", "Who paid for the technical implementation."),
        ("output", "What it gives", "The value that comes out: what it is, of what, over which time."),
        ("output_type", "Type of output", "Prediction, classification, recommendation, or another."),
    ),
    _group(
        2, "purpose", "Purpose",
        ("use", "Intended use", "What the model is for."),
        ("population", "Intended patients", "Whom it may be used for."),
        ("users", "Intended users", "Who is meant to read it."),
        ("role", "Role in decisions", "Whether it informs, augments or replaces a decision."),
    ),
    _group(
        3, "caution", "Cautioned out-of-scope use",
        ("out_of_scope", "Where not to use it", "Tasks, situations and patients it must not be applied to."),
        ("risks", "Known risks and limits", "Inappropriate settings and uses, known risks and limitations."),
    ),
    _group(
        4, "development", "Development and input features",
        ("criteria", "Who was included and excluded", "The criteria that shaped the training data."),
        (
            "variables", "Sensitive variables used",
            "Use of race, ethnicity, language, sexual orientation, gender identity, sex, date of "
            "birth, social "
            "determinants of health and health status.",
        ),
        ("representativeness", "Who it learned from", "How the training patients are made up."),
        ("relevance", "Relevance to this setting", "Why the training data fit the place of use."),
    ),
    _group(
        5, "fairness", "Process to ensure fairness",
        ("approach", "Approach to fairness", "What was done so that the output is fair."),
        ("bias", "Managing bias", "How bias was looked for, reduced or removed."),
    ),
    _group(
        6, "external", "External validation",
        ("source", "Data and setting", "Where, other than at the source of training data, it was assessed."),
        ("party", "Who tested it", "The party that conducted the external testing."),
        ("representativeness", "Patients tested", "How the external patients are made up."),
        ("process", "How it was tested", "The process of the external validation."),
    ),
    _group(
        7, "performance", "Quantitative measures of performance",
        ("internal_validity", "Validity, same source", "Figures on test data of the training source."),
        ("internal_fairness", "Fairness, same source", "Figures by group of patients, same source."),
        ("external_validity", "Validity, other source", "Figures on data of another source."),
        ("external_fairness", "Fairness, other source", "Figures by group of patients, another source."),
        ("outcomes", "Effect on outcomes", "Evaluations of what using it did to mortality, stay or others."),
    ),
    _group(
        8, "maintenance", "Ongoing maintenance",
        ("validity_process", "Monitoring validity", "How, and how often, validity is monitored."),
        ("local_validity", "Validity here", "Figures on local data."),
        ("fairness_process", "Monitoring fairness", "How, and how often, fairness is monitored."),
        ("local_fairness", "Fairness here", "Figures by group of patients on local data."),
    ),
    _group(
        9, "update", "Update schedule",
        ("process", "Updates", "How, and how often, the model is updated."),
        ("correction", "Corrections", "How often performance is corrected once a risk is known."),
    ),
)  # fmt: skip

ATTRIBUTES: dict[str, Attribute] = {one.key: one for group in GROUPS for one in group.attributes}

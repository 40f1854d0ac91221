"""The card of a version: 31 attributes, what a machine fills, what people write, and that nothing is lost."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from django.contrib.auth.models import User
from django.db import IntegrityError, transaction

from cds.audit import recording
from cds.audit.models import AuditEvent
from cds.errors import Conflict, Invalid, NotAllowed, NotFound
from cds.patients import access
from cds.registry import attributes, describing, model_card
from cds.registry.models import CardEntry, EntryOrigin, ModelVersion
from tests.web import clinic

NOW = datetime(2026, 3, 1, 8, tzinfo=UTC)


@pytest.fixture
def admin(db: None) -> User:
    return clinic.person("admin", access.Role.ADMIN)


def _edit(version: ModelVersion, key: str, text: str, number: int, user: User) -> CardEntry:
    return model_card.edit(version, key, text, number=number, by=recording.person(user), user=user, now=NOW)


def _line(version: ModelVersion, key: str) -> model_card.CardLine:
    return next(line for line in model_card.get_card(version).lines if line.attribute.key == key)


def test_there_are_31_attributes_in_9_groups() -> None:
    assert [len(group.attributes) for group in attributes.GROUPS] == [4, 4, 2, 4, 2, 4, 5, 4, 2]
    assert len(attributes.ATTRIBUTES) == 31
    clauses = [one.clause for one in attributes.ATTRIBUTES.values()]
    assert clauses[0] == "(1)(i)"
    assert clauses[-1] == "(9)(ii)"
    assert len(set(clauses)) == 31


def test_what_nobody_said_reads_not_provided(db: None) -> None:
    card = model_card.get_card(clinic.version(1, now=NOW))
    assert len(card.lines) == 31
    assert _line(card.version, "external.party").shown == "not provided"
    assert card.missing == sum(line.shown == "not provided" for line in card.lines) > 0


def test_a_machine_says_only_what_is_stored_with_the_version(db: None) -> None:
    version = clinic.version(1, now=NOW)
    said = describing.describe(version)
    assert "0.84 (0.77 to 0.91)" in said["performance.internal_validity"]
    assert "27 events" in said["performance.internal_validity"]
    assert "simulated patients only" in said["caution.risks"]
    assert "only 27 of the rarer answer" in said["caution.risks"]
    assert "sex female 60" in said["development.representativeness"]
    assert said["development.relevance"] == "None: the patients are simulated."
    # What only people know is never guessed.
    for key in ("details.developer", "details.funding", "external.source", "performance.outcomes"):
        assert key not in said


def test_a_version_without_a_report_is_described_without_figures(db: None) -> None:
    version = clinic.version(1, now=NOW)
    version.report, version.metadata = {}, {}
    said = describing.describe(version)
    assert "performance.internal_validity" not in said
    assert "development.criteria" not in said
    assert "nan" not in " ".join(said.values()).lower()


def test_what_is_not_used_is_said_in_words(db: None) -> None:
    version = clinic.version(1, now=NOW)
    version.metadata = {"left_out": {"cine, death": "3 of each are needed", "text, death@15d": "too few"}}
    said = describing.describe(version)["caution.risks"]
    assert "Not used: cine for Death within 30 days (3 of each are needed)." in said
    assert "Not used: notes for Death within 30 days, by 15 days (too few)." in said
    assert "@" not in said


def test_the_variables_name_what_the_model_reads(db: None) -> None:
    version = clinic.version(1, now=NOW)
    version.metadata = {
        "config": {"fields": [{"name": "age"}, {"name": "female"}], "modalities": ["tabular"]}
    }
    said = describing.describe(version)["development.variables"]
    assert "date of birth (as age), sex" in said
    assert "Not used: race" in said
    assert "Notes" not in said
    version.metadata["config"]["modalities"] = ["tabular", "text"]
    assert "Notes are read as text" in describing.describe(version)["development.variables"]


def test_an_edit_is_a_new_text_and_the_older_ones_stay(admin: User) -> None:
    version = clinic.version(1, now=NOW)
    drafted = _line(version, "purpose.use").text
    _edit(version, "purpose.use", "  For the night team.  ", 1, admin)
    _edit(version, "purpose.use", "", 2, admin)
    texts = [
        (entry.number, entry.text, entry.origin) for entry in model_card.list_entries(version, "purpose.use")
    ]
    assert texts == [(3, "", "person"), (2, "For the night team.", "person"), (1, drafted, "machine")]
    assert _line(version, "purpose.use").shown == "not provided"
    event = AuditEvent.objects.filter(action="card.edit").latest("pk")
    assert event.object_id == str(version.pk)


def test_two_writers_do_not_overwrite_each_other(admin: User) -> None:
    version = clinic.version(1, now=NOW)
    _edit(version, "details.developer", "Ward 3", 0, admin)
    with pytest.raises(Conflict, match="somebody else"):
        _edit(version, "details.developer", "Ward 4", 0, admin)
    assert _line(version, "details.developer").text == "Ward 3"


def test_bad_edits_change_nothing(admin: User) -> None:
    version = clinic.version(1, now=NOW)
    with pytest.raises(Invalid, match="at most 4000 characters"):
        _edit(version, "details.developer", "x" * 4001, 0, admin)
    with pytest.raises(NotFound):
        _edit(version, "details.nobody", "x", 0, admin)
    with pytest.raises(NotAllowed):
        _edit(version, "details.developer", "x", 0, clinic.person("alan", access.Role.APPROVER))
    assert not CardEntry.objects.filter(origin=EntryOrigin.PERSON).exists()


def test_people_s_texts_are_carried_over_to_be_confirmed(admin: User) -> None:
    first, second = clinic.version(1, now=NOW), clinic.version(2, now=NOW)
    _edit(first, "details.funding", "The hospital's own funds.", 0, admin)
    assert model_card.fill(second, now=NOW) > 10
    line = _line(second, "details.funding")
    assert (line.text, line.origin) == ("The hospital's own funds.", EntryOrigin.CARRIED)
    assert model_card.get_card(second).unconfirmed == 1
    assert "v" not in _line(second, "performance.internal_validity").origin
    _edit(second, "details.funding", line.text, 1, admin)
    assert model_card.get_card(second).unconfirmed == 0
    # Filling twice changes nothing; what was not confirmed is carried further, still unconfirmed.
    assert model_card.fill(second, now=NOW) == 0


def test_an_entry_has_an_author_exactly_when_a_person_wrote_it(admin: User) -> None:
    version = clinic.version(1, now=NOW)
    wrong: list[tuple[str, User | None]] = [("person", None), ("machine", admin)]
    for origin, author in wrong:
        with pytest.raises(IntegrityError), transaction.atomic():
            CardEntry.objects.create(
                version=version,
                attribute="purpose.use",
                number=9,
                origin=origin,
                author=author,
                written_at=NOW,
            )


def test_the_json_names_every_attribute(db: None) -> None:
    version = clinic.version(1, now=NOW)
    said = model_card.to_json(model_card.get_card(version))
    found = {f"{group}.{name}" for group, named in said["attributes"].items() for name in named}
    assert found == set(attributes.ATTRIBUTES)
    assert said["attributes"]["external"]["party"]["text"] is None
    assert said["model"]["digest"] == version.digest

"""All tasks at a glance: what the comparison tables say, in the same words, and never older than they are."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.study import __main__ as command
from benchmarks.study import pages, patterns, summary
from benchmarks.study.summary import Gap

TABLE = """## icu_physionet2012: the fused model beside the simple stack and the other arms

Grouped 5-fold cross-validation × 2, the same folds for all arms.

| task | rows / groups / events | best alone | simple stack | **fused** | fused − stack | fused − best alone |
| --- | --- | --- | --- | --- | --- | --- |
| Death | 76 / 60 / 19 | 0.639 (stack: image) | 0.615 | **0.476 [0.342, 0.606]** | {} | {} |

*{}, 2 CPU cores, Python 3.11.7, torch 2.13.0+cpu.*
"""


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ("+0.012 [+0.004, +0.021]", "better"),
        ("+0.012 [+0.000, +0.021]", "above"),  # an end that is printed as +0.000 may be 0
        ("+0.012 [-0.004, +0.021]", "above"),
        ("-0.012 [-0.030, +0.000]", "below"),
        ("-0.163 [-0.313, -0.000]", "worse"),  # an end that is printed as -0.000 is below 0
        ("-0.138 [-0.200, -0.076]", "worse"),
        ("+0.000 [+0.000, +0.000]", "level"),
    ],
)
def test_a_difference_is_called_by_its_interval(said: str, verdict: str) -> None:
    assert Gap(said).verdict == verdict


def test_a_row_and_its_goals_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PAGE", tmp_path / "experiments.md")
    table = TABLE.format("-0.138 [-0.200, -0.076]", "-0.040 [-0.085, +0.001]", "3 May 2026")
    pages.keep("icu_physionet2012_comparison", table)
    said = summary.run()
    assert (
        "| icu_physionet2012 | Death | 76 / 60 / 19 | 0.476 [0.342, 0.606] | -0.138 [-0.200, -0.076] | "
        "**worse** | not reckoned |  | -0.040 [-0.085, +0.001] (stack: image) | below | 3 May 2026 (× 2) |"
    ) in said
    assert "on every task: **missed**. Worse on 1 of 1 (icu_physionet2012: Death)" in said
    assert "Better than the stack on 3 tasks or more: **missed**" in said
    assert "AUROC of 0.85 on the ICU stays: **missed**" in said
    assert "Never significantly worse than the best modality: reached. Worse on none of 1" in said
    assert "- No table yet: cxr_covid." in said
    assert "within folds, on" not in said
    inside = "+0.004 [-0.020, +0.030] |"
    pages.keep("icu_physionet2012_comparison", table.replace("+0.001] |", f"+0.001] | {inside}"))
    said = summary.run()
    assert "**worse** | +0.004 [-0.020, +0.030] | above | -0.040" in said
    assert "The same within folds, on 1 tasks: worse on none of 1; below on none of 1." in said
    assert "that the other folds pick" not in said
    picked = f"{inside} -0.050 [-0.090, -0.010] |"
    pages.keep("icu_physionet2012_comparison", table.replace("+0.001] |", f"+0.001] | {picked}"))
    said = summary.run()
    assert "that the other folds pick, as one could have, on 1 tasks: worse on 1 of 1 (icu" in said


def test_boosting_on_the_series_and_patterns_are_told_where_a_table_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "PAGE", tmp_path / "experiments.md")
    table = TABLE.format("+0.012 [+0.004, +0.021]", "+0.001 [-0.001, +0.002]", "3 May 2026")
    pages.keep("icu_physionet2012_comparison", table)
    said = summary.run()
    assert "boosting on the 48 h series" not in said
    assert "every pattern" not in said
    best = "- Death: best arm is *fused, gated*, 0.852 [0.836, 0.866]; fused − *{}* {}."
    worse = f"{patterns.SAID}{{}} of 4{{}}."
    more = [
        best.format("gradient boosting, one row of all", "+0.005 [-0.002, +0.011]"),
        worse.format("none", ""),
        worse.format("1", " (tabular + image)"),
        f"{patterns.SAID_PICKED}2 of 4 (tabular + image; image + series).",
    ]
    pages.keep("icu_physionet2012_comparison", "\n".join([table, *more]))
    said = summary.run()
    assert "Fused − boosting on the 48 h series: +0.005 [-0.002, +0.011], above." in said
    assert "in the 2 tables of three modalities: worse in 1 of 8." in said
    assert "in the 1 tables of three modalities: worse in 2 of 4." in said


def test_a_task_that_the_place_alone_tells_better_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "PAGE", tmp_path / "experiments.md")
    table = TABLE.format("-0.038 [-0.200, +0.076]", "-0.040 [-0.085, +0.001]", "3 May 2026")
    pages.keep("icu_physionet2012_comparison", table)
    assert "How and where" not in summary.run(), "nothing of the kind was asked"
    arms = (
        "### Death (`death`): 76 / 60 / 19\n\n"
        "| site only | 0.678 [0.541, 0.801] | 0.009 | 0.4 | - | -0.063 [-0.2, +0.1] | {} |\n"
        "| fused: tabular only | 0.9 [0.8, 0.9] | 0.0 | 0.4 | - | - | -0.300 [-0.400, -0.200] |\n"
    )
    pages.keep("icu_physionet2012_comparison", table + arms.format("-0.202 [-0.300, +0.010]"))
    assert (
        "on 1 of 1 tasks where it varies (icu_physionet2012: Death: *site only* 0.678, fused 0.476, the "
        "difference -0.202 [-0.300, +0.010]); beyond chance on none."
    ) in summary.run()
    pages.keep("icu_physionet2012_comparison", table + arms.format("-0.202 [-0.300, -0.010]"))
    assert "beyond chance on 1." in summary.run()
    pages.keep("icu_physionet2012_comparison", table + arms.format("+0.202 [+0.100, +0.300]"))
    assert "on none of 1 tasks where it varies; beyond chance on none." in summary.run()


def test_a_table_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PAGE", tmp_path / "experiments.md")
    pages.keep("skin_ham10000_comparison", "## Of another shape\n\n| Death | 0.9 |")
    with pytest.raises(ValueError, match="skin_ham10000_comparison: no row"):
        summary.run()


def test_a_kept_comparison_brings_the_summary_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks.study import comparison

    def found(*_: object, **__: object) -> str:
        return TABLE.format("+0.012 [+0.004, +0.021]", "+0.001 [-0.001, +0.002]", "1 May 2026")

    monkeypatch.setattr(pages, "PAGE", tmp_path / "experiments.md")
    monkeypatch.setattr(comparison, "run", found)
    monkeypatch.setattr(command, "recognise", lambda _: "icu_physionet2012")
    asked = ["study", "icu_physionet2012", str(tmp_path), "--part", "comparison"]
    monkeypatch.setattr(sys, "argv", asked)
    command.main()
    assert "**better** | not reckoned |  | +0.001" in pages.PAGE.read_text()
    monkeypatch.setattr(sys, "argv", ["study", "summary"])
    command.main()
    assert "better on 1 of 1" in capsys.readouterr().out.lower()


def test_a_set_without_its_folder_says_what_is_needed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["study", "cxr_covid"])
    with pytest.raises(SystemExit):
        command.main()
    assert "cxr_covid needs DIR, the collection's folder" in capsys.readouterr().err


def test_the_page_holds_what_its_tables_say() -> None:
    kept = pages.find(summary.NAME)
    assert kept is not None
    assert kept.strip() == summary.run().strip(), "run: python -m benchmarks.study summary"
    assert kept.count("\n| ") == 1 + 1 + 16, "a head and a row for each of the sixteen tasks"

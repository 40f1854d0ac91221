"""The row of eight modalities is the whole path of a trained bundle, not of a bare head."""

from __future__ import annotations

from benchmarks import eight_modalities


def test_a_patient_with_all_eight_gets_the_whole_answer() -> None:
    """That all eight are present and explained, with an interval, is asserted where it is timed."""
    (took,) = eight_modalities.timed(["late"], times=2, trained=100).values()
    assert len(took) == 2

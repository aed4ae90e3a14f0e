"""Subgroups: a fixed set of groups, and the assignment of patients to them."""

import pytest

from pipeline.evaluation.subgroups import GROUPS, groups_of


@pytest.mark.parametrize(
    ("age_years", "sex", "manufacturer", "expected"),
    [
        (49.9, "F", "SIEMENS", {"under_50", "female", "siemens"}),
        (50.0, "M", "GE", {"50_to_69", "male", "ge"}),
        (69.9, "M", "PHILIPS", {"50_to_69", "male", "philips"}),
        (70.0, "F", "CANON", {"from_70", "female", "canon"}),
        (0.0, "O", "HITACHI", {"under_50", "other_scanner"}),
        (None, None, "OTHER", {"other_scanner"}),
        (None, "", "", set()),
    ],
)
def test_patients_are_assigned_to_their_groups(
    age_years: float | None, sex: str | None, manufacturer: str, expected: set[str]
) -> None:
    assert groups_of(age_years, sex, manufacturer) == expected
    assert expected <= set(GROUPS)

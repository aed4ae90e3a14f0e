"""Subgroups: a fixed set of groups, and the assignment of patients to them."""

import pytest

from pipeline.evaluation.subgroups import GROUPS, groups_of, groups_to_report


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


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ({"female": (20, 12), "male": (20, 18)}, {"female", "male"}),
        ({"female": (20, 21), "male": (20, 9)}, set()),  # subtraction would reveal the 9
        ({"female": (20, 12), "male": (10, 10)}, {"female"}),  # 10 + 8 have no sex: the smaller group joins them
        ({"female": (40, 30)}, {"female"}),  # no patient is beside it
        ({"female": (30, 20)}, {"female"}),
        ({"female": (31, 20)}, set()),
        ({"siemens": (10, 10), "ge": (12, 15), "philips": (18, 5)}, {"ge"}),
        ({"under_50": (9, 30), "50_to_69": (15, 15), "from_70": (16, 5)}, {"50_to_69"}),
    ],
)
def test_groups_are_reported_only_if_the_rest_is_large_or_empty(
    groups: dict[str, tuple[int, int]], expected: set[str]
) -> None:
    everybody = (40, 30)
    found = groups_to_report(everybody, groups, min_patients=10)
    negative, positive = (everybody[k] - sum(groups[group][k] for group in found) for k in (0, 1))
    assert (negative, positive) == (0, 0) or min(negative, positive) >= 10
    assert found == expected

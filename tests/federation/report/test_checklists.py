"""Tests of the reporting checklists: they are complete and are filled only with facts of the run."""

import re
from typing import Any

import pytest

from federation.report.checklists import AUTHORS, CHECKLISTS, read
from federation.report.content import content
from tests.helpers.results_factory import make_results


@pytest.fixture(scope="module")
def full() -> dict[str, Any]:
    return content(make_results())["checklists"]


@pytest.fixture(scope="module")
def bare() -> dict[str, Any]:
    """The checklists of a run without comparisons, at one site that reported nothing."""
    run = make_results(
        1,
        synthetic=False,
        audit=False,
        models=[],
        calibration={},
        operating_points={},
        local=False,
        leave_one_out=False,
    )
    return content(run)["checklists"]


def items(checklist: dict[str, Any]) -> dict[str, dict[str, str]]:
    return {item["number"]: item for item in checklist["items"]}


@pytest.mark.parametrize(("name", "last"), [("tripod_ai", 27), ("claim", 42)])
def test_every_item_is_present_in_order(name, last):
    numbers = [int(re.match(r"\d+", item["number"])[0]) for item in read(name)["items"]]
    assert sorted(set(numbers)) == list(range(1, last + 1))
    assert numbers == sorted(numbers)


@pytest.mark.parametrize("name", CHECKLISTS)
def test_items_that_a_run_cannot_answer_are_left_to_the_authors(name, full):
    for item in full[name]["items"]:
        assert (item["state"] == "authors") == (item["says"] == AUTHORS)
        assert (item["state"] == "in part") == ("The authors add" in item["says"])
        assert "{{" not in item["says"]


@pytest.mark.parametrize("number", ["2", "3a", "5b", "8c", "17", "18a", "18b", "18d", "19", "25", "27c"])
def test_ethics_and_funding_items_are_left_to_the_authors(full, number):
    assert items(full["tripod_ai"])[number]["state"] == "authors"


def test_steps_that_the_run_did_not_do_are_not_reported(full, bare):
    for number in ("14", "20b", "23a", "23b", "24"):
        assert items(full["tripod_ai"])[number]["state"] == "in part"
    for number in ("14", "23a", "23b", "24"):
        assert items(bare["tripod_ai"])[number]["state"] == "authors"
    for number in ("30", "32", "35", "36"):
        assert items(bare["claim"])[number]["state"] == "authors"


def test_items_show_the_settings_of_the_run(full):
    model = items(full["tripod_ai"])["12c"]["says"]
    assert "resnet18" in model
    assert "CenteredClip" in model
    assert "seed 1" in model
    assert "60 % training" in items(full["claim"])["20"]["says"]


def test_data_items_name_synthetic_patients(full, bare):
    for number in ("1", "5a", "26"):
        assert "SYNTHETIC" in items(full["tripod_ai"])[number]["says"]
        assert "SYNTHETIC" not in items(bare["tripod_ai"])[number]["says"]


def test_counts_add_up_to_the_number_of_items(full):
    for checklist in full.values():
        assert sum(checklist["counts"].values()) == len(checklist["items"])


def test_study_without_thresholds_is_asked_for_no_reasons_of_them(full, bare):
    assert "reasons for these thresholds" in items(full["tripod_ai"])["15"]["says"]
    says = items(bare["tripod_ai"])["15"]["says"]
    assert "No threshold was set." in says
    assert "these thresholds" not in says

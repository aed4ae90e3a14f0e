"""Tests of the demo's table: what stands in which column, and the file that holds the same figures."""

import json
from pathlib import Path

import pytest

from federation.comparison.model_table import (
    TOGETHER,
    Cell,
    Comparison,
    Difference,
    markdown,
    signed,
    write_results,
)
from federation.runs.results import FEDERATED
from pipeline.evaluation.discrimination import Auroc, Estimate

SITES = (TOGETHER, "north", "east (never trained)")


@pytest.fixture
def found() -> Comparison:
    cells = [
        Cell(model, site, label, Auroc(value, value - 0.1, value + 0.05, 40))
        for model, value in (("north alone", 0.7), (FEDERATED, 0.8))
        for site in SITES
        for label in ("pcr_positive", "severe")
    ]
    return Comparison(cells, [Difference("north alone", "severe", Estimate(0.1, -0.02, 0.22, 120))])


def test_all_patients_come_first_with_the_difference_beside_them(found: Comparison) -> None:
    head, _, alone, federated = (
        [cell.strip() for cell in line.split("|")[1:-1]] for line in markdown(found, "severe").splitlines()
    )
    assert head == ["AUROC of `severe` (95 % interval)", TOGETHER, "federated minus it", *SITES[1:]]
    assert alone[:3] == ["north alone", "0.70 (0.60–0.75)", "+0.10 (\N{MINUS SIGN}0.02 to +0.22)"]
    assert federated[:3] == [FEDERATED, "0.80 (0.70–0.85)", ""], "no model is compared with itself"


def test_difference_that_is_not_defined_is_a_dash() -> None:
    assert signed(Estimate.undefined(3)) == "–"


def test_results_are_written_as_table_figure_and_numbers(found: Comparison, tmp_path: Path) -> None:
    write_results(found, tmp_path)
    numbers = json.loads((tmp_path / "results.json").read_text())
    assert len(numbers["cells"]) == len(found.cells)
    assert numbers["differences"][0]["difference"]["value"] == 0.1
    text = (tmp_path / "results.md").read_text()
    assert text.index("`severe`") < text.index("`pcr_positive`")
    assert "say nothing about real patients" in text
    assert text.index('"federated minus it" is the difference') < text.index("| AUROC"), "a column is explained first"
    assert (tmp_path / "results.png").stat().st_size > 10_000

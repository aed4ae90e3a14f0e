"""The report of a masked study: what its sums give, and that the page says what is missing and why."""

import json
import re
from typing import Any

import pytest

from federation.report.content import SECTIONS, content
from federation.report.page import render
from federation.report.sums import sums
from federation.runs.figures_from_counts import of_label
from federation.runs.results import Flag, Results
from models.operating_points import POINTS
from tests.federation.report.test_page import Reader, numbers
from tests.helpers.results_factory import make_results
from tests.helpers.summed_results import make_secure_results

UNFORMATTED = re.compile(r"\bNone\b(?! in training)|\bnan\b|\binf\b")


@pytest.fixture(scope="module")
def run() -> Results:
    return make_secure_results(4)


@pytest.fixture(scope="module")
def page(run: Results) -> str:
    return render(content(run))


def text_of(run: Results) -> str:
    return " ".join(Reader(render(content(run))).text.split())


def of(run: Results) -> dict[str, Any]:
    found = sums(run)
    assert found
    return found


@pytest.mark.slow
def test_unmasked_study_has_no_sums() -> None:
    assert sums(make_results(2)) is None
    assert "masked" not in text_of(make_results(2, leave_one_out=False)).lower()


def test_content_has_what_the_counts_give(run: Results) -> None:
    told, found = of(run)["labels"]["severe"], of_label(run, "severe")
    assert found
    json.dumps(content(run), allow_nan=False)
    assert told["auroc"]["possible"][0] <= told["auroc"]["value"] <= told["auroc"]["possible"][1]
    assert told["curve"][0] == [0, 0]
    assert told["curve"][-1] == [1, 1]
    assert sum(point["patients"] for point in told["calibration"]["points"]) == found.positive + found.negative
    assert set(told["tables"]) == set(POINTS)
    assert told["over_lesion_load"]["low"] < told["over_lesion_load"]["value"] < told["over_lesion_load"]["high"]
    assert told["benefit"]["20"]["interval"]["value"] == told["benefit"]["20"]["model"]


def test_means_have_their_share_of_patients(run: Results) -> None:
    told = of(run)["labels"]["severe"]
    assert told["means"]["age_sex"]["known"] == 1.0
    shares = {group: mean["known"] for kind in told["groups"].values() for group, mean in kind.items() if mean}
    assert shares["female"] == 1.0
    assert 0 < shares["philips"] < 1
    assert told["groups"]["scanner"]["canon"] is None


def test_page_has_every_section_and_says_why_hospitals_are_missing(page: str, run: Results) -> None:
    found = Reader(page)
    assert [a["id"] for tag, a in found.tags if tag == "h2"] == list(SECTIONS)
    text = " ".join(found.text.split())
    assert "This study was masked." in text
    assert "What is missing, and that is the point" in text
    assert "A masked study trains one model" in text
    assert "Made in part." in text
    assert "What a threshold reaches at each hospital is not known" in text
    assert not UNFORMATTED.search(text)
    assert "under [gateway]" not in text, "no advice that masks make useless"
    images = [a for tag, a in found.tags if tag == "img"]
    assert len(images) == 5, "ROC, learning, reliability, net benefit, costs"
    assert all(a["alt"] for a in images)


def test_page_has_no_row_of_a_hospital_but_in_the_list_of_sites(run: Results, page: str) -> None:
    rows = re.findall(r'<th scope="row"><bdi>(north|south|east|west)</bdi>', page)
    assert sorted(rows) == sorted(run.sites), "once each, in the list of sites"


def test_each_number_of_the_tables_is_in_the_json(run: Results, page: str) -> None:
    shown = {text for value in numbers(content(run)) for text in (f"{value:.2f}", f"{value:+.2f}")}
    found = [n for each in Reader(page).cells for n in re.findall(r"(?<![\d.])[+−]?\d+\.\d\d(?!\d)(?! GB)", each)]
    assert len(found) > 100
    assert not {n for n in found if n.replace("−", "-") not in shown}


def test_headlines_have_intervals(page: str) -> None:
    tiles = page[page.index('<div class="tiles">') : page.index('id="summary"')]
    for tile in tiles.split('<div class="tile')[2:5]:
        assert re.search(r"<strong>0\.\d\d</strong>", tile)
        assert re.search(r"<b>95 % interval \d\.\d\d to \d\.\d\d</b>", tile)


def test_label_of_two_hospitals_is_left_out_with_the_reason() -> None:
    few = make_secure_results(3, few="severe")
    found = of(few)
    assert found["labels"]["severe"] is None
    assert found["labels"]["pcr_positive"]["sites"] == 3
    text = text_of(few)
    assert "No figures of severe: only 2 of the hospitals had enough patients" in text
    assert "No operating point" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"of_sum": {"counts": {}, "means": {}, "known": {}}},
        {"calibration": {}, "operating_points": {}},
        {"operating_points": {}, "missing_points": {}},
        {"audit": False},
        {"of_sum": {"means": {}, "known": {}}},
        {"skill": 8.0},
    ],
    ids=["nothing counted", "not calibrated", "no thresholds", "no audit", "no means", "separated classes"],
)
def test_page_is_whole_whatever_is_missing(changes: dict[str, Any]) -> None:
    audit = changes.get("audit", True)
    text = text_of(make_secure_results(3, **{**changes, "audit": audit}))
    assert "This study was masked." in text
    assert not UNFORMATTED.search(text)


@pytest.mark.slow
def test_page_with_many_hospitals_stays_short() -> None:
    page = render(content(make_secure_results(40, patients=60)))
    assert len([tag for tag, _ in Reader(page).tags if tag == "tr"]) < 40 + 220
    assert len(page) < 1_000_000


def test_lost_sum_leaves_a_page_that_says_so(run: Results) -> None:
    lost = run.models[0].model_copy(
        update={"summed": None, "withheld": dict.fromkeys(run.calibration, "the sum was lost")}
    )
    text = text_of(run.model_copy(update={"models": [lost]}))
    assert "No figures of severe: the sum was lost" in text
    assert not UNFORMATTED.search(text)


def test_flag_of_a_mean_is_shown_without_a_hospital(run: Results) -> None:
    assert run.audit
    flagged = run.audit.model_copy(update={"flags": [Flag(code="W_SHORTCUT_TAGS", site="", says="tags tell severe")]})
    text = text_of(run.model_copy(update={"audit": flagged}))
    assert "mean over hospitals: tags tell severe" in text
    assert "1 flag" in text

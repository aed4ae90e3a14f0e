"""Tests of the report page: self-contained, consistent with report.json, safe with any name, for any run size."""

import json
import os
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from federation.report import figures, figures_many
from federation.report.content import SECTIONS, content
from federation.report.page import cell, duration, render, write_report
from federation.runs.results import Results
from models.refusal import Refusal
from tests.helpers.results_factory import make_results, trained_too_long
from tests.helpers.summed_results import make_secure_results

NOTHING = make_results(1, models=[], sites={}, history=[], audit=False, operating_points={}, calibration={})
HOSTILE = ['<script>alert("1")</script>', "\u202egnp.exe", "$x_1$ & 'sons'", "a" * 200, "__class__ {{ 7 * 7 }}"]


class Reader(HTMLParser):
    """The page as a browser parses it: tags with attributes, table cells, text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.text = ""
        self._inside: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("td", "style", "title"):
            self._inside.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        if self._inside and self._inside[-1] == tag:
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self._inside:
            self.text += data
        if "td" in self._inside:
            self.cells[-1] += data


def page_of(run: Results) -> str:
    return render(content(run))


@pytest.fixture(scope="module")
def run() -> Results:
    return make_results(3, patients=600)


@pytest.fixture(scope="module")
def page(run: Results) -> str:
    return page_of(run)


@pytest.fixture(scope="module")
def full(page: str) -> Reader:
    return Reader(page)


@pytest.fixture(scope="module")
def bare() -> Reader:
    """The page of a run without optional evaluations, with one site that reported nothing."""
    without = {"local": False, "leave_one_out": False, "fine_tuned": False, "pooled": False, "audit": False}
    return Reader(page_of(make_results(1, **without, synthetic=False, models=[], operating_points={}, calibration={})))


def numbers(told: Any) -> Iterator[float]:
    if isinstance(told, dict):
        for value in told.values():
            yield from numbers(value)
    elif isinstance(told, list):
        for value in told:
            yield from numbers(value)
    elif isinstance(told, float):
        yield told


def test_page_loads_no_external_content_and_runs_no_script(full):
    for tag, attributes in full.tags:
        assert tag not in ("script", "link", "iframe", "object", "form")
        assert not any(name.startswith("on") for name in attributes)
        assert (attributes.get("src") or "data:").startswith("data:image/svg+xml;base64,") or tag != "img"
        assert (attributes.get("href") or "#").startswith("#")
    policy = next(a["content"] for tag, a in full.tags if tag == "meta" and a.get("http-equiv"))
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_links_point_to_the_sections_in_order(full):
    targets = [a["href"] for tag, a in full.tags if tag == "a"]
    assert targets == [f"#{name}" for name in SECTIONS]
    assert [a["id"] for tag, a in full.tags if tag == "h2"] == list(SECTIONS)


def audit_tile(text: str) -> str:
    return text.split("Shortcut audit", 1)[1].split("Reason to doubt", 1)[0]


@pytest.mark.parametrize("made", [make_results(3), make_secure_results(4)], ids=["plain", "masked"])
def test_audit_that_measured_nothing_is_not_shown_as_one_without_flags(made: Results) -> None:
    assert made.audit is not None
    nothing = {"sites": {site: {} for site in made.audit.sites}, "means": {}, "flags": []}
    empty = made.model_copy(update={"audit": made.audit.model_copy(update=nothing)})
    text = " ".join(Reader(page_of(empty)).text.split())
    assert "nothing was measured" in audit_tile(text)
    assert "W_NOT_AUDITED" in text and "enough test patients of each class" in text
    assert "Nothing was measured that could show a shortcut" in text
    for quiet in ("o metric exceeded the audit’s limits", "with a probability of at most", "Made in part"):
        assert quiet not in text
    assert "with a probability of at most" in page_of(made), "an audit with figures says it"


class Boxes(HTMLParser):
    """Counts the tables of a page that no box scrolls: a narrow screen would scroll the whole page sideways."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables = self.loose = 0
        self._boxes: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "div":
            self._boxes.append(dict(attrs).get("class") or "")
        if tag == "table":
            self.tables += 1
            self.loose += not (self._boxes and "scroll" in self._boxes[-1].split())

    def handle_endtag(self, tag: str) -> None:
        if tag == "div":
            self._boxes.pop()


@pytest.mark.parametrize(
    "made", [make_results(3), make_secure_results(4), make_results(14)], ids=["", "masked", "many"]
)
def test_every_table_scrolls_in_its_own_box(made: Results) -> None:
    found = Boxes(page_of(made))
    assert found.tables > 10
    assert not found.loose


def test_last_round_that_nobody_judged_is_named_and_counts_for_no_site() -> None:
    made = make_secure_results(3)
    history = [dict(entry) for entry in made.history]
    last = [entry for entry in history if "round" in entry and "lost" in entry][-1]
    last |= {"lost": False, "lost_for": None, "unjudged": [last["round"]]}
    run = made.model_copy(update={"history": history})
    about = content(run)["about"]
    assert about["rounds"]["left_out"] == [last["round"]]
    assert max(row["rounds"] for row in about["sites"].values()) <= about["rounds"]["counted"]
    assert f"not in the model: {last['round']}, taken back or last" in " ".join(Reader(page_of(run)).text.split())


def test_every_image_has_an_alternative_text(full):
    images = [a for tag, a in full.tags if tag == "img"]
    assert len(images) == 12
    assert all(a["alt"] for a in images)


def test_every_number_in_the_tables_is_in_the_json(run, full):
    shown = {text for value in numbers(content(run)) for text in (f"{value:.2f}", f"{value:+.2f}")}
    found = [n for each in full.cells for n in re.findall(r"(?<![\d.])[+−]?\d+\.\d\d(?!\d)(?! GB)", each)]
    assert len(found) > 300
    assert not {n for n in found if n.replace("−", "-") not in shown}


def test_means_over_sites_are_called_means(full):
    text = " ".join(full.text.split())
    assert "AUROC of severe, mean over 3 sites" in text
    assert "not the AUROC of all patients together" in text


def test_each_headline_has_an_interval(page):
    tiles = page[page.index('<div class="tiles">') : page.index('id="summary"')]
    for tile in tiles.split('<div class="tile')[2:5]:
        (headline,) = re.findall(r"<strong>([^<]*)</strong>", tile)
        assert re.fullmatch(r"[+−]?0\.\d\d", headline)
        assert re.search(r"<b>95 % interval [+−]?\d\.\d\d to [+−]?\d\.\d\d</b>", tile)
        bare = re.sub(r"<strong>.*?</strong>|<b>.*?</b>|<span class=\"interval\">.*?</span>", "", tile)
        for number in re.findall(r"[01]\.\d\d", bare):
            assert re.search(rf'{number} <span class="interval">', tile), "no figure of a tile lacks its interval"


def test_headline_without_intervals_says_so():
    run = make_results(2)
    for model in run.models:
        for row in model.figures.values():
            for name in [name for name in row if name.endswith(("_low", "_high"))]:
                del row[name]
    tiles = page_of(run).split('<div class="tiles">')[1].split('id="summary"')[0]
    assert "<b>its interval is not known</b>" in tiles


def test_section_of_thresholds_shows_counts_and_intervals(run, page):
    section = page[page.index('id="thresholds"') : page.index('id="baselines"')]
    rows = re.findall(r"<tr>\s*<th scope=\"row\">.*?</tr>", section, re.DOTALL)
    assert len(rows) == 3 * 2 * 2, "three sites, two thresholds, two labels"
    for row in rows:
        counts = re.findall(r'<td class="value">(\d+)</td>', row)
        assert len(counts) == 2
        assert all(int(count) >= 10 for count in counts)
        assert row.count('class="interval"') == 4
    without = page_of(make_results(2, histograms=False))
    section = without[without.index('id="thresholds"') : without.index('id="baselines"')]
    assert "histograms = true" in section
    assert 'class="interval"' not in section


def without(run, site, *names):
    """The run without these metrics of the federated model at one site."""
    row = run.models[0].figures[site]
    for name in [name for name in row if name.startswith(names)]:
        del row[name]
    return page_of(run)


def test_mean_row_says_over_which_sites_it_is():
    page = without(make_results(3), "north", "auroc_severe_age_sex", "auroc_severe_over", "calibration_slope_severe")
    baselines = page[page.index('id="baselines"') : page.index('id="audit"')]
    assert baselines.count("mean of the sites with all figures (2 of 3)") == 1, "of severe, not of PCR-positive"
    calibration = page[page.index('id="calibration"') : page.index('id="thresholds"')]
    assert calibration.count("(2 of 3 sites)") == 1, "only the slope is known at fewer sites"
    page = without(make_results(2), "north", "auroc_severe_age_sex", "auroc_severe_over")
    assert "mean of the sites with all figures (1 of 2)" in page
    assert "of 2 sites)" not in page


def test_synthetic_data_is_marked_at_the_top_and_on_every_printed_page(page, full, bare):
    assert full.text.index("SYNTHETIC DATA") < full.text.index("How to read it")
    assert ("p", {"class": "synthetic"}) in full.tags
    assert "SYNTHETIC" not in bare.text
    assert '@top-center { content: "SYNTHETIC' in page


def test_group_with_too_few_patients_is_shown_as_too_few(full):
    assert "too few" in full.cells


def test_each_refusal_is_shown_with_its_meaning(full):
    assert "E_SITE_MISSING" in full.cells
    assert any("did not answer in time" in each for each in full.cells)


def test_page_of_a_small_run_says_what_is_missing_and_how_to_enable_it(bare):
    text = " ".join(bare.text.split())
    for key in ("local_models", "leave_one_out", "fine_tune", "pooled", "shortcut_audit"):
        assert f"{key} = true under [evaluation]" in text
    assert "histograms = true under [gateway] in site.toml" in text
    assert "No site reported an AUROC of severe" in text
    assert "None" not in bare.text
    assert "nan" not in bare.text


def test_run_without_sites_or_rounds_has_a_page():
    assert "No round was held." in page_of(NOTHING)


def test_hostile_names_are_escaped():
    page = page_of(
        make_results(HOSTILE, run="</title><x>", local=False, leave_one_out=False, fine_tuned=False, histograms=False)
    )
    found = Reader(page)
    assert not [tag for tag, _ in found.tags if tag in ("script", "x")]
    assert HOSTILE[0] in found.text
    assert HOSTILE[4] in found.text
    assert "\u202e" not in page
    assert "\ufffdgnp.exe" in found.text
    assert "</title><x>" in found.text


def test_page_stays_short_with_a_hundred_sites():
    run = make_results(100, leave_one_out=False, fine_tuned=False, pooled=False, histograms=False)
    page = page_of(run)
    found = Reader(page)
    rows = len([tag for tag, _ in found.tags if tag == "tr"])
    assert rows < 100 + 250  # one row per site, plus the checklists
    assert len(page) < 2_000_000
    assert "hospital-100 alone" not in found.text
    assert "hospital-100" in found.text


def test_page_shows_sampled_and_counted_sites_and_that_models_are_a_sample():
    run = make_results(30, rounds=2, lost=(), leave_one_out=False, fine_tuned=False, pooled=False, histograms=False)
    names = sorted(run.sites)
    rounds = [
        {**entry, "sites": names[:9], "refused": {names[9]: "E_SITE_MISSING"}} if "round" in entry else entry
        for entry in run.history
    ]
    study = run.study.model_copy(
        update={
            "study": run.study.study.model_copy(update={"sites_per_round": 10}),
            "evaluation": run.study.evaluation.model_copy(update={"compared_sites": 2}),
        }
    )
    run = run.model_copy(update={"history": rounds, "study": study, "models": run.models[:3]})
    told = content(run)
    sites = told["about"]["sites"]
    assert [(sites[name]["rounds"], sites[name]["asked"]) for name in (names[0], names[9], names[10])] == [
        (2, 2),
        (0, 2),
        (0, 0),
    ]
    assert told["participation"]["by_site"][names[9]] == ["refused", "refused"]
    assert told["participation"]["by_site"][names[10]] == [None, None]
    found = Reader(render(told))
    assert "10 drawn for each round" in found.text
    assert "2 of the\n  30 sites" in found.text
    assert any("Which site counted" in (attributes.get("alt") or "") for _, attributes in found.tags)


def test_many_sites_are_sorted_by_ascending_auroc():
    run = make_results(30, local=False, leave_one_out=False, fine_tuned=False, pooled=False, histograms=False)
    values = {site: figures["auroc_severe"] for site, figures in run.models[0].figures.items()}
    text = Reader(page_of(run)).text
    text = text[text.index("The sites") :]
    places = [text.index(site) for site in sorted(values, key=values.__getitem__)]
    assert places == sorted(places)


def test_participation_is_drawn_only_if_a_site_missed_a_round():
    everybody = {"rounds": [1, 2], "by_site": {"north": ["counted"] * 2, "south": ["counted"] * 2}}
    assert figures_many.participation(everybody) is None
    assert figures_many.participation({"rounds": [1], "by_site": {"north": ["counted"], "south": [None]}})


def test_same_run_gives_the_same_bytes(run):
    cells = content(run)["discrimination"]["severe"]["by_site"]
    assert figures.aurocs(cells) == figures.aurocs(cells)
    assert page_of(NOTHING) == page_of(NOTHING)


def test_page_and_json_are_written_to_the_same_folder(tmp_path: Path):
    written = write_report(NOTHING, tmp_path / "new" / "report")
    assert written.page.parent == written.numbers.parent == tmp_path / "new" / "report"
    assert json.loads(written.numbers.read_text()) == json.loads(json.dumps(content(NOTHING)))
    assert sorted(path.name for path in written.page.parent.iterdir()) == ["report.html", "report.json"]


def test_report_replaces_no_link_and_no_device(tmp_path: Path):
    (tmp_path / "report.json").symlink_to(tmp_path / "numbers")
    os.mkfifo(tmp_path / "report.html")
    with pytest.raises(Refusal, match="E_REPORT_WRITE"):
        write_report(NOTHING, tmp_path)
    assert (tmp_path / "report.html").is_fifo()
    assert (tmp_path / "report.json").is_symlink() and json.loads((tmp_path / "numbers").read_text())


def test_folder_that_cannot_be_created_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Refusal, match="E_REPORT_WRITE"):
        write_report(NOTHING, tmp_path / "file" / "report")


def test_numbers_are_formatted_consistently():
    assert cell(None) == "–"
    assert cell(-0.004) == "0.00"
    assert cell(-0.25, "signed") == "−0.25"
    assert cell(0.25, "signed") == "+0.25"
    assert cell(0.347, "percent") == "35 %"
    assert cell({"value": 0.5, "low": None, "high": None}) == "0.50"
    assert "(0.40 to 0.60)" in cell({"value": 0.5, "low": 0.4, "high": 0.6})
    assert [duration(s) for s in (5.2, 119, 300, 7260)] == ["5 s", "119 s", "5 min", "2 h 1 min"]


def test_page_tells_that_a_study_trained_too_long(run: Results, full: Reader) -> None:
    assert "Trained too long" not in full.text
    warned = Reader(page_of(trained_too_long(run))).text
    assert "Trained too long: the validation loss of severe was lowest near round" in " ".join(warned.split())

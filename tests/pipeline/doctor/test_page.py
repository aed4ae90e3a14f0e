"""The shareable HTML page: lists problems, hides small counts, and identifies no patient, path or host."""

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from models.refusal import Refusal
from pipeline.cohort.ingest import Member
from pipeline.doctor.checkup import Checkup
from pipeline.doctor.contract import Facts, contract, numbers
from pipeline.doctor.page import content, render, write_page
from pipeline.preprocessing.preprocess_settings import Preprocessing
from pipeline.records import reasons
from pipeline.records.join import JoinRules, Labels
from pipeline.records.join_sensitivity import Variant
from pipeline.site.folder import Site, init_site
from pipeline.system.check_line import Line, refused
from pipeline.system.findings import Finding
from tests.pipeline.doctor.cohorts import assessed, member

SETTINGS = '[site]\nname = "ward"\n[laboratory]\nfile = "pcr.csv"\n[outcomes]\nfile = "outcomes.csv"\n'
NOW = datetime(2026, 1, 2, 3, 4)
MILD, SEVERE, NEGATIVE = Labels(True, False), Labels(True, True), Labels(False, None, None, reasons.NO_OUTCOME)
UNTESTED = Labels(None, None, reasons.NO_PCR)
LINES = (
    Line("network", "study's server", "fail", "no service listens there", "Check host and port.", "", "CANARY.example"),
    Line("environment", "disk", "ok", "enough space", "", "69.8 GB free; 4711 series"),
    Line("environment", "memory", "warn", "little of it", "End other programs."),
)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return init_site(tmp_path / "site", SETTINGS, key=b"k" * 32)


@pytest.fixture(autouse=True)
def no_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.doctor.contract.near_duplicates", lambda tensors: iter(()))


def checkup(site: Site, members: Sequence[Member], lines: Sequence[Line] = LINES, **more: object) -> Checkup:
    assessment = assessed(site, members, **more)  # type: ignore[arg-type]
    facts = Facts(site, Preprocessing(), assessment, Path(), [])
    labels = [m.labels for m in members]
    variant = Variant(
        "positive_from_days",
        -7,
        sum(each.pcr_positive is True for each in labels),
        sum(each.pcr_positive is False for each in labels),
        sum(each.reason is not None for each in labels),
    )
    return Checkup(
        "ward", 10, JoinRules(), tuple(lines), assessment, tuple(contract(facts)), numbers(facts), (variant,)
    )


def ward(mild: int, severe: int, negative: int, untested: int = 0, start: int = 0) -> list[Member]:
    labels = [MILD] * mild + [SEVERE] * severe + [NEGATIVE] * negative + [UNTESTED] * untested
    return [member(f"{i:016x}", each) for i, each in enumerate(labels, start)]


def steps(of: Checkup) -> dict[str, str]:
    return {step.code or step.says: step.text for step in content(of)["steps"]}


def test_blocking_problems_are_listed_before_refused_series(site: Site) -> None:
    members = [*ward(40, 20, 50), member("m", MILD, lungs_ml=1500)]
    problems = content(checkup(site, members, refused={"E_TILT": 12}))["problems"]
    assert [problem.status for problem in problems[:4]] == ["fail", "refuses", "warn", "flags"]
    assert [problem.about for problem in problems[:2]] == ["network: study's server", "E_TILT"]
    assert all(problem.remedy for problem in problems)
    assert (problems[1].count, problems[1].share) == ("12 series", "10 %")


def test_large_counts_are_shown_exactly(site: Site) -> None:
    assert steps(checkup(site, ward(40, 20, 50, 12), refused={"E_TILT": 30})) == {
        **{"series found": "152", "E_TILT": "30", "series accepted": "122", "patients with a usable CT": "122"},
        **{"E_NO_PCR": "12", "patients labelled": "110", "PCR-positive": "60", "severe course": "20"},
        **{"no severe course": "40", "PCR-negative": "50"},
    }


def test_small_counts_and_counts_that_reveal_them_are_hidden(site: Site) -> None:
    shown = steps(checkup(site, ward(40, 3, 50, 2), refused={"E_TILT": 1}))
    assert shown == {
        **{"series found": "≥10", "E_TILT": "<10", "series accepted": "95", "patients with a usable CT": "95"},
        **{"E_NO_PCR": "<10", "patients labelled": "≥10", "PCR-positive": "≥10", "severe course": "<10"},
        **{"no severe course": "40", "PCR-negative": "50"},
    }


def test_parts_of_a_small_count_are_not_listed(site: Site) -> None:
    shown = steps(checkup(site, ward(3, 2, 50)))
    assert shown["PCR-positive"] == "<10"
    assert "severe course" not in shown


def test_sites_that_differ_only_in_hidden_counts_have_the_same_page(site: Site) -> None:
    """A reader cannot distinguish the two sites, not even by the order of the rows."""
    pages = []
    for one, other in ((2, 5), (5, 2)):
        undecided = [
            *(member(f"n{i}", UNTESTED) for i in range(one)),
            *(member(f"w{i}", Labels(None, None, reasons.PCR_WINDOW)) for i in range(other)),
        ]
        small = [member(f"s{i}", MILD, lungs_ml=1500 if i < one else 4000) for i in range(10)]
        findings = [Finding(reasons.DATE, f"p{i}") for i in range(one)]
        findings += [Finding(reasons.PCR_DATE, f"p{i}") for i in range(other)]
        members = [*ward(60, 30, 50), *small, *undecided]
        made = checkup(site, members, refused={"E_TILT": one, "E_SPACING": other}, findings=findings)
        pages.append(render(made, NOW))
    assert "E_PCR_DATE" in pages[0]
    assert pages[0] == pages[1]


def test_page_of_a_data_set_without_pcr_results(site: Site) -> None:
    labels = [Labels(None, True)] * 20 + [Labels(None, False)] * 30
    made = checkup(site, [member(f"{i:016x}", each) for i, each in enumerate(labels)])
    shown = steps(made)
    assert (shown["without PCR result"], shown["severe course"], shown["no severe course"]) == ("50", "20", "30")
    assert "How the cohort changes" not in render(replace(made, variants=()), NOW)


def test_rule_counts_are_hidden_if_the_waterfall_is_hidden(site: Site) -> None:
    """The number of accepted scans with small lungs gives information on the number of accepted scans."""
    members = [*ward(60, 30, 50), *(member(f"s{i}", MILD, lungs_ml=1500) for i in range(20))]
    for also, refused_now, count in (([], {}, "20 series"), (ward(0, 0, 0, 1, 900), {"E_TILT": 1}, "≥10 series")):
        made = checkup(site, [*members, *also], refused=refused_now)
        problems = {problem.about: problem for problem in content(made)["problems"]}
        assert problems["W_SMALL_LUNGS"].count == count
        assert bool(problems["W_SMALL_LUNGS"].share) == (not also)


def test_count_with_a_small_remainder_is_not_shown_exactly(site: Site) -> None:
    members = [*ward(0, 0, 4), *(member(f"s{i}", MILD, lungs_ml=1500) for i in range(20))]
    problems = {p.about: p for p in content(checkup(site, members))["problems"]}
    assert problems["W_SMALL_LUNGS"].count == "≥10 series"
    assert problems["W_SMALL_LUNGS"].share == ""


def test_quartiles_are_shown_only_for_enough_scans(site: Site) -> None:
    assert content(checkup(site, ward(20, 9, 10)))["numbers"] == []
    middle = dict(content(checkup(site, ward(20, 10, 10)))["numbers"])
    assert middle["distance between slices, mm"] == "1.2 to 1.2"


def test_page_identifies_no_patient_and_no_path_or_host(site: Site) -> None:
    members = [member(f"CANARY{i}", MILD) for i in range(30)]
    findings = [Finding(reasons.PCR_UNMAPPED_FLAGGED, "CANARY-P", "CANARY^JANE")]
    page = render(checkup(site, members, findings=findings), NOW)
    assert "W_PCR_UNMAPPED" in page
    assert "CANARY" not in page
    assert str(site.folder) not in page
    assert "69.8" not in page and "4711" not in page, "exact numbers appear on the site's own screen only"


def test_page_is_one_file_without_external_resources(site: Site) -> None:
    page = render(checkup(site, ward(40, 30, 50)), NOW)
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    assert "default-src 'none'" in page
    assert "<script" not in page
    assert "data:image/svg+xml;base64," in page


def test_texts_are_html_escaped() -> None:
    line = Line("network", "server", "fail", "<b>", "Look at `<i>` & more.")
    page = render(Checkup("ward", 10, JoinRules(), (line,)), NOW)
    assert "Look at <code>&lt;i&gt;</code> &amp; more." in page
    assert "<b>" not in page


def test_page_without_scans_shows_the_other_checks() -> None:
    waiting = Line("scans", "scans", "skip", "E_NOTHING_PULLED: nothing yet", "Run `fedthorax node pull`.")
    page = render(Checkup("ward", 10, JoinRules(), (*LINES, waiting)), NOW)
    assert "Run <code>fedthorax node pull</code>." in page
    assert "1 problem prevents this site from" in page
    assert "The data contract" not in page


def test_page_without_problems_says_so() -> None:
    page = render(Checkup("ward", 10, JoinRules(), LINES[1:2]), NOW)
    assert "The checks found no problem." in page
    assert "What to do" not in page


def test_text_of_a_refusal_is_shown_without_its_numbers() -> None:
    refusal = Refusal(reasons.PCR_UNMAPPED, private="'CANARY' 3 times", table="laboratory", percent=37)
    line = refused("records", "laboratory", refusal)
    assert line.says == "E_PCR_UNMAPPED: … % of the laboratory file's rows have a result that is in none of the " + (
        "laboratory's word lists"
    )
    assert "37" in line.detail
    assert "CANARY" not in str(line.to_json())


def test_page_file_is_private_and_written_atomically(site: Site, tmp_path: Path) -> None:
    made = checkup(site, ward(40, 30, 50))
    write_page(made, tmp_path / "check.html")
    write_page(replace(made, site="ward-2"), tmp_path / "check.html")
    assert (tmp_path / "check.html").stat().st_mode & 0o777 == 0o600
    assert "Check of the site ward-2" in (tmp_path / "check.html").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir() if "check" in path.name] == ["check.html"]
    with pytest.raises(Refusal) as caught:
        write_page(made, tmp_path / "nowhere" / "check.html")
    assert caught.value.code == "E_REPORT_WRITE"


def test_page_replaces_no_link_and_no_device(site: Site, tmp_path: Path) -> None:
    made = checkup(site, ward(40, 30, 50))
    link, target, pipe, to_pipe = (tmp_path / name for name in ("link", "target", "pipe", "to-pipe"))
    link.symlink_to(target)
    os.mkfifo(pipe)
    to_pipe.symlink_to(pipe)
    write_page(made, link)
    write_page(made, link)  # the target exists now
    assert link.is_symlink() and target.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    for wrong in (pipe, to_pipe):
        with pytest.raises(Refusal, match="E_REPORT_WRITE"):
            write_page(made, wrong)
    assert pipe.is_fifo() and to_pipe.is_symlink()

"""The audit of the locked libraries against a database in the format of OSV."""

import json
import subprocess
import sys
import zipfile
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from federation.delivery.audit import Found, libraries_of, unanswered, vulnerabilities
from federation.delivery.cvss import base_score

ROOT = Path(__file__).resolve().parents[3]
LIBRARIES = {("PyPI", "some-library"): {"2.0"}, ("npm", "@scope/viewer"): {"1.5.0"}}
HIGH = "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:N/A:N"


def entry(name: str = "GHSA-1", *, events: tuple[dict[str, str], ...] = (), **more: Any) -> dict[str, Any]:
    package = {"ecosystem": "PyPI", "name": "Some_Library"}
    affected = {"package": package, "ranges": [{"type": "ECOSYSTEM", "events": list(events)}]}
    return {"id": name, "modified": "2026-11-20T00:00:00Z", "affected": [affected], **more}


def database(folder: Path, *entries: dict[str, Any]) -> Path:
    path = folder / "all.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for each in entries:
            archive.writestr(f"{each['id']}.json", json.dumps(each))
    return path


def introduced(version: str, **end: str) -> tuple[dict[str, str], ...]:
    return ({"introduced": version}, *({kind: value} for kind, value in end.items()))


@pytest.mark.parametrize(
    ("events", "affected"),
    [
        (introduced("0"), True),
        (introduced("0", fixed="2.0"), False),
        (introduced("0", fixed="2.0.1"), True),
        (introduced("2.0"), True),
        (introduced("2.0.post1"), False),
        (introduced("0", last_affected="2.0"), True),
        (introduced("0", last_affected="1.9"), False),
        ((*introduced("0", fixed="1.0"), *introduced("1.5", fixed="1.9")), False),
        ((*introduced("0", fixed="1.0"), *introduced("1.5")), True),
        (({"fixed": "1.0"}, {"introduced": "0"}), False),  # in any order
        (introduced("10.0"), False),  # not compared as text
    ],
)
def test_ranges_are_read_as_osv_defines_them(
    events: tuple[dict[str, str], ...], affected: bool, tmp_path: Path
) -> None:
    found = vulnerabilities(LIBRARIES, [database(tmp_path, entry(events=events))])
    assert bool(found) is affected


def test_listed_versions_and_npm_count_and_withdrawn_entries_do_not(tmp_path: Path) -> None:
    listed = entry("PYSEC-1")
    listed["affected"][0]["versions"] = ["2.0"]
    viewer = entry("GHSA-2", events=introduced("0"))
    viewer["affected"][0]["package"] = {"ecosystem": "npm", "name": "@scope/viewer"}
    viewer["affected"][0]["ranges"][0]["type"] = "SEMVER"
    withdrawn = entry("GHSA-3", events=introduced("0"), withdrawn="2026-01-01T00:00:00Z")
    other = entry("GHSA-4", events=introduced("0"))
    other["affected"][0]["package"]["ecosystem"] = "crates.io"
    found = vulnerabilities(LIBRARIES, [database(tmp_path, listed, viewer, withdrawn, other)])
    assert [each.identifier for each in found] == ["GHSA-2", "PYSEC-1"]


@pytest.mark.parametrize("events", [introduced("0", last_affected="2.13.0"), introduced("2.13.0", fixed="2.13.1"), ()])
def test_build_for_one_processor_has_the_vulnerabilities_of_its_version(
    events: tuple[dict[str, str], ...], tmp_path: Path
) -> None:
    known = entry(events=events)
    known["affected"][0]["versions"] = [] if events else ["2.13.0"]
    (found,) = vulnerabilities({("PyPI", "some-library"): {"2.13.0+cpu"}}, [database(tmp_path, known)])
    assert found.version == "2.13.0+cpu"
    fixed = entry(events=introduced("0", fixed="2.13.0"))
    assert vulnerabilities({("PyPI", "some-library"): {"2.13.0+cpu"}}, [database(tmp_path, fixed)]) == []


def test_version_of_a_bundle_does_not_hide_that_of_a_lock(tmp_path: Path) -> None:
    (locked,) = libraries_of(ROOT)["PyPI", "pydicom"]
    (tmp_path / "requirements.txt").write_text(f"pydicom==999.0 \\\n    --hash=sha256:{'0' * 64}\n")
    libraries = libraries_of(ROOT, [tmp_path / "requirements.txt"])
    assert libraries["PyPI", "pydicom"] == {locked, "999.0"}
    known = entry(events=introduced("0", last_affected=locked))
    known["affected"][0]["package"]["name"] = "pydicom"
    assert [each.version for each in vulnerabilities(libraries, [database(tmp_path, known)])] == [locked]


@pytest.mark.parametrize(
    ("stated", "needs_answer"),
    [
        ({"severity": [{"type": "CVSS_V3", "score": HIGH}]}, True),
        ({"severity": [{"type": "CVSS_V3", "score": HIGH.replace("C:H", "C:L")}]}, False),
        ({"database_specific": {"severity": "MODERATE"}}, False),
        ({"database_specific": {"severity": "CRITICAL"}}, True),
        ({"severity": [{"type": "CVSS_V3", "score": HIGH}], "database_specific": {"severity": "LOW"}}, True),
        ({"severity": [{"type": "CVSS_V4", "score": "CVSS:4.0/AV:N"}]}, True),  # not known: it cannot be excluded
        ({}, True),
    ],
)
def test_high_and_unknown_severity_need_an_answer(stated: dict[str, Any], needs_answer: bool, tmp_path: Path) -> None:
    found = vulnerabilities(LIBRARIES, [database(tmp_path, entry(events=introduced("0"), **stated))])
    assert [each.needs_answer for each in found] == [needs_answer]


def test_an_answer_holds_until_its_day_under_any_of_the_names() -> None:
    found = [Found("GHSA-1", frozenset({"CVE-2026-1"}), "some-library", "2.0", 9.8, "")]
    answers = {"CVE-2026-1": {"answer": "never called", "until": date(2026, 12, 1)}}
    assert unanswered(found, answers, date(2026, 12, 1)) == []
    assert unanswered(found, answers, date(2026, 12, 2)) == found
    assert unanswered(found, {"CVE-2026-1": {**answers["CVE-2026-1"], "answer": " "}}, date(2026, 12, 1)) == found
    assert unanswered(found, {}, date(2026, 12, 1)) == found


@pytest.mark.parametrize(
    ("vector", "score"),  # examples of the specification's calculator
    [
        ("CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H", 9.8),
        ("CVSS:3.1/AV:N/AC:L/PR:N/UI:R/S:C/C:L/I:L/A:N", 6.1),
        ("CVSS:3.1/AV:L/AC:H/PR:H/UI:R/S:U/C:L/I:N/A:N", 1.8),
        ("CVSS:3.0/AV:N/AC:L/PR:L/UI:N/S:C/C:H/I:H/A:H", 9.9),
        ("CVSS:3.1/AV:N/AC:H/PR:N/UI:N/S:U/C:N/I:N/A:N", 0.0),
        ("CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:N/I:N/A:H/E:P", 7.5),
        ("CVSS:4.0/AV:N/AC:L/AT:N/PR:N/UI:N/VC:H/VI:H/VA:H/SC:N/SI:N/SA:N", None),
        ("CVSS:3.1/AV:N", None),
        ("AV:N/AC:L/Au:N/C:P/I:P/A:P", None),
    ],
)
def test_base_scores_are_those_of_the_specification(vector: str, score: float | None) -> None:
    assert base_score(vector) == score


def test_command_reads_all_locks_and_fails_without_an_answer(tmp_path: Path) -> None:
    libraries = libraries_of(ROOT)
    assert {("PyPI", "flwr"), ("PyPI", "mlflow"), ("PyPI", "highdicom"), ("npm", "@niivue/niivue")} <= set(libraries)
    assert ("npm", "axe-core") not in libraries
    bad = entry(events=introduced("0"), summary="bad")
    bad["affected"][0]["package"]["name"] = "pydicom"
    command = [sys.executable, "-m", "federation.delivery.audit"]
    done = subprocess.run([*command, database(tmp_path, bad)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert (
        f"pydicom {''.join(libraries['PyPI', 'pydicom'])}  GHSA-1  severity unknown  NEEDS AN ANSWER: bad"
        in done.stdout
    )
    none = database(tmp_path, entry("GHSA-9"))
    assert subprocess.run([*command, none], cwd=ROOT, capture_output=True, check=False).returncode == 0

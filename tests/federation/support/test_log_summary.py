"""The summary of a log copies no word of it: each one is looked up in the release."""

from pathlib import Path

import pytest

from federation.support.log_summary import log_summary
from tests.federation.support.planted import FAMILY, FORMS, NAME, assert_nothing_planted, traceback_of


def summary(folder: Path, content: bytes) -> dict[str, object]:
    (folder / "a.log").write_bytes(content)
    found: dict[str, object] = log_summary(folder, ["a.log"])["a.log"]
    return found


def test_codes_exceptions_and_places_of_the_release_are_counted(tmp_path: Path) -> None:
    content = traceback_of(NAME) * 2 + "E_DISK\n"
    found = summary(tmp_path, content.encode())
    assert found == {
        "lines": content.count("\n"),
        "codes": {"E_DISK": 1, "E_PACS_SILENT": 2},
        "latest": ["E_PACS_SILENT", "E_PACS_SILENT", "E_DISK"],
        "exceptions": {"InvalidDicomError": 2, "ValueError": 2},
        "places": {"pipeline/clinic/worker.py:100": 2},
    }


@pytest.mark.parametrize("form", FORMS)
def test_words_that_the_release_does_not_contain_are_left_out(form: str, tmp_path: Path) -> None:
    found = summary(tmp_path, FORMS[form])
    assert_nothing_planted(found)


@pytest.mark.parametrize("place", ["pipeline/../configs/x.py", "models/../../etc/passwd.py", f"pipeline/{FAMILY}.py"])
def test_only_files_of_the_release_are_places(place: str, tmp_path: Path) -> None:
    assert summary(tmp_path, f'  File "/x/{place}", line 1, in f\n'.encode())["places"] == {}


def test_only_the_logs_of_the_role_are_read(tmp_path: Path) -> None:
    for name in ("a.log", "a.log.1", f"a.log.{NAME}", f"{NAME}.log", "b.log"):
        (tmp_path / name).write_text("E_DISK\n")
    (tmp_path / "a.log.2").mkdir()
    assert set(log_summary(tmp_path, ["a.log", "c.log"])) == {"a.log", "a.log.1"}
    assert log_summary(tmp_path / "nowhere", ["a.log"]) == {}


def test_a_study_cannot_count_in_its_log(tmp_path: Path) -> None:
    (tmp_path / "app.log").write_text("E_PACS_SILENT\n" + "E_DISK\n" * 4401 + traceback_of(NAME))
    assert log_summary(tmp_path, [], of_app=["app.log"]) == {"app.log": {"codes": ["E_DISK", "E_PACS_SILENT"]}}


def test_only_the_end_of_a_long_log_is_read(tmp_path: Path) -> None:
    found = summary(tmp_path, b"E_DISK\n" + b"x" * (16 * 2**20) + b"\nE_DISK\n")
    assert found["codes"] == {"E_DISK": 1}

"""The parts of a report survive what is broken, and count only words of the release."""

from pathlib import Path
from typing import Any, Literal

import pytest

from federation.support.sections import bounded, disk, head, listed_words, section, tally, version_word
from federation.system.reasons import BACKUP_EXISTS
from models.refusal import Reason, Refusal
from tests.federation.support.planted import NAME, SENTENCE, assert_nothing_planted


class BergqvistSylviError(Exception):
    """An exception whose name names a patient."""


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (Refusal(BACKUP_EXISTS, private=SENTENCE), "E_BACKUP_EXISTS"),
        (Refusal(Reason("E_BERGQVIST", SENTENCE, SENTENCE)), "other"),
        (ValueError(SENTENCE), "ValueError"),
        (BergqvistSylviError(SENTENCE), "other"),
    ],
)
def test_section_that_fails_is_its_problem(error: Exception, problem: str) -> None:
    def fail() -> Any:
        raise error

    assert section(fail) == {"problem": problem}


def test_words_of_others_are_counted_together() -> None:
    assert tally(["E_DISK", NAME, 7, None, "E_DISK"], {"E_DISK"}) == {"E_DISK": 2, "other": 3}
    assert listed_words(Literal["a", "b"] | list[Literal["c"]] | None) == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [("0.1.0", "0.1.0"), ("1.10rc2", "1.10rc2"), (NAME, "other"), ("1.2.826.0.1.3680043", "other"), (3, "other")],
)
def test_versions_have_few_digits(text: Any, shown: str) -> None:
    assert version_word(text) == shown


def test_numbers_have_few_digits() -> None:
    assert (bounded(12), bounded(1.23456), bounded(4401728395566)) == (12, 1.235, "(large)")


def test_disk_names_only_known_parts_in_whole_megabytes(tmp_path: Path) -> None:
    (tmp_path / "scans" / NAME).mkdir(parents=True)
    (tmp_path / "scans" / NAME / NAME).write_bytes(b"x" * 1_234_567)
    (tmp_path / NAME).write_text(SENTENCE)
    (tmp_path / "link").symlink_to(tmp_path / "scans")
    found = disk(tmp_path, ("scans", "link", "missing"))
    assert found["parts_mb"] == {"scans": 2, "link": 2}
    assert_nothing_planted(found)


def test_head_of_a_folder_that_no_version_knows(tmp_path: Path) -> None:
    (tmp_path / "format.json").write_text(SENTENCE)
    assert head(tmp_path)["last_version"] == {"problem": "E_FORMAT_NEWER"}

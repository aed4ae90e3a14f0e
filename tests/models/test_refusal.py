"""Refusals have a code and values, and their text contains no patient data."""

import errno
import os
import re
import string

import pytest

from models import reasons as models_reasons
from models.reason_tables import tables
from models.refusal import Reason, Refusal, without_error_number

TABLES = (models_reasons, *tables("pipeline").values(), *tables("federation").values())
REASONS = [
    (table.__name__, name, reason)
    for table in TABLES
    for name, reason in vars(table).items()
    if isinstance(reason, Reason)
]


def test_refusal_text_contains_code_and_values_but_no_private_data() -> None:
    reason = Reason("E_EXAMPLE", "{count} slices are missing", "Send them again.")
    refusal = Refusal(reason, private="/ct/CANARY^JANE/1.dcm", count=3)

    assert str(refusal) == "E_EXAMPLE: 3 slices are missing"
    assert (refusal.code, refusal.says, refusal.remedy) == ("E_EXAMPLE", "3 slices are missing", "Send them again.")
    assert refusal.private == "/ct/CANARY^JANE/1.dcm"
    assert "CANARY" not in f"{refusal} {refusal!r}"


def test_number_of_a_system_error_is_not_shown() -> None:
    found = FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), "/out")
    assert Refusal(Reason("E_EXAMPLE", "a", "b"), private=f"out: {found}").private == "out: File exists: '/out'"
    assert without_error_number("[Errno of a person] [Errno -2] x") == "[Errno of a person] x"


def test_braces_in_a_value_are_not_formatted_again() -> None:
    """Values can be parser messages, which may contain braces."""
    refusal = Refusal(Reason("E_EXAMPLE", "wrong: {problem}", "Correct it."), problem="{count} {0}")
    assert refusal.says == "wrong: {count} {0}"


COUNTED = "slices|hospitals|sites|patients|scans|rows|results|distances|groups|rounds|files"


@pytest.mark.parametrize("reason", [reason for *_, reason in REASONS], ids=lambda reason: reason.code)
def test_text_of_a_reason_fits_a_count_of_one(reason: Reason) -> None:
    """No verb in the plural after a count: "1 slices are missing"."""
    assert not re.search(rf"^\{{\w+\}} ({COUNTED})\b", reason.says), "name the count after its noun"


def test_only_codes_starting_with_e_refuse() -> None:
    assert Reason("E_A", "a", "b").refuses
    assert not Reason("W_A", "a", "b").refuses


@pytest.mark.parametrize(("table", "name", "reason"), REASONS, ids=[f"{t}.{n}" for t, n, _ in REASONS])
def test_each_reason_is_well_formed(table: str, name: str, reason: Reason) -> None:
    assert re.fullmatch(r"[EW]_[A-Z][A-Z0-9_]+", reason.code)
    assert not reason.says.endswith("."), "a clause without a period: the remedy follows it"
    assert reason.remedy.endswith("."), "a full sentence: it tells the user what to do"
    for _, field, conversion, _ in string.Formatter().parse(reason.says):
        assert field is None or re.fullmatch(r"[a-z_]+", field), "values are passed by name"
        assert not conversion


def test_each_code_has_one_meaning() -> None:
    texts: dict[str, set[str]] = {}
    for _, _, reason in REASONS:
        texts.setdefault(reason.code, set()).add(reason.says)
    assert [code for code, says in texts.items() if len(says) > 1] == []

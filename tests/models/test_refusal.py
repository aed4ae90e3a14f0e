"""Refusals: coded, numbered, and without a patient in their text."""

import re
import string

import pytest

from models import reasons as models_reasons
from models.reason_tables import tables
from models.refusal import Reason, Refusal

TABLES = (models_reasons, *tables("pipeline").values(), *tables("federation").values())
REASONS = [
    (table.__name__, name, reason)
    for table in TABLES
    for name, reason in vars(table).items()
    if isinstance(reason, Reason)
]


def test_the_text_holds_code_and_numbers_and_nothing_private() -> None:
    reason = Reason("E_EXAMPLE", "{count} slices are missing", "Send them again.")
    refusal = Refusal(reason, private="/ct/CANARY^JANE/1.dcm", count=3)

    assert str(refusal) == "E_EXAMPLE: 3 slices are missing"
    assert (refusal.code, refusal.says, refusal.remedy) == ("E_EXAMPLE", "3 slices are missing", "Send them again.")
    assert refusal.private == "/ct/CANARY^JANE/1.dcm"
    assert "CANARY" not in f"{refusal} {refusal!r}"


def test_braces_in_a_number_are_not_filled_in_again() -> None:
    """Texts of parsers come in as numbers and may hold braces."""
    refusal = Refusal(Reason("E_EXAMPLE", "wrong: {problem}", "Correct it."), problem="{count} {0}")
    assert refusal.says == "wrong: {count} {0}"


def test_only_e_codes_refuse() -> None:
    assert Reason("E_A", "a", "b").refuses
    assert not Reason("W_A", "a", "b").refuses


@pytest.mark.parametrize(("table", "name", "reason"), REASONS, ids=[f"{t}.{n}" for t, n, _ in REASONS])
def test_each_reason_is_well_formed(table: str, name: str, reason: Reason) -> None:
    assert re.fullmatch(r"[EW]_[A-Z][A-Z0-9_]+", reason.code)
    assert not reason.says.endswith("."), "a clause: remedies follow it"
    assert reason.remedy.endswith("."), "a sentence: it tells what to do"
    for _, field, conversion, _ in string.Formatter().parse(reason.says):
        assert field is None or re.fullmatch(r"[a-z_]+", field), "numbers are given by name"
        assert not conversion


def test_no_code_means_two_things() -> None:
    texts: dict[str, set[str]] = {}
    for _, _, reason in REASONS:
        texts.setdefault(reason.code, set()).add(reason.says)
    assert [code for code, says in texts.items() if len(says) > 1] == []

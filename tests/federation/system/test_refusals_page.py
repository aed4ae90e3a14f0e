"""Tests of the reason tables and of the page generated from them."""

from collections import Counter
from pathlib import Path

import pytest

import models.reasons
from federation.system.refusals_page import REASONS, SECTIONS, page
from models.reason_tables import tables
from models.refusal import Reason

_OTHER_NAMES = {"E_SIGNATURE": "SIGNATURE_WRONG"}  # SIGNATURE is the name of the signature file
DOCS = Path(__file__).resolve().parents[3] / "docs"
TABLES = [models.reasons, *tables("pipeline").values(), *tables("federation").values()]
NAMED = [(name, value) for table in TABLES for name, value in vars(table).items() if isinstance(value, Reason)]


def test_refusals_page_is_up_to_date() -> None:
    assert (DOCS / "refusals.md").read_text() == page(), (
        "run: python -m federation.system.refusals_page > docs/refusals.md"
    )


def test_every_code_has_one_reason() -> None:
    codes = Counter(reason.code for _, reason in NAMED)
    assert max(codes.values()) == 1
    assert set(codes) == set(REASONS)
    assert len(REASONS) == sum(map(len, SECTIONS.values())) > 380


@pytest.mark.parametrize(("name", "reason"), NAMED, ids=[reason.code for _, reason in NAMED])
def test_reason_is_named_as_its_code_and_has_text_and_remedy(name: str, reason: Reason) -> None:
    """If a code exists as refusal (E_) and as flag (W_), one of the two constants has a suffix."""
    kind, plain = reason.code[:2], reason.code[2:]
    has_both = {f"E_{plain}", f"W_{plain}"} <= REASONS.keys()
    suffix = {"E_": "_REFUSED", "W_": "_FLAGGED"}[kind]
    assert name in ((plain, plain + suffix) if has_both else (plain, _OTHER_NAMES.get(reason.code)))
    assert reason.says
    assert reason.remedy.endswith(".")


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.__name__)
def test_reason_table_is_short_and_contains_only_reasons(table: object) -> None:
    text = Path(str(table.__file__)).read_text()  # type: ignore[attr-defined]
    assert len(text.splitlines()) <= 300
    imports = [line for line in text.splitlines() if line.startswith(("import", "from"))]
    assert imports == ["from models.refusal import Reason"]

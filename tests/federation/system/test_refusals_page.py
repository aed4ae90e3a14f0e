"""The tables of reasons, and the page made from them."""

from pathlib import Path

from federation.system.refusals_page import TABLES, page, table

DOCS = Path(__file__).resolve().parents[3] / "docs"


def test_the_page_is_up_to_date():
    assert (DOCS / "refusals.md").read_text() == page(), (
        "run: python -m federation.system.refusals_page > docs/refusals.md"
    )


def test_no_code_stands_for_two_reasons():
    codes = [reason.code for module in TABLES.values() for reason in table(module)]
    assert len(codes) == len(set(codes))


def test_every_reason_has_a_code_a_text_and_a_remedy():
    for module in TABLES.values():
        for reason in table(module):
            assert reason.code.startswith(("E_", "W_"))
            assert reason.says
            assert reason.remedy.endswith(".")

"""Tests of error codes: only codes of a closed table leave the site, whatever text an app writes."""

import math
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.protocol.error_codes import FAILED, OF_APPS, OF_SITES, code_in
from federation.system.refusals_page import REASONS

MAX_BITS = 9.0
NAME = "BERGQVIST_SYLVI"


def test_codes_are_few_and_come_from_the_reason_tables() -> None:
    every = set(REASONS)
    assert FAILED in OF_APPS < OF_SITES < every
    assert math.log2(len(OF_SITES)) <= MAX_BITS
    assert len(OF_APPS) <= 16
    assert all(code.startswith("E_") for code in OF_SITES)


@pytest.mark.parametrize("allowed", [OF_APPS, OF_SITES], ids=["at the gateway", "at the server"])
@pytest.mark.parametrize(
    "text",
    [
        f"E_{NAME}",
        f"E_{NAME}: E_SITE_FAILED",
        f"E_SITE_FAILED_{NAME}",
        f"E_TOO_FEW_PATIENTS_{NAME}",
        f"E_{NAME[::-1]}",
        f"E_{NAME.replace('_', '')}",
        "E_" + "".join(chr(ord("A") + int(digit)) for digit in "4401728395566"),
        "E_PCR_POSITIVE",
        "E_TOO_FEW_PATIENT",
        "E_TOO_FEW_PATIENTSS",
        "E__TOO_FEW_PATIENTS",
        "W_TILT",
        "e_site_failed",
        "E_TOO_FEW_PATIENTS\u200b",
        "\ufeffE_TOO_FEW_PATIENTS",
        "E_TOO_FEW_P\u0410TIENTS",  # a Cyrillic letter
    ],
)
def test_name_written_as_a_code_is_replaced(text: str, allowed: frozenset[str]) -> None:
    assert code_in(text, allowed) == FAILED


@given(st.text(string.ascii_uppercase + "_", max_size=42), st.sampled_from(["", ":", " ", "\n", ": ok"]))
def test_any_text_gives_a_code_of_the_table(letters: str, after: str) -> None:
    assert code_in(f"E_{letters}{after}", OF_APPS) in OF_APPS


@pytest.mark.parametrize("code", sorted(OF_APPS))
def test_app_code_passes_without_the_text_after_it(code: str) -> None:
    for text in (code, f"{code}: {NAME}", f"{code}\n{NAME}"):
        assert code_in(text, OF_APPS) == code


def test_gateway_code_is_not_accepted_from_an_app() -> None:
    assert code_in("E_REPLY_UPDATE", OF_APPS) == FAILED
    assert code_in("E_REPLY_UPDATE") == "E_REPLY_UPDATE"
    assert code_in(None) == FAILED

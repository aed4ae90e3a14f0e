"""Judging received bytes and acknowledging them: whatever comes, the acknowledgement is a message that can be read."""

from datetime import UTC, datetime

import hl7
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.feeds.acknowledgement import Fault, acknowledge, find_fault, read_header
from tests.pipeline.feeds.listener_rig import result

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
GOOD = result("CONTROL")


def answer(content: bytes) -> bytes | None:
    """The acknowledgement as the listener makes it."""
    header = read_header(content)
    fault = header if isinstance(header, Fault) else find_fault(header, content, "utf-8")
    return acknowledge(None if isinstance(header, Fault) else header, fault, control_id="1", now=NOW)


@pytest.mark.slow
@settings(max_examples=300)
@given(st.binary(max_size=300) | st.binary(max_size=40).map(lambda tail: b"MSH|^~\\&|A|B|||" + tail))
def test_any_bytes_get_an_acknowledgement_that_can_be_read(content: bytes) -> None:
    made = answer(content)
    if made is not None:
        assert b"\x1c" not in made and b"\x0b" not in made
        assert str(hl7.parse(made.decode("latin-1"))["MSA.1"]) in ("AA", "AE", "AR", "CA", "CE", "CR")


@settings(max_examples=100)
@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255))
def test_message_with_one_changed_byte_is_judged(place: int, byte: int) -> None:
    changed = GOOD[:place] + bytes([byte]) + GOOD[place + 1 :]
    made = answer(changed)
    assert made is not None and made.startswith(b"MSH")


def test_separators_of_the_sender_are_used_and_our_text_does_not_contain_them() -> None:
    """Even separators that occur in our own text."""
    content = GOOD.translate(bytes.maketrans(b"|^~\\&", b":-;(_")).replace(b"ORU-R01", b"ADT-A01")
    made = answer(content)
    assert made is not None
    read = hl7.parse(made.decode("latin-1"))
    assert (str(read["MSA.1"]), str(read["MSA.2"]), str(read["ERR.F3.R1.C1"])) == ("AR", "CONTROL", "200")


def test_control_id_of_any_length_up_to_199_characters_is_returned() -> None:
    made = answer(GOOD.replace(b"CONTROL", b"9" * 199))
    assert made is not None and b"MSA|AA|" + b"9" * 199 + b"\r" in made
    made = answer(GOOD.replace(b"CONTROL", b"9" * 200))
    assert made is not None and b"MSA|AR||" in made

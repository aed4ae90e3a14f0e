"""Parts of HL7 v2 messages about withdrawn patients are taken out; all other bytes stay. All data are synthetic."""

import pytest

from pipeline.feeds.message_parts import without_patients
from pipeline.records.laboratory.hl7_messages import BrokenError
from tests.pipeline.records.laboratory.test_hl7 import DETECTED, MSH, OBR, OBX, PID, message

HEAD = MSH.format(control="1")
ANSWER = OBX.format(code=DETECTED[0], word=DETECTED[1], status="F")


def part(patient: str, note: str = "") -> list[str]:
    return [PID.format(patient=patient), "PV1|1|I", OBR.format(order=patient), ANSWER, f"NTE|1||{note or patient}"]


def left(*segments: str, issuer: str = "", end: str = "\r", encoding: str = "utf-8-sig") -> str | None:
    """What is left of a message when the patient GONE has withdrawn."""
    content = message(*segments, end=end).encode(encoding)
    found = without_patients(content, encoding, issuer, lambda identifier: identifier == "GONE")
    return found.decode(encoding) if found is not None else None


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n"])
def test_message_of_several_patients_keeps_the_bytes_of_the_others(end: str) -> None:
    a, b = part("A", "Muller \u00fc"), part("B")
    assert left(*a, *part("GONE"), *b, end=end) == message(*a, *b, end=end)
    assert left(*part("GONE"), *a, end=end, encoding="latin-1") == message(*a, end=end)
    assert left("SFT|X", *a, *part("GONE"), end=end) == message("SFT|X", *a, end=end)


def test_message_of_withdrawn_patients_alone_is_not_kept() -> None:
    assert left(*part("GONE")) is None
    assert left(*part("GONE"), *part("GONE")) is None


def test_message_of_others_or_of_nobody_is_unchanged() -> None:
    for segments in (part("A"), [OBR.format(order="1"), ANSWER], part("GONE ANOTHER")):
        assert left(*segments) == message(*segments)


def test_any_identifier_of_the_site_decides_and_none_of_another_authority() -> None:
    def pid(identifiers: str) -> list[str]:
        return [f"PID|1||{identifiers}", OBR.format(order="1"), ANSWER]

    assert left(*pid("A^^^HOSP^MR~GONE^^^HOSP^PI"), issuer="HOSP") is None
    assert left(*pid(" GONE ")) is None
    assert left(*pid("G\\X4F\\NE^^^HOSP")) is None  # escaped
    assert left(*pid("A^^^HOSP^MR~GONE^^^ELSEWHERE"), issuer="HOSP") == message(*pid("A^^^HOSP^MR~GONE^^^ELSEWHERE"))
    assert left(*pid("GONE^^^ELSEWHERE"), issuer="HOSP") is not None


def test_broken_pid_is_an_error() -> None:
    with pytest.raises(BrokenError):
        without_patients(f"{HEAD}\rPID GONE\r".encode(), "ascii", "", lambda _: True)

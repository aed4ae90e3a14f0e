"""HL7 v2 files that were cut: batches without trailer, wrong counts, and last segments without end."""

from pathlib import Path

import pytest

from pipeline.records.laboratory import Hl7Laboratory, read_pcr
from pipeline.records.laboratory.listener_settings import ListenerTable
from tests.pipeline.records.laboratory.test_hl7 import DETECTED, GOOD, TODAY, message, read, refused, usual

FHS, BHS = "FHS|^~\\&|LIS\r", "BHS|^~\\&|LIS\r"
HALF = "".join(usual(f"H{number}", DETECTED, order=f"H{number}") for number in range(5))
LAST = usual("Z", DETECTED, order="Z")

CUT = {
    "no BTS": (BHS + GOOD, "BTS is missing after BHS"),
    "no FTS": (FHS + GOOD, "FTS is missing after FHS"),
    "neither": (FHS + BHS + GOOD, "BTS is missing after BHS"),
    "FTS, but no BTS": (FHS + BHS + GOOD + "FTS|1\r", "BTS is missing after BHS"),
    "BTS, but no FTS": (FHS + BHS + GOOD + "BTS|10\r", "FTS is missing after FHS"),
    "the next batch follows": (BHS + GOOD + BHS + HALF + "BTS|5\r", "BTS is missing after BHS"),
    "the next file follows": (FHS + GOOD + FHS + HALF + "FTS\r", "FTS is missing after FHS"),
    "trailer cut": (BHS + GOOD + "BT", "BTS is missing after BHS"),
    "fewer messages": (BHS + GOOD + "BTS|20\r", "BTS-1 counts 20 messages, but the file has 10"),
    "more messages": (BHS + GOOD + "BTS|5|a note\r", "BTS-1 counts 5 messages, but the file has 10"),
    "count cut": (BHS + GOOD + "BTS|1", "BTS-1 counts 1 messages, but the file has 10"),
    "no number": (BHS + GOOD + "BTS|ten\r", "BTS-1 is not a number"),
    "second batch": (BHS + GOOD + "BTS|10\r" + BHS + HALF + "BTS|6\r", "BTS-1 counts 6 messages, but the file has 5"),
    "a batch is missing": (FHS + BHS + GOOD + "BTS|10\rFTS|2\r", "FTS-1 counts 2 batches, but the file has 1"),
    "all batches are missing": (GOOD + FHS + "FTS|2\r", "FTS-1 counts 2 batches, but the file has 0"),
    "no header, fewer messages": (GOOD + "BTS|20\r", "BTS-1 counts 20 messages, but the file has 10"),
    "other separators": (f"{BHS}{GOOD}BTS|20\r".replace("|", "#"), "BTS-1 counts 20 messages, but the file has 10"),
    "MLLP block": (f"\x0b{GOOD}\x1c\r\x0b{LAST}", "its last MLLP block has no end"),
}


@pytest.mark.parametrize("case", CUT)
@pytest.mark.parametrize("end", ["\r", "\r\n"])
def test_file_whose_envelope_is_not_whole_is_refused(tmp_path: Path, case: str, end: str) -> None:
    content, fault = CUT[case]
    refusal = refused(tmp_path, content.replace("\r", end))
    assert (refusal.code, refusal.says) == ("E_FILE_CUT", f"the laboratory file is not whole: {fault}")
    assert refusal.private == "synthetic.hl7"


WHOLE = {
    "no envelope": GOOD,
    "no line end": GOOD.rstrip("\r"),
    "counts": FHS + BHS + GOOD + "BTS|10|a note\rFTS|1\r",
    "no counts": FHS + BHS + GOOD + "BTS\rFTS||a note\r",
    "HL7's null": BHS + GOOD + 'BTS|""\r',
    "zeros and spaces": BHS + GOOD + "BTS| 0010 \r",
    "no line end after the trailer": BHS + GOOD + "BTS|10",
    "batches without file": BHS + GOOD + "BTS|10\r" + BHS + HALF + "BTS|5\r",
    "several files": f"{FHS}{BHS}{GOOD}BTS|10\rFTS|1\r{FHS}{BHS}{HALF}BTS|5\rFTS|1\r",
    "trailers without headers": GOOD + "BTS|10\rFTS|1\r",
    "an empty batch": FHS + BHS + GOOD + "BTS|10\r" + BHS + "BTS|0\rFTS|2\r",
    "a file without batches": FHS + GOOD + "FTS|10\r",
    "MLLP": f"\x0b{GOOD}\x1c\r\x0b{LAST}\x1c",
    "MLLP blocks that were split at their ends": f"\x0b{GOOD}",
}


@pytest.mark.parametrize("case", WHOLE)
def test_whole_file_is_read(tmp_path: Path, case: str) -> None:
    results, findings = read(tmp_path, WHOLE[case])
    assert {f"G{number}" for number in range(10)} <= {result.patient_id for result in results}
    assert findings == []


IN_MSH = ("M", "MSH", "MSH|^~", "MSH|^~\\&|LIS|LAB|FED|SITE|20200402101500||ORU^R01")
IN_OTHERS = ("\rP", "\rPID", "PID|1", "\rOB", "OBR|1|P", "OBX|1|CWE|94500-6^SARS", "|260373001^Det", "^SCT|||||")


@pytest.mark.parametrize("end", [*IN_MSH, *IN_OTHERS])
def test_file_that_was_cut_within_its_last_segment_is_refused(tmp_path: Path, end: str) -> None:
    cut = LAST[: LAST.index(end) + len(end)]
    refusal = refused(tmp_path, GOOD + cut)
    assert (refusal.code, refusal.numbers["fault"]) == ("E_FILE_CUT", "its last segment has no end")


def test_text_that_begins_like_a_trailer_is_no_trailer(tmp_path: Path) -> None:
    """It is a part of its message, which is not well-formed."""
    results, findings = read(tmp_path, GOOD + message("PID|1||A", "BHS as before"))
    assert len(results) == 10
    assert [each[:2] for each in findings] == [("E_HL7", "A")]


def test_message_that_was_received_is_whole_without_a_last_line_end(tmp_path: Path) -> None:
    """The listener has acknowledged it: the end of its MLLP block says that it is whole."""
    listener = ListenerTable(queue=tmp_path / "results")
    listener.queue.mkdir()
    (listener.queue / "1.hl7").write_text(LAST.replace("||||||F\r", ""), newline="")
    (listener.queue / "2.hl7").write_text(GOOD, newline="")
    results, findings = read_pcr(Hl7Laboratory(format="hl7", listener=listener), today=TODAY)
    assert len(results) == 10
    assert [finding.reason.code for finding in findings] == ["W_PCR_PRELIMINARY"]

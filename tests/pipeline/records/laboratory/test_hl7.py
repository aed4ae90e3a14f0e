"""Laboratory results as HL7 v2: messages as several systems write them, and invalid ones. All data are synthetic."""

import logging
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models.refusal import Refusal
from pipeline.records.laboratory import Hl7Laboratory, PcrResult, read_pcr

TODAY = date(2020, 5, 1)
MORNING = datetime(2020, 4, 1, 8, 30)
MSH = r"MSH|^~\&|LIS|LAB|FED|SITE|20200402101500||ORU^R01^ORU_R01|{control}|P|2.5.1"
PID = "PID|1||{patient}^^^HOSP^MR||SYNTHETIC^ONE||19500101|F"
OBR = "OBR|1|P{order}|F{order}|94531-1^SARS-CoV-2 RNA panel^LN|||20200401083000"
OBX = "OBX|1|CWE|94500-6^SARS-CoV-2 RNA^LN||{code}^{word}^SCT||||||{status}"
DETECTED, NOT_DETECTED = ("260373001", "Detected"), ("260415000", "Not detected")


def message(*segments: str, control: str = "1", end: str = "\r") -> str:
    return end.join([MSH.format(control=control), *segments]) + end


def usual(patient: str, value: tuple[str, str], *, order: str = "1", status: str = "F", sent: str = "") -> str:
    """A message with one result (final by default), without an SPM segment."""
    code, word = value
    obx = OBX.format(code=code, word=word, status=status)
    text = message(PID.format(patient=patient), OBR.format(order=order), obx)
    return text.replace("20200402101500", sent) if sent else text


GOOD = "".join(usual(f"G{number}", NOT_DETECTED, order=f"G{number}") for number in range(10))


def read(
    folder: Path, content: str | bytes, *, time_zone: str = "", issuer: str = "", **declared: Any
) -> tuple[list[PcrResult], list[tuple[str, str, str]]]:
    """Results, and findings as (code, patient, detail)."""
    table = Hl7Laboratory(format="hl7", file=folder / "synthetic.hl7", **declared)
    table.file.write_bytes(content if isinstance(content, bytes) else content.encode(table.encoding))
    results, findings = read_pcr(table, time_zone=time_zone, issuer=issuer, today=TODAY)
    return results, [(finding.reason.code, finding.patient_id, finding.detail) for finding in findings]


def told(folder: Path, content: str | bytes, **how: Any) -> dict[str, list[bool | None]]:
    """Results by patient. Asserts that there are no findings."""
    results, findings = read(folder, content, **how)
    assert findings == []
    by_patient: dict[str, list[bool | None]] = {}
    for result in results:
        by_patient.setdefault(result.patient_id, []).append(result.positive)
    return by_patient


def refused(folder: Path, content: str | bytes, **how: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        read(folder, content, **how)
    return caught.value


# --- formats of several systems ---------------------------------------------------------------------------

HOSPITAL_251 = message(
    "PID|1||000123^^^HOSP&1.2.3.4&ISO^MR~98765^^^INSURANCE^NI||SYNTHETIC^ONE",
    "PV1|1|I",
    "ORC|RE|P77^ORDERS|F77^LAB",
    "OBR|1|P77^ORDERS|F77^LAB|94531-1^SARS-CoV-2 RNA panel^LN|||202004010830+0200|||||||||||||||20200402||MB|F",
    "OBX|1|CWE|94500-6^SARS-CoV-2 RNA NAA+probe Ql Resp^LN^COVPCR^Covid PCR^L"
    "||260373001^Detected^SCT^POS^Positive^L||Not detected|A|||F|||202004010830+0200",
    "OBX|2|CWE|94533-7^N gene^LN||260415000^Not detected^SCT||||||F",
    "OBX|3|NM|94745-7^Ct^LN||31.5|{Ct_value}|||||F",
    "NTE|1|L|A note on the method",
    "SPM|1|S77^ORDERS||258500001^Nasopharyngeal swab^SCT|||||||||||||202004010830+0200^202004010835+0200",
)
OLD_23 = (
    "MSH|^~\\&|LABO|HOP|||20200402||ORU^R01|44|P|2.3\r"
    "PID|||0042||DUPONT^SYNTHETIQUE\r"
    "OBR|1||9001^LABO|COVPCR^PCR SARS-CoV-2^L|||20200401|||||||20200401110000\r"
    "OBX|1|ST|COVPCR^PCR SARS-CoV-2^L||Non détecté||||||F|||20200402093000\r"
)
TEXT_REPORT = message(
    "PID|1||T1^^^HOSP^MR",
    "OBR|1||F1|MOLEC^Molecular virology^L|||202004010830",
    "OBX|1|TX|COVPCR^SARS-CoV-2 PCR^L||SARS-CoV-2 RNA:||||||F",
    "OBX|2|TX|COVPCR^SARS-CoV-2 PCR^L||not detected||||||F",
    "OBX|3|TX|INFA^Influenza A^L||detected||||||F",
)
TWO_SPECIMENS = message(
    "PID|1||T2^^^HOSP^MR",
    "OBR|1||F1|94531-1^panel^LN|||20200401083000",
    "OBX|1|CWE|94500-6^RNA^LN||260415000^Not detected^SCT||||||F",
    "SPM|1|S1|||||||||||||||20200401083000",
    "OBR|2||F2|94531-1^panel^LN|||20200403070000",
    "OBX|1|CWE|94500-6^RNA^LN||260373001^Detected^SCT||||||F",
    "SPM|2|S2|||||||||||||||20200403070000",
)


def test_hl7_251_message_with_codes_genes_utc_offsets_and_two_identifiers(tmp_path: Path) -> None:
    """The overall result is detected. A gene with another result changes nothing."""
    expected = [PcrResult("000123", MORNING, True)]
    for how in ({}, {"issuer": "HOSP"}, {"issuer": "1.2.3.4"}):
        assert read(tmp_path, HOSPITAL_251, time_zone="Europe/Paris", **how) == (expected, [])


def test_hl7_23_message_with_local_codes_dates_without_times_and_latin_1(tmp_path: Path) -> None:
    """The result is reported one day after the specimen was collected."""
    declared: dict[str, Any] = {"encoding": "latin-1", "tests": ["COVPCR"], "negative": ["Non détecté"]}
    results, findings = read(tmp_path, OLD_23, **declared)
    assert results == [PcrResult("0042", datetime(2020, 4, 1), False)]
    assert findings == []


def test_text_lines_of_one_test_are_joined(tmp_path: Path) -> None:
    """The word list contains the joined text. The second line alone could have another meaning."""
    results, findings = read(tmp_path, TEXT_REPORT, tests=["COVPCR"], negative=["SARS-CoV-2 RNA: not detected"])
    assert results == [PcrResult("T1", MORNING, False)]
    assert findings == [("W_OTHER_TEST", "", "INFA Influenza A: 1")]
    assert refused(tmp_path, TEXT_REPORT, tests=["COVPCR"]).code == "E_PCR_UNMAPPED"


def test_two_specimens_of_one_message_keep_their_collection_times(tmp_path: Path) -> None:
    results, findings = read(tmp_path, TWO_SPECIMENS)
    assert results == [PcrResult("T2", MORNING, False), PcrResult("T2", datetime(2020, 4, 3, 7), True)]
    assert findings == []


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n"])
@pytest.mark.parametrize("framed", [False, True])
@pytest.mark.parametrize("batch", [False, True])
def test_any_line_ending_mllp_frames_and_batches_are_read(tmp_path: Path, end: str, framed: bool, batch: bool) -> None:
    messages = [usual("A", DETECTED, order="1"), usual("B", NOT_DETECTED, order="2"), usual("C", DETECTED, order="3")]
    messages = [each.replace("\r", end) for each in messages]
    if framed:
        messages = [f"\x0b{each}\x1c\r" for each in messages]
    if batch:
        messages = [f"FHS|^~\\&{end}BHS|^~\\&{end}", *messages, f"BTS|3{end}FTS|1{end}"]
    assert told(tmp_path, "".join(messages).encode()) == {"A": [True], "B": [False], "C": [True]}


def test_folder_is_read_recursively_without_hidden_files(tmp_path: Path) -> None:
    (tmp_path / "in" / "2020" / "04").mkdir(parents=True)
    (tmp_path / "in" / "b.hl7").write_text(usual("B", NOT_DETECTED, order="2"))
    (tmp_path / "in" / "2020" / "04" / "a.txt").write_text(usual("A", DETECTED))
    (tmp_path / "in" / ".swap").write_text("not HL7")
    results, findings = read_pcr(Hl7Laboratory(format="hl7", file=tmp_path / "in"), today=TODAY)
    assert [result.patient_id for result in results] == ["A", "B"]
    assert findings == []


def test_unusual_separators_are_read_from_msh(tmp_path: Path) -> None:
    text = usual("A^1", DETECTED).replace("A^1", "A1")
    assert told(tmp_path, text.translate(str.maketrans("|^~\\&", "#*!@%"))) == {"A1": [True]}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (r"POS\T\NEG", "pos&neg"),
        (r"a\F\b\S\c\R\d\E\e", r"a|b^c~d\e"),
        (r"is\.br\there", "is there"),
        (r"is\X0D0A\there", "is there"),
        (r"\H\detected\N\ ", "detected"),
        (r"\X706F73\ ", "pos"),
        (r"d\XE9\tect", r"d\XE9\tect"),
        (r"\.sp999999999\x", r"\.sp999999999\x"),
        (r"\Zx\pos", r"\Zx\pos"),
        (r"50\% pos", r"50\% pos"),
    ],
)
def test_known_escape_sequences_are_decoded_and_unknown_ones_are_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, written: str, meant: str
) -> None:
    text = usual("A", DETECTED).replace("|CWE|", "|ST|").replace("260373001^Detected^SCT", written)
    with caplog.at_level(logging.DEBUG):
        assert told(tmp_path, text, positive=[meant]) == {"A": [True]}
    assert caplog.text == ""


# --- values -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "value", "positive"),
    [
        ("CWE", "260373001^Detected^SCT", True),
        ("CE", "10828004^^SCT", True),
        ("CWE", "NEG^Negative^L^260385009^Negative^SCT", False),
        ("CWE", "X17^^L", "X17"),
        ("CWE", "^^^^^^^^Not detected", False),
        ("CWE", "LA11882-0^Detected^LN", True),
        ("CWE", "419984006^Inconclusive^SCT", None),
        ("CWE", "260373001^Not detected^SCT", "260373001 / Not detected"),
        ("CWE", "X17^Detected & invalid^L", "X17 / Detected & invalid"),
        ("ST", "NOT DETECTED", False),
        ("ST", "RNA non presente", "RNA non presente"),
        ("ST", "Negative^Positive", "Negative^Positive"),
        ("ST", "", ""),
        ("ST", '""', '""'),
        ("FT", "not~detected", False),
        ("NM", "31.5", "31.5"),
        ("SN", "<^1000", "<^1000"),
        ("", "Detected", True),
    ],
)
def test_value_is_mapped_by_the_word_lists_or_reported_as_unmapped(
    tmp_path: Path, kind: str, value: str, positive: Any
) -> None:
    text = usual("A", DETECTED).replace("|CWE|", f"|{kind}|").replace("260373001^Detected^SCT", value)
    results, findings = read(tmp_path, GOOD + text)
    if isinstance(positive, str):
        assert findings == [("W_PCR_UNMAPPED", "A", positive)]
        assert len(results) == 10
    else:
        assert findings == []
        assert results[10:] == [PcrResult("A", MORNING, positive)]


def test_repeated_codes_in_obx_5_are_several_results(tmp_path: Path) -> None:
    text = usual("A", DETECTED).replace("Detected^SCT", "Detected^SCT~260415000^Not detected^SCT")
    assert told(tmp_path, text) == {"A": [True, False]}


@pytest.mark.parametrize(
    ("test", "taken"),
    [
        ("94309-2^RNA^LN", True),
        ("94309-2^RNA^L", False),
        ("94309-2^RNA", False),
        ("COVPCR^PCR^L^94500-6^RNA^LN", True),
        ("covpcr^^L", True),
        ("^Covid PCR^L", True),
        ("94559-2^ORF1ab^LN^COVPCR^Overall^L", True),
        ("94558-4^Antigen^LN", False),
        ("94660-8^RNA in blood^LN", False),
    ],
)
def test_pcr_test_is_identified_by_loinc_or_local_code(tmp_path: Path, test: str, taken: bool) -> None:
    text = usual("A", DETECTED).replace("94500-6^SARS-CoV-2 RNA^LN", test)
    results, findings = read(tmp_path, GOOD + text, tests=["COVPCR", "Covid PCR"])
    assert [result.patient_id for result in results[10:]] == ["A"] * taken
    assert [code for code, _, _ in findings] == ["W_OTHER_TEST"] * (not taken)


def test_single_genes_neither_replace_nor_override_an_overall_result(tmp_path: Path) -> None:
    def gene(patient: str, order: str) -> str:
        return usual(patient, DETECTED, order=order).replace("94500-6^SARS-CoV-2 RNA", "94533-7^N gene")

    results, findings = read(tmp_path, gene("A", "1") + usual("B", NOT_DETECTED, order="2") + gene("B", "3"))
    assert results == [PcrResult("B", MORNING, False)]
    assert findings == [("W_PCR_GENES_ONLY", "A", "2020-04-01 08:30:00")]


def test_file_without_a_pcr_is_refused_with_its_test_codes(tmp_path: Path) -> None:
    refusal = refused(tmp_path, GOOD.replace("94500-6^SARS-CoV-2 RNA^LN", "COVPCR^Covid PCR^L"))
    assert refusal.code == "E_NO_PCR_TEST"
    assert "10" in refusal.says
    assert refusal.private == "COVPCR Covid PCR: 10"


# --- statuses and versions --------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["F", "C", "V", "A", "B"])
def test_released_results_are_read(tmp_path: Path, status: str) -> None:
    assert told(tmp_path, usual("A", DETECTED, status=status)) == {"A": [True]}


@pytest.mark.parametrize(
    ("status", "code"),
    [(status, "W_PCR_PRELIMINARY") for status in ("P", "I", "R", "S", "U", "", "Z", '""')]
    + [(status, "W_PCR_WITHDRAWN") for status in ("D", "W", "X", "N", "O")],
)
def test_results_with_other_statuses_are_not_read(tmp_path: Path, status: str, code: str) -> None:
    results, findings = read(tmp_path, GOOD + usual("A", DETECTED, status=status))
    assert len(results) == 10
    assert [finding[:2] for finding in findings] == [(code, "A")]


@pytest.mark.parametrize("backwards", [False, True])
def test_correction_replaces_the_earlier_result_in_any_order(tmp_path: Path, backwards: bool) -> None:
    versions = [
        usual("A", DETECTED, status="P", sent="20200401120000"),
        usual("A", DETECTED, status="F", sent="20200401180000"),
        usual("A", NOT_DETECTED, status="C", sent="20200402100000"),
        usual("A", DETECTED, order="2", sent="20200401090000"),  # another order, without a correction
    ]
    text = "".join(reversed(versions) if backwards else versions)
    assert {key: sorted(values) for key, values in told(tmp_path, text).items()} == {"A": [False, True]}


@pytest.mark.parametrize("status", ["D", "W", "X"])
def test_withdrawal_removes_the_earlier_result(tmp_path: Path, status: str) -> None:
    text = usual("A", DETECTED, sent="20200401120000") + usual("A", ("", ""), status=status, sent="20200402120000")
    results, findings = read(tmp_path, GOOD + text)
    assert len(results) == 10
    assert [finding[:2] for finding in findings] == [("W_PCR_WITHDRAWN", "A")]
    again = text + usual("A", NOT_DETECTED, status="C", sent="20200403120000")
    assert told(tmp_path, again) == {"A": [False]}


def test_correction_takes_precedence_over_a_message_of_the_same_second(tmp_path: Path) -> None:
    first, second = usual("A", DETECTED, status="C"), usual("A", NOT_DETECTED, status="F")
    assert told(tmp_path, first + second) == told(tmp_path, second + first) == {"A": [True]}
    withdrawn = usual("A", DETECTED, status="W")
    assert [code for code, _, _ in read(tmp_path, GOOD + withdrawn + first)[1]] == ["W_PCR_WITHDRAWN"]


def test_two_final_results_of_the_same_time_are_both_kept(tmp_path: Path) -> None:
    """They belong to one specimen and contradict each other: the join reports a conflict."""
    assert told(tmp_path, usual("A", DETECTED) + usual("A", NOT_DETECTED)) == {"A": [True, False]}


def exported(value: tuple[str, str], status: str, changed: str, sent: str) -> str:
    """A message of a re-exported archive; `changed`: OBR-22."""
    text = usual("A", value, status=status, sent=sent)
    return text.replace("20200401083000", f"20200401083000{'|' * 15}{changed}")


def test_result_time_takes_precedence_over_message_time(tmp_path: Path) -> None:
    """A re-exported archive has the same message time for all messages, in any order."""
    old = exported(DETECTED, "F", "202004011200", "20200430120005")
    new = exported(NOT_DETECTED, "C", "202004021200", "20200430120001")
    assert told(tmp_path, old + new) == told(tmp_path, new + old) == {"A": [False]}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("202004011200", "20200401120100"), ("", "20200401110000")),  # the clocks of two systems differ
        (("", "20200430120000"), ("202004021200", "20200402120100")),  # the first result was sent again
        (("", "20200430120005"), ("202004021200", "20200430120001")),  # an archive was exported
    ],
)
def test_correction_replaces_a_result_if_only_one_of_them_says_when_it_changed(
    tmp_path: Path, first: tuple[str, str], second: tuple[str, str]
) -> None:
    old, new = exported(DETECTED, "F", *first), exported(NOT_DETECTED, "C", *second)
    assert told(tmp_path, old + new) == told(tmp_path, new + old) == {"A": [False]}
    later = exported(DETECTED, "C", second[0], "20200501")
    assert told(tmp_path, old + later + new) == {"A": [True]}, "the newest of two corrections"


def test_final_result_without_a_change_time_is_not_replaced_by_a_preliminary_one(tmp_path: Path) -> None:
    final, preliminary = exported(DETECTED, "F", "", "20200401"), exported(NOT_DETECTED, "P", "20200402", "20200402")
    assert told(tmp_path, final + preliminary) == {"A": [True]}


def test_withdrawal_and_correction_are_sorted_by_message_time_if_only_one_says_when_it_changed(tmp_path: Path) -> None:
    withdrawn = exported(DETECTED, "W", "20200402", "20200402")
    assert told(tmp_path, withdrawn + exported(NOT_DETECTED, "C", "", "20200403")) == {"A": [False]}
    results, findings = read(tmp_path, GOOD + withdrawn + exported(NOT_DETECTED, "C", "", "20200401"))
    assert (len(results), [code for code, _, _ in findings]) == (10, ["W_PCR_WITHDRAWN"])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("20200402110000", "20200402"),  # the day of the correction would begin before the original
        ("20200402", "20200402110000"),
        ("20200402", "20200402"),
        ("20200402110030", "202004021100"),
        ("202004021130", "2020040211"),
        ("202004012230+0000", "20200402"),  # half past midnight in Paris
    ],
)
@pytest.mark.parametrize("sent", [("20200402120000", "20200402130000"), ("20200402130000", "20200402120000")])
def test_times_of_change_are_compared_at_the_precision_that_both_have(
    tmp_path: Path, first: str, second: str, sent: tuple[str, str]
) -> None:
    """Then the status decides, also if the original was sent again after its correction."""
    old = exported(DETECTED, "F", first, sent[0])
    new = exported(NOT_DETECTED, "C", second, sent[1])
    how = {"time_zone": "Europe/Paris"}
    assert told(tmp_path, old + new, **how) == told(tmp_path, new + old, **how) == {"A": [False]}
    preliminary = exported(DETECTED, "P", second, "20200402140000")
    assert told(tmp_path, old + new + preliminary, **how) == {"A": [False]}


def test_of_two_corrections_of_a_day_the_later_message_counts(tmp_path: Path) -> None:
    first = exported(DETECTED, "C", "20200402110000", "20200402120000")
    second = exported(NOT_DETECTED, "C", "20200402", "20200402130000")
    assert told(tmp_path, first + second) == told(tmp_path, second + first) == {"A": [False]}


@pytest.mark.parametrize(("first", "second"), [("20200402110000", "20200403"), ("20200402", "20200403000000")])
def test_a_day_is_compared_with_the_times_of_other_days(tmp_path: Path, first: str, second: str) -> None:
    old, new = exported(DETECTED, "C", first, "20200405"), exported(NOT_DETECTED, "F", second, "20200404")
    assert told(tmp_path, old + new) == told(tmp_path, new + old) == {"A": [False]}


def test_last_day_of_the_calendar_is_a_time_of_change(tmp_path: Path) -> None:
    assert told(tmp_path, exported(DETECTED, "F", "99991231", "20200402")) == {"A": [True]}


def test_duplicate_messages_give_each_result_once(tmp_path: Path) -> None:
    assert read(tmp_path, HOSPITAL_251 * 3, time_zone="Europe/Paris") == read(
        tmp_path, HOSPITAL_251, time_zone="Europe/Paris"
    )


def test_reused_order_number_does_not_replace_another_patients_result(tmp_path: Path) -> None:
    text = usual("A", DETECTED, order="1", sent="20200401") + usual("B", NOT_DETECTED, order="1", sent="20200402")
    assert told(tmp_path, text) == {"A": [True], "B": [False]}


def test_specimens_of_a_standing_order_without_filler_number_are_separate(tmp_path: Path) -> None:
    first = usual("A", DETECTED).replace("|F1|", "||")
    second = usual("A", NOT_DETECTED, sent="20200405").replace("|F1|", "||").replace("20200401083000", "20200404083000")
    assert told(tmp_path, first + second) == {"A": [True, False]}
    other = usual("A", NOT_DETECTED, order="2", sent="20200405").replace("|F2|", "||")  # collected at the same time
    assert told(tmp_path, first + other) == {"A": [True, False]}


def test_tests_of_one_order_are_separated_by_code_name_and_sub_identifier(tmp_path: Path) -> None:
    """A later message about one test does not change the other."""
    code = "94500-6^SARS-CoV-2 RNA^LN|"
    pairs = [(code, "94309-2^RNA^LN|"), ("^Covid PCR^L|", "^Covid PCR, repeated^L|"), (f"{code}1", f"{code}2")]
    for first, second in pairs:
        text = usual("A", DETECTED).replace(code, first)
        text += usual("A", NOT_DETECTED, sent="20200405").replace(code, second)
        assert told(tmp_path, text, tests=["Covid PCR", "Covid PCR, repeated"]) == {"A": [True, False]}


# --- times ------------------------------------------------------------------------------------------------


def times(obr_7: str = "", obx_14: str = "", *spm_17: str) -> str:
    """A result with these collection times and a report two weeks later."""
    obr = f"OBR|1|P1|F1|94531-1^panel^LN|||{obr_7}|||||||20200402||||||||20200415|||F"
    obx = f"{OBX.format(code='260373001', word='Detected', status='F')}|||{obx_14}|||||20200415"
    spm = [f"SPM|{n}|S{n}{'|' * 15}{time}" for n, time in enumerate(spm_17, start=1)]
    return message("PID|1||A^^^HOSP^MR", obr, obx, *spm)


@pytest.mark.parametrize(
    ("content", "day"),
    [
        (times("20200402", "20200403", "20200401"), 1),
        (times("20200402", "20200403", "20200401^20200410"), 1),
        (times("20200402", "20200403", "20200401&D^20200410&D"), 1),
        (times("20200402", "20200403"), 2),
        (times("", "20200403"), 3),
        (times("20200402", "20200403", ""), 2),
        (times("20200402", "", "20200401", "20200401"), 1),
        (times("20200402", "20200403", "20200401", "20200405"), 3),  # specimens differ: only OBX-14 tells the time
    ],
)
def test_collection_time_is_used_and_never_receipt_or_report_time(tmp_path: Path, content: str, day: int) -> None:
    results, findings = read(tmp_path, content)
    assert [result.collected.day for result in results] == [day]
    assert findings == []


@pytest.mark.parametrize(
    "content",
    [
        times(),
        times("20200402", "", "20200401", "20200405"),
        *(
            times(text)
            for text in ("2020", "202004", "01.04.2020", "200401", "20200431", "2020040124", "20200401T0830")
        ),
        times("202004010830+9900"),
        times("00000101"),
    ],
)
def test_result_without_a_collection_day_is_skipped(tmp_path: Path, content: str) -> None:
    results, findings = read(tmp_path, GOOD + content)
    assert len(results) == 10
    assert [finding[:2] for finding in findings] == [("E_DATE", "A")]


def test_specimen_with_a_future_date_is_skipped(tmp_path: Path) -> None:
    results, findings = read(tmp_path, GOOD + times("209904010830"))
    assert len(results) == 10
    assert findings == [("E_PCR_DATE", "A", "209904010830")]


@pytest.mark.parametrize(
    ("text", "local"),
    [
        ("202004010030+0200", datetime(2020, 4, 1, 0, 30)),
        ("202003312230+0000", datetime(2020, 4, 1, 0, 30)),
        ("202003311830-0400", datetime(2020, 4, 1, 0, 30)),
        ("20200401003015.1234+0200", datetime(2020, 4, 1, 0, 30, 15)),
        ("2020040100+0200", datetime(2020, 4, 1)),
        ("20200401+1200", datetime(2020, 4, 1)),  # a date without time is not converted
        ("202003290059+0000", datetime(2020, 3, 29, 1, 59)),  # clocks go forward: 03:00 follows 01:59
        ("202003290100+0000", datetime(2020, 3, 29, 3, 0)),
        ("201910270030+0000", datetime(2019, 10, 27, 2, 30)),  # clocks go back: 02:30 occurs twice
        ("201910270130+0000", datetime(2019, 10, 27, 2, 30)),
        ("202003290230", datetime(2020, 3, 29, 2, 30)),
    ],
)
def test_times_are_converted_to_the_site_time_zone(tmp_path: Path, text: str, local: datetime) -> None:
    results, findings = read(tmp_path, times(text), time_zone="Europe/Paris")
    assert [result.collected for result in results] == [local]
    assert findings == []


def test_time_with_utc_offset_is_refused_without_a_site_time_zone(tmp_path: Path) -> None:
    refusal = refused(tmp_path, times("202004010830+0200"))
    assert refusal.code == "E_TIME_ZONE"
    assert "time_zone" in refusal.remedy


@pytest.mark.parametrize(
    ("sent", "local"),
    [
        ("20200402101500+0200", datetime(2020, 1, 15, 0, 30)),  # the site's own time zone: +0100 in winter
        ("20200402081500+0000", datetime(2020, 1, 15, 1, 30)),  # other offset: the sender's time zone
        ("20200402101500", datetime(2020, 1, 15, 0, 30)),
    ],
)
def test_time_without_utc_offset_has_the_time_zone_of_its_message(tmp_path: Path, sent: str, local: datetime) -> None:
    text = times("202001150030").replace("20200402101500", sent)
    results, _ = read(tmp_path, text, time_zone="Europe/Paris")
    assert [result.collected for result in results] == [local]


# --- patients ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pid_3", "issuer", "expected"),
    [
        ("00123^^^HOSP^MR", "", "00123"),
        ("00123", "", "00123"),
        ("00123", "HOSP", "00123"),  # no assigning authority: taken as the site's own, as in a CSV file
        ("a7b^^^HOSP^MR~A7B^^^CITY^PI", "", "a7b"),
        ("1^^^CITY^PI~2^^^HOSP&1.2.3&ISO^PI", "HOSP", "2"),
        ("1^^^CITY^PI~2^^^HOSP&1.2.3&ISO^PI", "1.2.3", "2"),
        ("1^^^CITY^MR~2^^^HOSP^PI", "HOSP", "2"),
        ("1^^^HOSP^PI~2^^^HOSP^MR", "HOSP", "2"),
        ("7^^^HOSP^MR~7^^^HOSP^PI", "", "7"),
        ("1^^^CITY^PI~2^^^HOSP^PI", "", "E_IDENTIFIER_AMBIGUOUS"),
        ("1^^^CITY^MR~2^^^HOSP^MR", "", "E_IDENTIFIER_AMBIGUOUS"),
        ("1^^^HOSP^PI~2^^^HOSP^PI", "HOSP", "E_IDENTIFIER_AMBIGUOUS"),
        ("1~2", "HOSP", "E_IDENTIFIER_AMBIGUOUS"),
        ("1^^^CITY^MR", "HOSP", "E_NO_IDENTIFIER"),
        ("1^^^hosp^MR", "HOSP", "E_NO_IDENTIFIER"),
        ("", "", "E_NO_IDENTIFIER"),
        ('""^^^HOSP^MR', "", "E_NO_IDENTIFIER"),
        ("^^^HOSP^MR", "", "E_NO_IDENTIFIER"),
    ],
)
def test_only_the_patient_identifier_of_the_site_is_used(
    tmp_path: Path, pid_3: str, issuer: str, expected: str
) -> None:
    text = usual("A", DETECTED).replace("A^^^HOSP^MR", pid_3)
    good = GOOD if expected.startswith("E_") else ""
    results, findings = read(tmp_path, good + text, issuer=issuer)
    if expected.startswith("E_"):
        assert [finding[:2] for finding in findings] == [(expected, "")]
    else:
        assert [result.patient_id for result in results] == [expected]
        assert findings == []


def test_assigning_authority_with_several_names_is_one_authority(tmp_path: Path) -> None:
    text = usual("A", DETECTED) + usual("B", DETECTED, order="2").replace("^HOSP^", "^HOSP&1.2.3&ISO^")
    assert told(tmp_path, text) == {"A": [True], "B": [True]}


def test_laboratory_issuer_can_differ_from_the_issuer_of_the_scans(tmp_path: Path) -> None:
    table = Hl7Laboratory(format="hl7", file=tmp_path / "synthetic.hl7", issuer="HOSP")
    table.file.write_text(usual("A", DETECTED))
    results, _ = read_pcr(table, issuer="HOSPITAL", today=TODAY)
    assert [result.patient_id for result in results] == ["A"]


def test_identifiers_of_two_issuers_are_refused_until_one_is_configured(tmp_path: Path) -> None:
    text = GOOD + usual("A", DETECTED).replace("HOSP", "CITY")
    refusal = refused(tmp_path, text)
    assert refusal.code == "E_LABORATORY_ISSUERS"
    assert refusal.private == "CITY; HOSP"
    assert len(read(tmp_path, text, issuer="HOSP")[0]) == 10


def test_file_without_any_patient_of_the_site_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path, GOOD.replace("^^^HOSP^MR", "^^^CITY^MR"), issuer="HOSP").code == "E_IDENTIFIERS"


def test_two_patients_in_one_message_are_kept_separate(tmp_path: Path) -> None:
    negative = OBX.format(code="260415000", word="Not detected", status="F")
    positive = OBX.format(code="260373001", word="Detected", status="F")
    text = message(
        PID.format(patient="A"), OBR.format(order="1"), negative,
        PID.format(patient="B"), OBR.format(order="2"), positive,
    )  # fmt: skip
    assert told(tmp_path, text) == {"A": [False], "B": [True]}


# --- invalid messages -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "broken",
    [
        "PID|1||A\r",
        "MSH\r",
        "MSH|\r",
        "MSH|^~\\\r",
        "MSH|||||||||||||\r",
        "MSHA^~\\&ALISA\r",
        "MSH|^^\\&|LIS\r",
        message(PID.format(patient="A"), OBX.format(code="260373001", word="Detected", status="F")),
        message(PID.format(patient="A"), OBR.format(order="1"), "second line of a text"),
        message(PID.format(patient="A"), OBR.format(order="1"), "obx|1|ST"),
        message(PID.format(patient="A"), OBR.format(order="1"), "OBX^1^ST"),
        message(PID.format(patient="A"), OBR.format(order="1"), "OBX|1|TX|X||" + "~" * 400_000),
    ],
    ids=lambda text: text[:12].strip(),
)
def test_broken_message_is_a_finding_and_many_of_them_refuse_the_files(tmp_path: Path, broken: str) -> None:
    results, findings = read(tmp_path, GOOD + broken if broken[:3] == "MSH" else broken + GOOD)
    assert len(results) == 10
    ((code, patient, detail),) = findings
    assert (code, patient) == ("E_HL7", "A" if "PID|1||A" in broken else "")
    assert "SYNTHETIC" not in detail
    assert refused(tmp_path, broken).code == "E_HL7_FILES"


TORN = "NTE|1||Confirmed\rby a second assay\r"


@pytest.mark.parametrize(
    ("broken", "owners"),
    [
        (usual("A", DETECTED) + TORN, {"A"}),
        (usual("A", DETECTED).replace("||SYNTHETIC^ONE", "||SYNTHETIC\rCANARY^ONE"), {"A"}),
        (usual("A", DETECTED).replace("||SYNTHETIC", "~B^^^CLINIC^PI||SYNTHETIC") + TORN, {"A"}),
        (usual("A", DETECTED).replace("^MR", "").replace("||SYNTHETIC", "~B^^^HOSP||SYNTHETIC") + TORN, {"A", "B"}),
        (message(PID.format(patient="A"), OBR.format(order="1"), PID.format(patient="B"), "torn"), {"A", "B"}),
        (usual("A", DETECTED).replace("|", "#").replace("^~", "$~").replace("^", "$") + TORN, {"A"}),
        (usual("A", DETECTED).replace("MSH|^~\\&|", "MSH|^^\\&|"), {"A"}),
        (usual("A", DETECTED).replace("PID|", "pid|"), {"A"}),
        (usual("A", DETECTED).replace("PID|1||A", "PID^1^^A") + TORN, set()),
        (usual("", DETECTED) + TORN, set()),
        (message(OBR.format(order="1"), "torn", "PID"), set()),
        (message(*[f"OBX|{n}|TX|X||{'~' * 200_000}" for n in range(3)], PID.format(patient="A")), {"A"}),
    ],
)
def test_broken_message_names_its_patients(tmp_path: Path, broken: str, owners: set[str]) -> None:
    results, findings = read(tmp_path, GOOD + broken, issuer="HOSP")
    assert len(results) == 10
    first, *others = findings
    assert first[:2] == ("E_HL7", next(iter(owners)) if len(owners) == 1 else "")
    assert [each[:2] for each in others] == [("W_UNREAD_RECORD", each) for each in sorted(owners) if len(owners) > 1]
    assert not any(word in detail for _, _, detail in findings for word in ("SYNTHETIC", "CANARY", "assay"))


def test_other_message_types_are_counted(tmp_path: Path) -> None:
    admission = message("EVN|A08", PID.format(patient="A")).replace("ORU^R01^ORU_R01", "ADT^A08")
    training = usual("A", DETECTED).replace("|P|2.5.1", "|T|2.5.1")
    results, findings = read(tmp_path, GOOD + admission * 2 + training)
    assert len(results) == 10
    assert findings == [
        ("W_OTHER_MESSAGE", "", "ADT^A08 (P): 2"),
        ("W_OTHER_MESSAGE", "", "ORU^R01 (T): 1"),
    ]
    assert refused(tmp_path, admission).code == "E_NO_PCR_TEST"


def test_embedded_document_is_ignored(tmp_path: Path) -> None:
    document = "OBX|2|ED|REPORT^Report^L||^application^pdf^Base64^" + "QUJD" * 500_000 + "||||||F"
    assert told(tmp_path, usual("A", DETECTED) + document + "\r") == {"A": [True]}


@pytest.mark.parametrize("content", ["", "\r\n\r\n", "FHS|^~\\&\rFTS|0\r"])
def test_files_without_a_message_are_refused(tmp_path: Path, content: str) -> None:
    assert refused(tmp_path, content).code == "E_NO_PCR_TEST"


def test_undecodable_file_is_refused(tmp_path: Path) -> None:
    text = OLD_23.encode("latin-1")
    assert refused(tmp_path, text, tests=["COVPCR"]).code == "E_ENCODING"


def test_other_character_set_in_msh_18_is_reported_for_non_ascii_messages(tmp_path: Path) -> None:
    """The message is read in the encoding set by the site. Wrongly decoded words are in no word list."""
    plain = usual("A", DETECTED).replace("|2.5.1\r", "|2.5.1||||||UNICODE UTF-8\r")  # MSH-12 to MSH-18
    accented = plain.replace("SYNTHETIC", "SYNTHÉTIQUE")
    assert told(tmp_path, plain, encoding="latin-1") == {"A": [True]}
    results, findings = read(tmp_path, accented.encode(), encoding="latin-1")
    assert [result.positive for result in results] == [True]
    assert findings == [("W_HL7_CHARSET", "", "UNICODE UTF-8: 1")]
    assert told(tmp_path, accented.encode(), encoding="utf-8") == {"A": [True]}


def test_no_patient_data_is_logged_or_shown_in_refusals(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = GOOD.replace("|F\r", "|\r").replace("SYNTHETIC", "CANARY\\Zname\\") + "OBX|1|ST|CANARY\\Q\r"
    with caplog.at_level(logging.DEBUG):
        results, _ = read(tmp_path, text)
    assert results == []
    refusal = refused(tmp_path, GOOD.replace("20200401083000", "CANARY"))
    assert refusal.code == "E_DATES"
    assert "CANARY" not in caplog.text + str(refusal)


# --- arbitrary input --------------------------------------------------------------------------------------

SEGMENTS = st.sampled_from(
    [
        MSH.format(control="1"),
        PID.format(patient="A"),
        OBR.format(order="1"),
        OBX.format(code="260373001", word="Detected", status="F"),
        OBX.format(code="260415000", word="Not detected", status="C"),
        OBX.format(code="", word="", status="W"),
        "SPM|1|S1|||||||||||||||20200401083000+0200",
        "FHS|^~\\&",
        "BTS|1",
        "\x0bMSH|^~\\&",
    ]
)
MUTATED = st.builds(
    lambda text, at, put: text[: at % (len(text) + 1)] + put + text[(at + 1) % (len(text) + 1) :],
    SEGMENTS,
    st.integers(0, 200),
    st.text(alphabet="|^~\\&\r\n\x0b\x1cXZ09é\0\u2028", max_size=3),
)


@settings(max_examples=400, deadline=None)
@given(
    content=st.one_of(
        st.binary(max_size=200),
        st.lists(SEGMENTS | MUTATED | st.text(max_size=20), max_size=12).map(lambda parts: "\r".join(parts).encode()),
    ),
    encoding=st.sampled_from(["utf-8-sig", "latin-1", "utf-16"]),
    time_zone=st.sampled_from(["", "Europe/Paris"]),
)
@example(content=b"MSH|^~\\&|\rOBR\rOBX", encoding="utf-8-sig", time_zone="")
@example(content=b"MSH|^~\\&||||||ORU\rPID\rOBR\rOBX\rSPM", encoding="utf-8-sig", time_zone="")
@example(content=b"MSH|^~\\&|||||||ORU\rPID||\rOBR|1\rOBX|1|CE|94500-6^^LN|", encoding="utf-8-sig", time_zone="")
@example(content=b"MSH|^~\\&|||||||ORU\rPID|||1\rOBR|1|2\rOBX|1|CE|94500-6^^LN", encoding="utf-8-sig", time_zone="")
def test_arbitrary_text_gives_results_or_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, encoding: str, time_zone: str
) -> None:
    folder = tmp_path_factory.getbasetemp()
    try:
        results, findings = read(folder, content, encoding=encoding, time_zone=time_zone)
    except Refusal as refusal:
        assert refusal.code in {
            "E_ENCODING", "E_HL7_FILES", "E_NO_PCR_TEST", "E_TIME_ZONE", "E_IDENTIFIERS", "E_DATES", "E_PCR_UNMAPPED",
            "E_LABORATORY_ISSUERS", "E_FILE_CUT",
        }  # fmt: skip
    else:
        assert all(result.patient_id and result.collected.date() <= TODAY for result in results)
        assert all(code[:2] in {"E_", "W_"} for code, _, _ in findings)


VERSIONS = st.builds(
    lambda patient, value, order, status, hour: usual(
        patient, value, order=order, status=status, sent=f"2020040112{hour:02}00"
    ),
    st.sampled_from("AB"),
    st.sampled_from([DETECTED, NOT_DETECTED]),
    st.sampled_from("12"),
    st.sampled_from("FCPWX"),
    st.integers(0, 3),
)


@settings(max_examples=100, deadline=None)
@given(messages=st.lists(VERSIONS, max_size=6), data=st.data())
def test_order_of_messages_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, messages: list[str], data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp()

    def met(messages: list[str]) -> tuple[set[PcrResult], set[tuple[str, str]]]:
        results, findings = read(folder, GOOD + "".join(messages))
        return set(results), {finding[:2] for finding in findings}

    assert met(messages) == met(data.draw(st.permutations(messages)))

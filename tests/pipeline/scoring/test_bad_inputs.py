"""Tests of bad inputs: each is refused with a code, flagged, or read correctly.

Most are tested beside the module that handles them. This module lists all of them, and tests the rest.
"""

import ast
import csv
import re
import subprocess
import sys
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom import uid as uids

from models.refusal import Refusal
from pipeline.imaging.archive import open_images
from pipeline.imaging.ct_slice import inspect_slice
from pipeline.imaging.discovery import find_series
from pipeline.imaging.pydicom_silence import quiet_pydicom
from pipeline.imaging.series_reader import read_series
from pipeline.preprocessing.preprocess import prepare
from pipeline.preprocessing.preprocess_settings import Preprocessing
from tests.helpers.dicom_files import body, ct_slice, save, write_series
from tests.helpers.own import CLEAN, Own

TESTS = Path(__file__).parents[1]

INPUTS = {
    "zip bomb": [
        "imaging/test_archive: zip_bomb_is_refused, too_many_bytes_in_total_are_refused",
        "imaging/test_archive: zip_bomb_with_false_size_is_refused",
        "here: a_zip_bomb_takes_no_memory",
    ],
    "paths and links that lead out of an archive": [
        "imaging/test_archive: paths_outside_the_folder_are_refused, links_and_devices_are_refused",
    ],
    "archive in an archive, a million entries": [
        "imaging/test_archive: archive_in_an_archive_is_refused, too_many_entries_are_refused",
        "imaging/test_archive: huge_central_directory_is_refused_without_loading",
    ],
    "empty archive, DICOMDIR alone": [
        "here: an_archive_without_images_is_none",
        "scoring/test_score: what_is_no_scan_is_refused",
    ],
    "not DICOM under its name": [
        "imaging/test_discovery: non_dicom_file_is_reported",
    ],
    "truncated file or pixels": [
        "imaging/test_series_reader: invalid_series_is_refused",
        "imaging/test_series_reader: truncated_compressed_pixels_are_refused_not_padded",
        "imaging/test_series_reader: truncated_files_are_refused",
        "cohort/test_ingest: planted_defects_are_found_and_nothing_else",
    ],
    "claims of absurd size": [
        "imaging/test_series_reader: invalid_series_is_refused",
        "here: a_huge_claim_is_refused_before_anything_is_decoded",
    ],
    "wrong VR, odd length, loops, depth": [
        "here: a_hostile_header_is_refused_at_once, a_value_without_end_takes_no_memory",
        "here: a_deflated_bomb_is_refused",
        "here: a_header_against_the_rules_is_read_or_refused",
        "imaging/test_series_reader: any_change_of_bytes_gives_volume_or_refusal",
    ],
    "transfer syntaxes": [
        "imaging/test_series_reader: unknown_transfer_syntax_is_refused",
        "imaging/test_series_reader: real_unsupported_codecs_are_refused_with_their_names",
        "imaging/test_series_reader: real_lossy_codecs_are_close_and_flagged, attributes_set_flags",
    ],
    "other modalities": [
        "imaging/test_series_reader: invalid_series_is_refused",
        "here: another_modality_is_refused",
    ],
    "MR under the name of CT": [
        "imaging/test_series_reader: invalid_series_is_refused",
        "here: an_mr_that_calls_itself_ct_has_no_air",
    ],
    "no position or orientation": [
        "imaging/test_series_reader: invalid_series_is_refused",
    ],
    "missing, doubled, uneven slices": [
        "imaging/test_series_reader: missing_slices_are_refused, unevenly_spaced_slices_are_refused",
        "imaging/test_series_reader: different_images_at_one_position_are_refused",
        "imaging/test_series_reader: identical_copies_are_dropped_and_flagged",
    ],
    "two series or two patients": [
        "imaging/test_discovery: files_are_grouped_by_patient_study_and_series_not_folder",
        "scoring/test_score: two_patients_are_never_scored, of_two_series_one_must_be_chosen",
    ],
    "scouts, reformats, dose reports": [
        "imaging/test_series_reader: invalid_series_is_refused",
        "scoring/test_score: a_scout_and_a_report_beside_the_scan_are_left_out",
    ],
    "no chest": [
        "preprocessing/test_preprocess: volume_without_a_chest_is_refused, real_abdomen_is_refused",
        "preprocessing/test_lungs: part_of_a_chest_is_refused_with_its_numbers",
    ],
    "contrast agent": [
        "imaging/test_series_reader: attributes_set_flags",
    ],
    "tilt, oblique slices": [
        "imaging/test_series_reader: slices_of_a_tilted_gantry_are_moved_to_their_true_places",
        "imaging/test_series_reader: invalid_series_is_refused",
        "imaging/test_series_reader: voxels_keep_their_scanned_positions",
    ],
    "impossible spacing, thick slices": [
        "imaging/test_series_reader: invalid_series_is_refused, slices_too_far_apart_are_refused",
        "imaging/test_series_reader: attributes_set_flags, large_slice_spacing_is_flagged",
    ],
    "impossible rescale, overflow": [
        "imaging/test_series_reader: invalid_series_is_refused, rescale_does_not_overflow",
    ],
    "inverted, padded, signed and unsigned": [
        "imaging/test_series_reader: invalid_series_is_refused, declared_padding_becomes_air",
        "imaging/test_series_reader: undeclared_padding_becomes_air_and_is_flagged",
        "here: signed_and_unsigned_slices_of_one_series_agree",
    ],
    "nothing but air, too few slices": [
        "imaging/test_series_reader: invalid_series_is_refused, too_few_slices_are_refused",
    ],
    "face down, feet first": [
        "imaging/test_series_reader: voxels_keep_their_scanned_positions",
        "preprocessing/test_preprocess: storage_order_does_not_change_the_tensor",
    ],
    "burned-in text, names in private tags and file names": [
        "imaging/test_series_reader: invalid_series_is_refused",
        "pacs/test_deidentify: planted_names_are_removed",
        "pacs/test_deidentify: pixels_with_possible_text_are_removed_and_refusal_code_kept",
        "cohort/test_ingest: no_stored_file_identifies_a_patient",
        "cohort/test_ingest: stored_findings_contain_no_file_names_or_cell_texts",
    ],
    "identifiers that are nearly alike": [
        "records/test_laboratory: patient_identifiers_are_not_normalised",
        "here: identifiers_that_differ_in_a_zero_or_a_letter_are_two_patients",
    ],
    "PCR without day, from the future, too far from the CT": [
        "records/test_laboratory: row_with_an_unreadable_time_is_skipped",
        "records/test_laboratory: specimen_with_a_future_date_is_skipped",
        "records/test_join: edges_of_the_positive_window, edges_of_the_negative_window",
    ],
    "conflicting, indeterminate, unknown results": [
        "records/test_join: only_indeterminate_results_give_no_label",
        "records/test_join: contradictory_results_of_one_specimen_are_a_conflict_in_any_case",
        "records/test_laboratory: result_text_outside_the_word_lists_is_reported_and_not_guessed",
    ],
    "the same study twice": [
        "cohort/test_selection: identical_scan_of_two_patients_is_used_for_neither",
        "cohort/test_selection: first_of_several_examinations_is_used",
        "cohort/test_ingest: planted_defects_are_found_and_nothing_else",
        "here: a_patient_scanned_twice_counts_once_and_in_one_split",
    ],
    "time zones, skipped hours, two ways to write a day": [
        "records/test_laboratory: date_in_another_format_is_not_guessed",
        "records/test_laboratory: local_time_skipped_or_repeated_by_a_clock_change_is_kept",
        "records/test_laboratory: file_with_swapped_day_and_month_is_refused",
        "records/laboratory/test_hl7: times_are_converted_to_the_site_time_zone",
        "records/laboratory/test_hl7: time_with_utc_offset_is_refused_without_a_site_time_zone",
        "records/laboratory/test_fhir: collection_time_is_converted_to_the_site_time_zone",
    ],
    "encodings, zero bytes, huge cells": [
        "records/test_laboratory: declared_encoding_is_decoded_and_other_encodings_are_refused",
        "records/test_laboratory: nul_byte_in_a_result_is_unmapped",
        "records/test_laboratory: file_with_a_cell_of_ten_megabytes_is_refused",
        "records/test_laboratory: broken_csv_is_refused",
    ],
    "formulas in cells": [
        "records/test_laboratory: formulas_and_scripts_are_read_as_text",
        "here: hostile_identifiers_and_names_reach_nothing_that_is_stored_or_shown",
    ],
    "missing, doubled, reordered columns": [
        "records/test_laboratory: file_with_a_missing_or_repeated_column_is_refused",
        "records/test_laboratory: declared_columns_are_found_in_any_order_among_other_columns",
    ],
    "markup, SQL and steering characters in names": [
        "records/test_laboratory: finding_detail_contains_no_control_characters",
        "scoring/test_html_report: names_are_escaped",
        "here: hostile_identifiers_and_names_reach_nothing_that_is_stored_or_shown",
    ],
    "impossible age, unknown sex": [
        "imaging/test_dates_and_ages: age_is_parsed",
        "imaging/test_discovery: sex_is_parsed",
    ],
    "NIfTI: wrong affine, NaN, packed bomb": [
        "imaging/test_nifti_reader: invalid_nifti_file_is_refused, nan_and_infinite_voxels_are_refused",
        "imaging/test_nifti_reader: decompression_bomb_is_refused_before_unpacking",
    ],
    "the same file twice, at the same time": [
        "cohort/test_ingest: second_ingest_examines_no_series_and_gives_the_same_result",
        "cohort/test_ingest: concurrent_ingest_is_refused",
        "records/test_laboratory: equal_rows_are_one_result_and_blank_rows_are_ignored",
        "records/laboratory/test_hl7: duplicate_messages_give_each_result_once",
        "records/laboratory/test_fhir: duplicate_files_give_each_result_once",
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("tests", INPUTS.values(), ids=INPUTS)
def test_every_listed_test_exists(tests: list[str]) -> None:
    for line in tests:
        place, _, names = line.partition(": ")
        source = Path(__file__) if place == "here" else TESTS / f"{place}.py"
        defined = {node.name for node in ast.parse(source.read_text()).body if isinstance(node, ast.FunctionDef)}
        missing = {f"test_{name}" for name in names.split(", ")} - defined
        assert not missing, f"{source.name} has no {missing}"


def refused(action: Callable[[], object]) -> str:
    with pytest.raises(Refusal) as caught:
        action()
    return caught.value.code


# --- archives and files -----------------------------------------------------------------------------------


def test_a_zip_bomb_takes_no_memory(tmp_path: Path) -> None:
    """The bomb holds 200 MB of zeros in 200 kB. The process that opens it may use at most 20 MB more memory."""
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed, packed.open("1.dcm", "w") as entry:
        for _ in range(200):
            entry.write(bytes(2**20))
    program = (
        "import resource, sys; from pathlib import Path; from pipeline.imaging.archive import open_images\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n"
        "    with open_images(Path(sys.argv[1])): pass\n"
        "except Exception as refusal: print(refusal.code)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    code, kilobytes = done.stdout.split()
    assert code == "E_ARCHIVE_RATIO"
    assert int(kilobytes) < 20_000


def test_an_archive_without_images_is_none(tmp_path: Path, own: Own) -> None:
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    with zipfile.ZipFile(tmp_path / "directory.zip", "w") as packed:
        packed.writestr("DICOMDIR", bytes(128) + b"DICM")
    for name in ("empty.zip", "directory.zip"):
        with open_images(tmp_path / name) as opened:
            assert find_series(opened) == ([], [])
    (own.folder / "ct" / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    assert refused(own.ingest) == "E_NO_IMAGES"


def test_a_huge_claim_is_refused_before_anything_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def claim(ds: Dataset, index: int) -> None:
        ds.Rows = ds.Columns = 8192

    write_series(tmp_path, body(), edit=claim)
    monkeypatch.setattr("pipeline.imaging.series_reader.decode_slice", None)
    (series,), _ = find_series(tmp_path)
    assert refused(lambda: read_series(series)) == "E_DIMENSIONS"


# --- hostile headers --------------------------------------------------------------------------------------

UNENDING = b"\xff\xff\xff\xff"
ITEM, END_OF_ITEM, END_OF_SEQUENCE = b"\xfe\xff\x00\xe0", b"\xfe\xff\x0d\xe0" + bytes(4), b"\xfe\xff\xdd\xe0" + bytes(4)
SEQUENCE = b"\x08\x00\x40\x11SQ\0\0"  # Referenced Image Sequence
TEXT = b"\x08\x00\x80\x10LO"  # Admitting Diagnoses Description
PRIVATE = b"\x09\x00\x10\x10UN\0\0"
HOSTILE = {
    "3000 sequences deep": (SEQUENCE + UNENDING + ITEM + UNENDING) * 3000 + (END_OF_ITEM + END_OF_SEQUENCE) * 3000,
    "3000 sequences deep without end": (SEQUENCE + UNENDING + ITEM + UNENDING) * 3000,
    "3000 unknowns deep": (PRIVATE + UNENDING + ITEM + UNENDING) * 3000,
    "a million empty items": SEQUENCE + UNENDING + (ITEM + bytes(4)) * 1_000_000 + END_OF_SEQUENCE,
    "a million empty items without end": SEQUENCE + UNENDING + (ITEM + bytes(4)) * 1_000_000,
    "a million elements": (TEXT + b"\2\0ab") * 1_000_000,
    "a value without end": PRIVATE + UNENDING + b"x" * 10_000_000,
}
AGAINST_THE_RULES = {
    "odd length": TEXT + b"\3\0abc",
    "unknown VR": b"\x08\x00\x80\x10ZZ\4\0abcd",
    "longer than the file": b"\x08\x00\x80\x10UT\0\0\xf0\xff\xff\xffabc",
    "a sequence of text": SEQUENCE + b"\x04\0\0\0text",
    "an item without sequence": ITEM + bytes(4),
    "an end without sequence": END_OF_SEQUENCE,
    "many character sets": b"\x08\x00\x05\x00CS" + (60_000).to_bytes(2, "little") + b"ISO 2022 IR 87\\" * 4000,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of one valid synthetic slice."""
    path = tmp_path_factory.mktemp("whole") / "1.dcm"
    save(ct_slice(body()[0], position_mm=(0, 0, 0)), path)
    return path.read_bytes()


def with_bytes(whole: bytes, extra: bytes) -> bytes:
    """The slice with `extra` inserted before Patient's Name."""
    place = whole.index(b"\x10\x00\x10\x00PN")
    return whole[:place] + extra + whole[place:]


def look(path: Path) -> str:
    """The code with which the file is refused, or '' if it is read."""
    with quiet_pydicom():
        series, findings = find_series(path)
        codes = {finding.reason.code for finding in findings}
        try:
            inspect_slice(path)
        except Refusal as refusal:
            codes.add(refusal.code)
    assert len(series) + len(findings) == 1
    assert len(codes) <= 1
    return "".join(codes)


def timed_look(path: Path) -> tuple[str, float]:
    """The code, and the CPU time in seconds."""
    began = time.process_time()
    return look(path), time.process_time() - began


def weighed_look(path: Path) -> tuple[str, float]:
    """The code, and the peak memory in MB."""
    tracemalloc.start()
    try:
        return look(path), tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


@pytest.mark.slow
@pytest.mark.parametrize("extra", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_header_is_refused_at_once(whole: bytes, tmp_path: Path, extra: bytes) -> None:
    path = tmp_path / "1.dcm"
    path.write_bytes(with_bytes(whole, extra))
    code, seconds = timed_look(path)
    assert code == "E_PARSE"
    assert seconds < 5


def test_a_value_without_end_takes_no_memory(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "1.dcm"
    path.write_bytes(with_bytes(whole, HOSTILE["a value without end"]))
    code, megabytes = weighed_look(path)
    assert code == "E_PARSE"
    assert megabytes < 100


@pytest.mark.slow
def test_a_deflated_bomb_is_refused(tmp_path: Path) -> None:
    """A deflated file of 0.5 MB that holds a private element of 0.5 GB."""
    syntax = uids.DeflatedExplicitVRLittleEndian.encode()
    meta = b"\x02\x00\x10\x00UI" + len(syntax).to_bytes(2, "little") + syntax
    meta = b"\x02\x00\x00\x00UL\4\0" + len(meta).to_bytes(4, "little") + meta
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    content = packer.compress(PRIVATE + (500 * 2**20).to_bytes(4, "little"))
    content += b"".join(packer.compress(bytes(2**20)) for _ in range(500)) + packer.flush()
    path = tmp_path / "1.dcm"
    path.write_bytes(bytes(128) + b"DICM" + meta + content)
    code, megabytes = weighed_look(path)
    assert code == "E_PARSE"
    assert megabytes < 200


@pytest.mark.parametrize("extra", AGAINST_THE_RULES.values(), ids=AGAINST_THE_RULES)
def test_a_header_against_the_rules_is_read_or_refused(whole: bytes, tmp_path: Path, extra: bytes) -> None:
    path = tmp_path / "1.dcm"
    path.write_bytes(with_bytes(whole, extra))
    code, seconds = timed_look(path)
    assert code in {"", "E_PARSE", "E_PIXEL", "E_NOT_AXIAL"}
    assert seconds < 1


# --- images -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modality", ["PT", "CR", "DX", "NM", "US", "SEG", "OT", "RTSTRUCT"])
def test_another_modality_is_refused(tmp_path: Path, modality: str) -> None:
    save(
        ct_slice(body()[0], position_mm=(0, 0, 0), Modality=modality, SOPClassUID="1.2.840.10008.5.1.4.1.1.7"),
        tmp_path / "1",
    )
    assert refused(lambda: inspect_slice(tmp_path / "1")) == "E_MODALITY"


def test_an_mr_that_calls_itself_ct_has_no_air(tmp_path: Path) -> None:
    """Every header says CT, but the values are those of a thorax MR: air near 0, tissue at several hundred."""
    rng = np.random.default_rng(0)
    hu = rng.rayleigh(15, (40, 64, 64))
    hu[:, 8:-8, 8:-8] = rng.normal(400, 60, (40, 48, 48))
    hu[:, 20:-20, 14:26] = hu[:, 20:-20, 38:50] = rng.rayleigh(40, (40, 24, 12))  # the lungs
    write_series(tmp_path, hu, spacing_mm=(6.0, 6.0, 6.0))
    (series,), _ = find_series(tmp_path)
    volume = read_series(series)
    assert refused(lambda: prepare(volume, Preprocessing())) == "E_NO_AIR"


def test_signed_and_unsigned_slices_of_one_series_agree(tmp_path: Path) -> None:
    def store_unsigned(ds: Dataset, index: int) -> None:
        if index % 2:
            stored = np.frombuffer(ds.PixelData, np.int16).astype(np.int32) + 1024
            ds.PixelData = stored.astype(np.uint16).tobytes()
            ds.PixelRepresentation, ds.RescaleIntercept = 0, -1024

    write_series(tmp_path, body(), edit=store_unsigned)
    (series,), _ = find_series(tmp_path)
    assert np.array_equal(read_series(series).hu, body())


# --- patients ---------------------------------------------------------------------------------------------


def rename(folder: Path, **attributes: str) -> None:
    """Set attributes of all images in a folder."""
    for path in folder.iterdir():
        ds = dcmread(path)
        for keyword, value in attributes.items():
            setattr(ds, keyword, value)
        ds.save_as(path)


def laboratory(own: Own, patient: str) -> None:
    """Write a laboratory file with only the rows of the first clean patient, under another identifier."""
    lines = (own.small / "laboratory.csv").read_text(encoding="utf-8").splitlines()
    own.laboratory("\n".join([lines[0], *(line.replace(CLEAN[0], patient) for line in lines if CLEAN[0] in line)]))


@pytest.mark.parametrize(("at_the_ct", "in_the_laboratory"), [("0042", "42"), ("ab42", "AB42"), ("42 A", "42A")])
def test_identifiers_that_differ_in_a_zero_or_a_letter_are_two_patients(
    own: Own, at_the_ct: str, in_the_laboratory: str
) -> None:
    own.add(CLEAN[0])
    rename(own.folder / "ct" / CLEAN[0], PatientID=at_the_ct)
    laboratory(own, in_the_laboratory)
    assessment = own.ingest()
    assert assessment.patients == []
    assert ("E_NO_PCR", own.site.pseudonym(at_the_ct)) in {(f.reason.code, f.patient_id) for f in assessment.findings}
    laboratory(own, at_the_ct)
    assert [patient.pseudonym for patient in own.ingest().patients] == [own.site.pseudonym(at_the_ct)]


def test_a_patient_scanned_twice_counts_once_and_in_one_split(own: Own) -> None:
    own.add(*CLEAN[:2])
    first, second = (own.folder / "ct" / name for name in CLEAN[:2])
    rename(second, PatientID=CLEAN[0])
    assert dcmread(next(first.iterdir())).StudyInstanceUID != dcmread(next(second.iterdir())).StudyInstanceUID
    (patient,) = own.ingest().patients
    assert patient.split == own.site.split(own.site.pseudonym(CLEAN[0]))


HOSTILE_TEXTS = [
    "=cmd|' /C calc'!A0",
    "+1+1",
    "-2+3",
    "@SUM(A1)",
    "\tx",
    "<img src=x onerror=alert(1)>",
    "' OR 1=1; DROP TABLE patients; --",
    "{{7*7}}${7*7}",
    "\x1b[2J\x1b[31m",
    "\u202egnirts",
    "../../etc/passwd",
    "a\x00b",
    "%s%n{0}{x}",
]


@pytest.mark.slow
@pytest.mark.parametrize("text", HOSTILE_TEXTS)
def test_hostile_identifiers_and_names_reach_nothing_that_is_stored_or_shown(
    own: Own, text: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    own.add(CLEAN[0])
    folder = own.folder / "ct" / CLEAN[0]
    rename(folder, PatientID=text, PatientName=text, SpecificCharacterSet="ISO_IR 192")
    laboratory(own, CLEAN[0])
    assessment = own.ingest()
    assert assessment.series == 1
    assert all(re.fullmatch("([0-9a-f]{16})?", finding.patient_id) for finding in assessment.findings)
    with (own.site.cohort_folder / "refusals.csv").open(encoding="utf-8", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    seen = "".join(capfd.readouterr()) + caplog.text
    assert text not in seen
    for path in own.site.folder.rglob("*"):
        assert path.is_dir() or text.encode() not in path.read_bytes()

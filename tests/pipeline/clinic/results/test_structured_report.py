"""Tests of the structured report. It is read back with independent programs."""

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from highdicom.seg import segread
from highdicom.sr import srread
from pydicom import Dataset, dcmread
from pydicom.sr.coding import Code
from pydicom.uid import EnhancedCTImageStorage

from pipeline.clinic.records import Answer
from pipeline.clinic.results import identity, sr_codes
from pipeline.clinic.results.write import PICTURE, REPORT, SEGMENTATION, write_results
from pipeline.scoring.score import Score
from tests.helpers.enhanced import enhanced, save_frames, single_frames
from tests.helpers.scored_answers import (
    BAND,
    DISTANCE,
    FLAG,
    LIMIT,
    MODEL_SHA256,
    PCR_POSITIVE,
    SEVERE,
    answer_to,
    rename,
    series_of,
)


@pytest.fixture(scope="module")
def answer(scan: Path, score: Score, tmp_path_factory: pytest.TempPathFactory) -> Answer:
    """An answer with its results. Tests must not change it."""
    made = answer_to(score, series_of(scan), tmp_path_factory.mktemp("answers") / "one")
    assert write_results(made, made.folder) is None
    return made


@pytest.fixture(scope="module")
def report(answer: Answer) -> Any:
    return srread(answer.folder / REPORT)


@pytest.fixture(scope="module")
def groups(report: Any) -> dict[str, Any]:
    return groups_of(report)


def groups_of(report: Any) -> dict[str, Any]:
    return {each.tracking_identifier: each for each in report.content.get_image_measurement_groups()}


def figures(group: Any) -> dict[str, float]:
    """The value of each measurement and of its child measurements, by code value."""
    found = {}
    for measurement in group.get_measurements():
        found[measurement.name.value] = measurement.value
        for item in measurement[0].get("ContentSequence", []):
            if item.ValueType == "NUM":
                found[item.ConceptNameCodeSequence[0].CodeValue] = float(item.MeasuredValueSequence[0].NumericValue)
    return found


def texts(dataset: Dataset) -> list[str]:
    return [item.TextValue for item in dataset.ContentSequence if item.ValueType == "TEXT"]


@pytest.mark.slow
def test_highdicom_reads_the_measurements_back(groups: dict[str, Any]) -> None:
    assert figures(groups["severe"]) == {
        "severe": pytest.approx(SEVERE),
        "band_low": pytest.approx(BAND[0]),
        "band_high": pytest.approx(BAND[1]),
        "rule_out": 0.1,
        "rule_in": 0.6,
    }
    assert figures(groups["pcr_positive"]) == {"pcr_positive": pytest.approx(PCR_POSITIVE)}
    assert figures(groups["quality"]) == {"distance": DISTANCE, "distance_limit": LIMIT}
    assert all(each.unit == sr_codes.NO_UNITS for each in groups["severe"].get_measurements())


def test_level_has_a_standard_code(groups: dict[str, Any]) -> None:
    (level,) = groups["severe"].get_qualitative_evaluations(name=sr_codes.LEVEL)
    assert (level.name, level.value) == (sr_codes.LEVEL, Code("11896004", "SCT", "Intermediate"))
    assert groups["pcr_positive"].get_qualitative_evaluations(name=sr_codes.LEVEL) == []
    assert any("behind this threshold is not recorded" in text for text in texts(groups["severe"][0]))
    assert "The release defines no operating points." in texts(groups["pcr_positive"][0])


@pytest.mark.slow
def test_level_is_uncertain_if_the_band_crosses_a_threshold(scan: Path, score: Score, tmp_path: Path) -> None:
    crossing = replace(score, intervals={"severe": (0.05, 0.3456)})
    made = answer_to(crossing, series_of(scan), tmp_path / "open")
    assert write_results(made, made.folder, picture=False) is None
    severe = groups_of(srread(made.folder / REPORT))["severe"]
    (level,) = severe.get_qualitative_evaluations(name=sr_codes.LEVEL)
    assert level.value == Code("64957009", "SCT", "Uncertain")
    assert "Uncertain: the 95 % band of the calibration crosses a threshold." in texts(severe[0])


def test_phantom_model_writes_no_results_for_a_patient(scan: Path, score: Score, tmp_path: Path) -> None:
    made = answer_to(replace(score, is_phantom=False), series_of(scan), tmp_path / "patient")
    refusal = write_results(made, made.folder)
    assert refusal is not None
    assert refusal.code == "E_NOT_FOR_PATIENTS"
    assert not {REPORT, PICTURE} & {path.name for path in made.folder.iterdir()}


def test_lung_measures_are_reported_by_side_and_third(groups: dict[str, Any], answer: Answer) -> None:
    regions = answer.score["lungs"]["regions"]
    for side in ("both", "right", "left"):
        told = groups[f"lungs, {side}"].get_measurements(name=sr_codes.VOLUME)
        assert [each.value for each in told] == [regions[side][part]["ml"] for part in sr_codes.PARTS]
        assert [each.finding_sites[0].value for each in told] == list(sr_codes.PARTS.values())
        assert {each.finding_sites[0].laterality for each in told} == {sr_codes.SIDES[side]}
        (whole, *_) = groups[f"lungs, {side}"].get_measurements(name=sr_codes.SHARES["ground_glass"])
        assert whole.value == pytest.approx(100 * regions[side]["whole"]["ground_glass"])
        assert whole.unit == sr_codes.PERCENT


def test_report_states_the_model_and_its_limitations(report: Any, groups: dict[str, Any]) -> None:
    told = texts(groups["severe"][0])
    for expected in (
        "trial of synthetic hospitals",
        f"SHA-256 {MODEL_SHA256}",
        "rounds of training: 7",
        "hospitals: 3",
        "trained on: synthetic data only",
        "signature: signature not checked",
        "Research use only. Not a medical device.",
        "Created by software; not verified by a person.",
    ):
        assert expected in told
    assert "Research use only. Not a medical device." in texts(report)
    assert f"{FLAG.code}: {FLAG.says}" in texts(groups["quality"][0])
    (observer,) = report.content.get_observer_contexts()
    assert observer.observer_type == Code("121007", "DCM", "Device")
    assert observer.observer_identifying_attributes.name == "fedthorax"
    assert (report.VerificationFlag, report.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")


def test_report_contains_no_finding_codes(answer: Answer) -> None:
    """A viewer that shows codes without their values would otherwise state a diagnosis."""
    assert "121071" not in {item.CodeValue for item in coded(dcmread(answer.folder / REPORT))}
    assert "840539006" not in {item.CodeValue for item in coded(dcmread(answer.folder / REPORT))}


def coded(dataset: Dataset) -> list[Dataset]:
    found = []
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                found += [item] if "CodeValue" in item else []
                found += coded(item)
    return found


def test_all_codes_are_standard_or_in_our_private_scheme(answer: Answer) -> None:
    for item in coded(dcmread(answer.folder / REPORT)):
        assert item.CodingSchemeDesignator in {"DCM", "SCT", "UCUM", "LN", "RFC5646", sr_codes.SCHEME}
        assert 0 < len(item.CodeMeaning) <= 64


@pytest.mark.parametrize("name", [REPORT, PICTURE])
def test_each_result_file_is_a_new_series_of_the_same_study(name: str, answer: Answer, scan: Path) -> None:
    made, source = dcmread(answer.folder / name), dcmread(series_of(scan).files[0])
    for keyword in ("PatientID", "PatientName", "PatientSex", "PatientAge", "StudyInstanceUID", "StudyDate", "StudyID"):
        assert made[keyword].value == source[keyword].value
    assert made.SeriesInstanceUID not in {source.SeriesInstanceUID, source.StudyInstanceUID}
    assert 900 < made.SeriesNumber < 1000
    assert "research use only" in made.SeriesDescription
    assert made.SpecificCharacterSet == "ISO_IR 192"
    for keyword in ("SeriesInstanceUID", "SOPInstanceUID"):
        assert made[keyword].value.startswith("2.25.")
        assert made[keyword].value.is_valid


def test_report_references_every_image_of_the_scan(report: Any, scan: Path) -> None:
    referred = {(str(series), str(image)) for _, series, image, _ in report.get_evidence()}
    series = series_of(scan)
    assert referred == {(series.series_uid, str(dcmread(path).SOPInstanceUID)) for path in series.files}


@pytest.fixture(scope="module")
def segmented(scan: Path, score: Score, tmp_path_factory: pytest.TempPathFactory) -> Answer:
    """An answer with report and segmentation."""
    made = answer_to(score, series_of(scan), tmp_path_factory.mktemp("segmented") / "one")
    assert write_results(made, made.folder, picture=False, seg=True) is None
    return made


def test_groups_refer_to_their_segments(segmented: Answer, scan: Path) -> None:
    """Read with highdicom: each group names a segment, and its volume is that of the segment's voxels."""
    report, seg = srread(segmented.folder / REPORT), segread(segmented.folder / SEGMENTATION)
    found = {each.tracking_identifier: each for each in report.content.get_volumetric_roi_measurement_groups()}
    assert found.keys() == {"lungs, both", "density of ground glass", "density of consolidation"}
    for number, name in enumerate(("lungs, both", "density of ground glass", "density of consolidation"), start=1):
        referred, series = found[name].referenced_segment
        assert referred.referenced_sop_instance_uid == seg.SOPInstanceUID
        assert np.atleast_1d(referred.referenced_segment_numbers).tolist() == [number]
        assert series.value == series_of(scan).series_uid
        volume = next(each for each in found[name].get_measurements() if each.name.value == "118565006")
        voxels = seg.get_volume(segment_numbers=[number], allow_missing_positions=True)
        measured = voxels.array.sum() * np.prod(voxels.spacing) / 1000
        assert volume.value == pytest.approx(measured, rel=0.01, abs=0.05)
    assert seg.SOPInstanceUID in {str(image) for _, _, image, _ in report.get_evidence()}
    plain = {each.tracking_identifier for each in report.content.get_image_measurement_groups()}
    assert plain == {"severe", "pcr_positive", "lungs, right", "lungs, left", "quality"}


def test_report_without_segmentation_refers_to_none(report: Any) -> None:
    assert report.content.get_volumetric_roi_measurement_groups() == []


@pytest.mark.parametrize("name", [REPORT, SEGMENTATION])
def test_model_is_named_as_contributing_equipment(name: str, segmented: Answer) -> None:
    model = dcmread(segmented.folder / name).ContributingEquipmentSequence[-1]
    assert model.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
    assert (model.ManufacturerModelName, model.Manufacturer) == (segmented.model_name, "fedthorax")
    assert model.SoftwareVersions and model.ContributionDateTime
    other = identity.uid("model", "f" * 64)
    assert model.DeviceUID == identity.uid("model", segmented.model_sha256) != other


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dciodvfy is absent (Debian package dicom3tools)")
def test_dciodvfy_accepts_references_to_segments(segmented: Answer) -> None:
    for line in objections(segmented.folder / REPORT):
        assert re.fullmatch(r"Warning - .* - Unrecognized defined term = <99FEDTHORAX>", line)


@pytest.mark.slow
def test_results_are_reproducible_and_uids_differ_between_answers(
    answer: Answer, scan: Path, score: Score, tmp_path: Path
) -> None:
    again = answer_to(score, series_of(scan), tmp_path / "one")
    other = answer_to(score, series_of(scan), tmp_path / "other")
    for each in (again, other):
        assert write_results(each, each.folder) is None
    for name in (REPORT, PICTURE):
        assert (again.folder / name).read_bytes() == (answer.folder / name).read_bytes()
        mine, theirs = dcmread(answer.folder / name), dcmread(other.folder / name)
        assert mine.SOPInstanceUID != theirs.SOPInstanceUID
        assert mine.SeriesInstanceUID != theirs.SeriesInstanceUID


def test_missing_release_data_is_omitted(scan: Path, score: Score, tmp_path: Path) -> None:
    bare = {"interval": None, "level": {"severe": None}, "operating_points": {}, "familiarity": None, "quality": []}
    made = answer_to(score, series_of(scan), tmp_path / "bare", score=score.to_json() | bare)
    assert write_results(made, made.folder, picture=False) is None
    assert not (made.folder / PICTURE).exists()
    groups = groups_of(srread(made.folder / REPORT))
    assert figures(groups["severe"]) == {"severe": pytest.approx(SEVERE)}
    assert "no check found a problem" in texts(groups["quality"][0])


def test_no_results_without_source_headers(scan: Path, score: Score, tmp_path: Path) -> None:
    made = answer_to(score, series_of(scan), tmp_path / "none")
    (made.folder / "source.dcm").unlink()
    refusal = write_results(made, made.folder)
    assert refusal is not None
    assert refusal.code == "E_RESULT_NO_DICOM"


def test_write_error_leaves_no_partial_results(scan: Path, score: Score, tmp_path: Path) -> None:
    made = answer_to(score, series_of(scan), tmp_path / "odd")
    (made.folder / "lungs.nii.gz").unlink()  # the report can be written, but the picture cannot
    refusal = write_results(made, made.folder)
    assert refusal is not None
    assert refusal.code == "E_RESULT_WRITE"
    assert not (made.folder / REPORT).exists()


def objections(path: Path) -> list[str]:
    """Errors and warnings of dciodvfy about a file, except those about attributes that the scan itself lacks.

    It does not know DeviceUID in ContributingEquipmentSequence (PS3.3, C.12.1), which IHE AI Results asks for.
    """
    done = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    assert {"Comprehensive3DSR", "SCImage"} & set(lines)  # dciodvfy recognised the SOP class
    is_found = re.compile(
        "(Error|Warning) - (?!.*Missing attribute or value that would be needed to build DICOMDIR)(?!.*/DeviceUID)"
    )
    return [line for line in lines if is_found.match(line)]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dciodvfy is absent (Debian package dicom3tools)")
@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"PatientName": "Yamada^Tarou=山田^太郎", "PatientBirthDate": "19600102", "AccessionNumber": "ACC7"},
        {"PatientName": "", "PatientSex": "", "PatientAge": "", "StudyDate": "", "StudyTime": "", "Manufacturer": ""},
        {"PatientIdentityRemoved": "YES"},
        {"PatientIdentityRemoved": "YES", "DeidentificationMethod": "a synthetic one"},
    ],
    ids=["phantom", "full", "empty", "pseudonymised", "and how"],
)
def test_dciodvfy_warns_only_about_our_private_codes(
    attributes: dict[str, Any], scan: Path, score: Score, tmp_path: Path
) -> None:
    made = answer_to(score, rename(scan, tmp_path / "scan", **attributes), tmp_path / "answer")
    assert write_results(made, made.folder) is None
    assert objections(made.folder / PICTURE) == []
    for line in objections(made.folder / REPORT):
        assert re.fullmatch(r"Warning - .* - Unrecognized defined term = <99FEDTHORAX>", line)


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dciodvfy is absent (Debian package dicom3tools)")
def test_dciodvfy_finds_no_error_with_headers_of_a_real_scan(real_data: Path, score: Score, tmp_path: Path) -> None:
    real = series_of(real_data / "real-thorax-64" / "ct-64Dicom")
    made = answer_to(score, real, tmp_path / "answer")
    assert write_results(made, made.folder) is None
    for name in (REPORT, PICTURE):
        assert [line for line in objections(made.folder / name) if line.startswith("Error")] == []


@pytest.mark.skipif(not shutil.which("dsrdump"), reason="dsrdump is absent (Debian package dcmtk)")
def test_dsrdump_reads_the_report(answer: Answer) -> None:
    command = ["dsrdump", "+Pl", "+Pc", answer.folder / REPORT]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for line in (
        'NUM:(severe,99FEDTHORAX,"Probability of intubation or death within 30 days")="0.2345" (1,UCUM,"no units")',
        'NUM:(band_high,99FEDTHORAX,"Upper end of the 95 % band of the calibration")="0.3456" (1,UCUM,"no units")',
        'CODE:(level,99FEDTHORAX,"Level of the probability by the model\'s thresholds")=(11896004,SCT,"Intermediate")',
        'TEXT:(121106,DCM,"Comment")="Research use only. Not a medical device."',
        "Verification Flag   : UNVERIFIED",
    ):
        assert line in done.stdout
    assert done.stderr in {"", "W: The VR checker does not support this Specific Character Set: ISO_IR 192\n"}


def test_multi_frame_image_is_referenced_once(scan: Path, score: Score, tmp_path: Path) -> None:
    image = enhanced(single_frames(sorted(scan.iterdir())))
    save_frames(image, tmp_path / "multi" / "1.dcm")
    made = answer_to(score, series_of(tmp_path / "multi"), tmp_path / "answer")
    assert write_results(made, made.folder) is None
    report = dcmread(made.folder / REPORT)
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    (series,) = study.ReferencedSeriesSequence
    (referenced,) = series.ReferencedSOPSequence
    assert (referenced.ReferencedSOPClassUID, referenced.ReferencedSOPInstanceUID) == (
        EnhancedCTImageStorage,
        image.SOPInstanceUID,
    )

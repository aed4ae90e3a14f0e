"""Tests of the segmentation: it is read back with highdicom, and compared with the volumes of the viewer."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from highdicom.seg import segread
from pydicom import dcmread

from pipeline.clinic.corrected_mask import folder_of_mask
from pipeline.clinic.pictures import LUNGS, OPACITIES, read_volume
from pipeline.clinic.records import Answer, Correction
from pipeline.clinic.results.verified import verified_files
from pipeline.clinic.results.write import SEGMENTATION, write_results
from pipeline.clinic.settings import Clinic, ClinicSettings
from pipeline.scoring.score import Score
from tests.helpers.enhanced import enhanced, save_frames, single_frames
from tests.helpers.scored_answers import answer_to, rename, series_of
from tests.pipeline.clinic.results.test_verified import READER, corrected_by_hand, decision

_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@pytest.fixture(scope="module")
def answer(scan: Path, score: Score, tmp_path_factory: pytest.TempPathFactory) -> Answer:
    """An answer with its segmentation. Tests must not change it."""
    made = answer_to(score, series_of(scan), tmp_path_factory.mktemp("answers") / "one")
    assert write_results(made, made.folder, report=False, picture=False, seg=True) is None
    return made


@pytest.mark.parametrize(("segment", "name", "value"), [(1, LUNGS, 1), (2, OPACITIES, 1), (3, OPACITIES, 2)])
def test_segments_have_the_voxels_and_the_places_of_the_volumes(
    segment: int, name: str, value: int, answer: Answer
) -> None:
    volume = segread(answer.folder / SEGMENTATION).get_volume(segment_numbers=[segment], allow_missing_positions=True)
    image = nib.Nifti1Image.from_filename(answer.folder / name)
    expected = np.asanyarray(image.dataobj) == value
    found = np.argwhere(volume.array[..., 0])
    places = nib.affines.apply_affine(volume.affine, found)
    indices = nib.affines.apply_affine(np.linalg.inv(_TO_LPS @ image.affine), places)
    assert np.abs(indices - indices.round()).max() < 1e-3  # the same grid
    assert sorted(map(tuple, indices.round().astype(int))) == sorted(map(tuple, np.argwhere(expected)))


def test_segmentation_refers_to_every_image_and_shares_their_frame_of_reference(answer: Answer, scan: Path) -> None:
    made, source = dcmread(answer.folder / SEGMENTATION), series_of(scan)
    images = [dcmread(path) for path in source.files]
    (series,) = made.ReferencedSeriesSequence
    named = {each.ReferencedSOPInstanceUID for each in series.ReferencedInstanceSequence}
    assert series.SeriesInstanceUID == source.series_uid
    assert named == {image.SOPInstanceUID for image in images}
    assert made.FrameOfReferenceUID == images[0].FrameOfReferenceUID
    assert (made.StudyInstanceUID, made.PatientID) == (images[0].StudyInstanceUID, images[0].PatientID)
    assert (made.SeriesNumber, made.Modality) == (903, "SEG")
    assert "UNVERIFIED" in made.SeriesDescription


def test_scan_without_a_frame_of_reference_has_no_segmentation(scan: Path, score: Score, tmp_path: Path) -> None:
    made = answer_to(score, rename(scan, tmp_path / "scan", FrameOfReferenceUID=""), tmp_path / "answer")
    assert write_results(made, made.folder, picture=False, seg=True) is None
    assert {path.name for path in made.folder.glob("s*.dcm")} == {"source.dcm", "sr.dcm"}


def test_multi_frame_image_is_the_source(scan: Path, score: Score, tmp_path: Path) -> None:
    image = enhanced(single_frames(sorted(scan.iterdir())))
    save_frames(image, tmp_path / "multi" / "1.dcm")
    made = answer_to(score, series_of(tmp_path / "multi"), tmp_path / "answer")
    assert write_results(made, made.folder, report=False, picture=False, seg=True) is None
    (series,) = dcmread(made.folder / SEGMENTATION).ReferencedSeriesSequence
    (named,) = series.ReferencedInstanceSequence
    assert named.ReferencedSOPInstanceUID == image.SOPInstanceUID


def test_verified_segmentation_names_the_reader_and_unusable_lungs_have_none(answer: Answer, tmp_path: Path) -> None:
    wanted = {"sr": False, "picture": False, "seg": True}
    clinic = Clinic(tmp_path, ClinicSettings.model_validate({"results": wanted}))
    own = replace(answer, folder=tmp_path / "one")
    shutil.copytree(answer.folder, own.folder)
    (path,) = verified_files(clinic, replace(own, decision=decision(1)), [decision(1)])
    made, before = dcmread(path), dcmread(answer.folder / SEGMENTATION)
    assert str(made.ContentCreatorName) == READER
    assert (made.SeriesNumber, made.PixelData) == (913, before.PixelData)
    assert made.SOPInstanceUID != before.SOPInstanceUID
    unusable = decision(2, verdict="corrected", reason="lungs", correction=Correction(lungs_usable=False))
    assert verified_files(clinic, replace(own, decision=unusable), [unusable]) == []


def test_segmentation_of_a_mask_corrected_by_hand_has_its_voxels_and_says_so(answer: Answer, tmp_path: Path) -> None:
    wanted = {"sr": False, "picture": False, "seg": True}
    clinic = Clinic(tmp_path, ClinicSettings.model_validate({"results": wanted}))
    shutil.copytree(answer.folder, tmp_path / "one")
    corrected = corrected_by_hand(replace(answer, folder=tmp_path / "one"))
    assert corrected.decision is not None
    (path,) = verified_files(clinic, corrected, [corrected.decision])
    made, before = segread(path), segread(answer.folder / SEGMENTATION)
    lungs = [each.get_volume(segment_numbers=[1], allow_missing_positions=True).array for each in (made, before)]
    kept = read_volume(folder_of_mask(corrected, corrected.decision.id) / LUNGS)[0]
    assert np.count_nonzero(lungs[0]) == np.count_nonzero(kept) < 0.7 * np.count_nonzero(lungs[1])
    assert {each.SegmentAlgorithmType for each in made.SegmentSequence} == {"SEMIAUTOMATIC"}
    assert {each.SegmentAlgorithmType for each in before.SegmentSequence} == {"AUTOMATIC"}
    assert "corrected by hand" in made.SeriesDescription and "corrected by hand" in made.ContentDescription
    assert str(made.ContentCreatorName) == READER
    if shutil.which("dciodvfy"):
        assert [line for line in objections(path) if line.startswith("Error")] == []


def objections(path: Path) -> list[str]:
    done = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    assert "Segmentation" in lines
    # It does not know DeviceUID in ContributingEquipmentSequence (PS3.3, C.12.1), which IHE AI Results asks for.
    return [line for line in lines if line.startswith(("Error", "Warning")) and "/DeviceUID" not in line]


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dciodvfy is absent (Debian package dicom3tools)")
def test_dciodvfy_warns_only_about_our_private_codes(answer: Answer) -> None:
    for line in objections(answer.folder / SEGMENTATION):
        assert line.startswith("Warning") and line.endswith("Unrecognized defined term = <99FEDTHORAX>")


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dciodvfy is absent (Debian package dicom3tools)")
def test_dciodvfy_finds_no_error_with_headers_of_a_real_scan(real_data: Path, score: Score, tmp_path: Path) -> None:
    made = answer_to(score, series_of(real_data / "real-thorax-64" / "ct-64Dicom"), tmp_path / "answer")
    assert write_results(made, made.folder, report=False, picture=False, seg=True) is None
    assert [line for line in objections(made.folder / SEGMENTATION) if line.startswith("Error")] == []

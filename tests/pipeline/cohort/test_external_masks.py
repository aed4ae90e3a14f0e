"""Ingest with a hospital's own lung masks: lookup by series, detection of changes, refusal of missing masks."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from models.refusal import Refusal
from pipeline.cohort.ingest import Assessment
from pipeline.imaging.discovery import find_series
from pipeline.imaging.lung_mask import LungMask
from pipeline.imaging.readers import read_scan
from pipeline.preprocessing.lesion_burden import middle_of_body
from pipeline.preprocessing.lung_regions import LungRegions
from pipeline.preprocessing.preprocess import orient, prepare
from pipeline.preprocessing.preprocess_settings import Preprocessing
from pipeline.site.folder import init_site
from tests.helpers.lung_masks import LEFT_LUNG, RIGHT_LUNG, write_nifti, write_segmentation
from tests.helpers.own import CLEAN, Own

pytestmark = pytest.mark.slow

EXTERNAL = Preprocessing(method=3)


@pytest.fixture
def masked(own: Own) -> Own:
    """A hospital with two patients and an empty mask folder."""
    own.add(*CLEAN[:2])
    own.site.settings.ct.lung_masks = own.folder / "lung-masks"
    (own.folder / "lung-masks").mkdir()
    return own


def add_mask(own: Own, patient: str, *, as_segmentation: bool = False, shift_mm: float = 0.0) -> Path:
    """Segment the lungs of a patient's scan by threshold and write them as this hospital's mask."""
    (series,), _ = find_series(own.folder / "ct" / patient)
    volume = read_scan(series)
    prepared = prepare(volume, Preprocessing())
    sides = LungRegions.of_mask(prepared.lungs, middle_of_body(prepared)).regions
    folder = own.folder / "lung-masks"
    if as_segmentation:
        labels = LungMask(sides, prepared.affine).on(volume.hu.shape, volume.affine)
        order = np.argsort([read_place(path) for path in series.files])
        files = [series.files[index] for index in order]
        segments = {(RIGHT_LUNG,): labels == 1, (LEFT_LUNG,): labels == 2}
        return write_segmentation(folder / f"{patient} mask.dcm", files, segments)
    affine = prepared.affine.copy()
    affine[0, 3] += shift_mm
    return write_nifti(folder / f"{series.series_uid}.nii.gz", sides, affine, "LAS")


def read_place(path: Path) -> float:
    return float(dcmread(path, stop_before_pixels=True).ImagePositionPatient[2])


def codes(assessment: Assessment) -> Counter[str]:
    return Counter(finding.reason.code for finding in assessment.findings if "MASK" in finding.reason.code)


def test_scan_without_a_mask_is_refused_and_counted(masked: Own) -> None:
    add_mask(masked, CLEAN[0])
    assessment = masked.ingest(EXTERNAL)
    assert codes(assessment) == {"E_MASK_MISSING": 1}
    counts = {count.key: count.count for _, count in assessment.waterfall.walk()}
    assert (counts["found"], counts["E_MASK_MISSING"], counts["patients"]) == (2, 1, 1)
    assert masked.ingest().examined_now == 2, "the segmenter needs no mask"


def test_tensor_is_cropped_with_the_mask_and_mask_changes_are_detected(masked: Own) -> None:
    assert codes(masked.ingest(EXTERNAL)) == {"E_MASK_MISSING": 2}
    path = add_mask(masked, CLEAN[0])
    first = masked.ingest(EXTERNAL)
    assert (first.examined_now, len(first.accepted)) == (1, 1)
    assert masked.ingest(EXTERNAL).examined_now == 0
    tensors = masked.site.cohort_folder / "tensors"
    by_mask = np.load(tensors / str(first.accepted[0].tensor))
    (series,), _ = find_series(masked.folder / "ct" / CLEAN[0])
    assert np.array_equal(by_mask, prepare(orient(read_scan(series)), Preprocessing()).tensor)

    path.unlink()
    add_mask(masked, CLEAN[0], shift_mm=40.0)
    changed = masked.ingest(EXTERNAL)
    assert changed.examined_now == 1
    assert "W_LUNGS_UNSURE" in changed.accepted[0].flags
    assert "W_LUNGS_UNSURE" not in first.accepted[0].flags

    for mask in (masked.folder / "lung-masks").iterdir():
        mask.unlink()
    assert codes(masked.ingest(EXTERNAL)) == {"E_MASK_MISSING": 2}


def test_dicom_segmentation_is_found_by_its_referenced_series(masked: Own) -> None:
    add_mask(masked, CLEAN[0], as_segmentation=True)
    assessment = masked.ingest(EXTERNAL)
    assert codes(assessment) == {"E_MASK_MISSING": 1}
    assert len(assessment.accepted) == 1


def test_series_with_two_masks_is_refused(masked: Own) -> None:
    add_mask(masked, CLEAN[0])
    add_mask(masked, CLEAN[0], as_segmentation=True)
    assert codes(masked.ingest(EXTERNAL)) == {"E_MASK_SEVERAL": 1, "E_MASK_MISSING": 1}


def test_damaged_mask_is_refused_without_its_file_name(masked: Own) -> None:
    path = add_mask(masked, CLEAN[0])
    path.write_bytes(path.read_bytes()[:-100])
    assessment = masked.ingest(EXTERNAL)
    assert codes(assessment) == {"E_MASK_FILE": 1, "E_MASK_MISSING": 1}
    listed = (masked.site.cohort_folder / "refusals.csv").read_text()
    assert path.name not in listed and CLEAN[0] not in listed


def test_missing_mask_folder_is_refused(masked: Own) -> None:
    masked.site.settings.ct.lung_masks = masked.folder / "elsewhere"
    with pytest.raises(Refusal) as refused:
        masked.ingest(EXTERNAL)
    assert refused.value.code == "E_MASK_FOLDER"
    assert str(masked.folder) not in str(refused.value)


def test_mask_folder_that_is_a_link_into_the_scans_is_refused(masked: Own) -> None:
    inside = masked.site.ct_folder / "masks"
    inside.mkdir()
    link = masked.folder / "link"
    link.symlink_to(inside)
    masked.site.settings.ct.lung_masks = link
    with pytest.raises(Refusal, match="E_MASK_FOLDER"):
        masked.ingest(EXTERNAL)


def test_mask_folder_is_relative_to_the_source_and_refused_with_a_pacs(tmp_path: Path) -> None:
    text = '[site]\nname = "ward"\nsource = "data"\n[ct]\nlung_masks = "masks"\n[labels]\nfile = "labels.csv"\n'
    assert init_site(tmp_path / "site", text).settings.ct.lung_masks == tmp_path / "site" / "data" / "masks"
    with pytest.raises(Refusal, match="lung_masks") as refused:
        init_site(tmp_path / "other", text + '[pacs]\nprotocol = "dicomweb"\n[pacs.dicomweb]\nurl = "https://pacs"\n')
    assert refused.value.code == "E_SETTINGS_KEY"

"""Writes lung masks like the software of a hospital: NIfTI in any orientation, and DICOM segmentations."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import highdicom as hd
import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from tests.helpers.dicom_files import anything_goes

LUNG, RIGHT_LUNG, LEFT_LUNG = (Code(code, "SCT", "Lung") for code in ("39607008", "3341006", "44029006"))
TO_THE_RIGHT, TO_THE_LEFT = (Code(code, "SCT", "Side") for code in ("24028007", "7771000"))
LIVER = Code("10200004", "SCT", "Liver")
Segments = Mapping[tuple[Code, ...], NDArray[np.bool_]]


def write_nifti(path: Path, labels: NDArray, affine: NDArray, axes: str = "RAS") -> Path:
    """Write labels on a grid. `affine`: voxels to mm in RAS. `axes`: order and direction of the axes in the file."""
    stored = nib.Nifti1Image(labels, affine)
    image = stored.as_reoriented(ornt_transform(io_orientation(affine), axcodes2ornt(tuple(axes))))
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


@anything_goes()
def write_segmentation(
    path: Path,
    scan: Sequence[Path],
    segments: Segments,
    edit: Callable[[Dataset], object] = lambda dataset: None,
    **options: object,
) -> Path:
    """Write a binary segmentation of a series with highdicom.

    `segments`: masks by type and optional side, on the grid of the series, with shape (slices, rows, columns).
    """
    images = [dcmread(file) for file in scan]
    for image in images:
        for keyword in ("StudyID", "AccessionNumber", "PatientBirthDate", "PositionReferenceIndicator"):
            image.setdefault(keyword, "")
        image.SeriesNumber, image.InstanceNumber = 1, 1
    kinds = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=f"CANARY {number}",
            segmented_property_category=Code("123037004", "SCT", "Anatomical Structure"),
            segmented_property_type=kind,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for number, (kind, *_) in enumerate(segments, start=1)
    ]
    for description, (_, *side) in zip(kinds, segments, strict=True):
        if side:
            modifier = hd.sr.CodedConcept.from_code(side[0])
            description.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [modifier]
    made = hd.seg.Segmentation(
        source_images=images,
        pixel_array=np.stack(list(segments.values()), axis=-1).astype(np.uint8),
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=kinds,
        series_instance_uid=generate_uid(),
        series_number=9,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="SYNTHETIC",
        manufacturer_model_name="SYNTHETIC",
        software_versions="1",
        device_serial_number="1",
        **options,
    )
    edit(made)
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path)
    return path

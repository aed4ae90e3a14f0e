"""Converts single-frame series to multi-frame images: Legacy Converted Enhanced CT, and Enhanced CT by hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from highdicom.legacy import LegacyConvertedEnhancedCTImage
from pydicom import Dataset, dcmread
from pydicom import Sequence as Items
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.tag import Tag
from pydicom.uid import UID, CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

from tests.helpers.dicom_files import anything_goes

SERIES_UID = "2.25.1618033988749894"
_NEEDED = {
    **dict.fromkeys(
        ("AccessionNumber", "ReferringPhysicianName", "PatientBirthDate", "PositionReferenceIndicator"), ""
    ),
    **{"FrameOfReferenceUID": "2.25.1414213562373095", "StudyID": "1", "SeriesNumber": 1},
}
_TOP = (
    *("SpecificCharacterSet", "Modality", "StudyInstanceUID", "StudyDate", "StudyTime", "PatientName", "PatientID"),
    *("PatientSex", "PatientAge", "PatientBirthDate", "Manufacturer", "FrameOfReferenceUID", "Rows", "Columns"),
    *("SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("PatientPosition", "AccessionNumber", "ReferringPhysicianName", "StudyID"),
)


def single_frames(paths: Sequence[Path]) -> list[Dataset]:
    """Read a series, decompress it, and add the empty attributes that a conversion needs."""
    images = []
    for number, path in enumerate(paths, start=1):
        image = dcmread(path)
        if image.file_meta.TransferSyntaxUID.is_encapsulated:
            image.decompress(generate_instance_uid=False)
        image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, f"2.25.{number}"
        for keyword, value in {**_NEEDED, "InstanceNumber": number}.items():
            if keyword not in image:
                setattr(image, keyword, value)
        images.append(image)
    return images


def legacy_converted(images: Sequence[Dataset], syntax: UID = ExplicitVRLittleEndian) -> Dataset:
    """Convert a series to one Legacy Converted Enhanced CT image."""
    return LegacyConvertedEnhancedCTImage(
        list(images),
        series_instance_uid=SERIES_UID,
        series_number=1,
        sop_instance_uid=generate_uid(entropy_srcs=["legacy"]),
        instance_number=1,
        transfer_syntax_uid=syntax,
    )


def group(**attributes: Any) -> Items:
    """One functional group: a sequence with one item."""
    item = Dataset()
    for keyword, value in attributes.items():
        setattr(item, keyword, value)
    return Items([item])


@anything_goes()
def enhanced(
    images: Sequence[Dataset], *, frame_type: Sequence[str] = ("ORIGINAL", "PRIMARY", "AXIAL", "NONE")
) -> Dataset:
    """Make one uncompressed Enhanced CT image from single frames, in their order; one stack, rescale for each frame."""
    first = images[0]
    made = Dataset()
    for keyword in _TOP:
        if keyword in first:
            made[keyword] = first[keyword]
    made.SOPClassUID, made.SOPInstanceUID = EnhancedCTImageStorage, generate_uid(entropy_srcs=["enhanced"])
    made.SeriesInstanceUID, made.SeriesNumber, made.InstanceNumber = SERIES_UID, 1, 1
    made.ImageType, made.AcquisitionDateTime = list(frame_type), f"{first.StudyDate}{first.StudyTime}"
    made.BurnedInAnnotation, made.LossyImageCompression, made.NumberOfFrames = "NO", "00", len(images)
    shared = Dataset()
    shared.CTImageFrameTypeSequence = group(
        FrameType=list(frame_type), PixelPresentation="MONOCHROME", VolumetricProperties="VOLUME"
    )
    shared.PlaneOrientationSequence = group(ImageOrientationPatient=first.ImageOrientationPatient)
    shared.PixelMeasuresSequence = group(PixelSpacing=first.PixelSpacing, SliceThickness=first.SliceThickness)
    if "ConvolutionKernel" in first:
        shared.CTReconstructionSequence = group(ConvolutionKernel=first.ConvolutionKernel)
    made.SharedFunctionalGroupsSequence = Items([shared])
    made.PerFrameFunctionalGroupsSequence = Items([_own(image, index) for index, image in enumerate(images, start=1)])
    made.DimensionIndexSequence = Items([dimension(keyword) for keyword in ("StackID", "InStackPositionNumber")])
    made.PixelData = b"".join(image.PixelData for image in images)
    made["PixelData"].VR = "OW"
    return made


def dimension(keyword: str) -> Dataset:
    """One item of DimensionIndexSequence."""
    item = Dataset()
    item.DimensionIndexPointer, item.FunctionalGroupPointer = Tag(keyword), Tag("FrameContentSequence")
    return item


def _own(image: Dataset, index: int) -> Dataset:
    own = Dataset()
    own.FrameContentSequence = group(StackID="1", InStackPositionNumber=index, DimensionIndexValues=[1, index])
    own.PlanePositionSequence = group(ImagePositionPatient=image.ImagePositionPatient)
    own.PixelValueTransformationSequence = group(
        RescaleSlope=image.RescaleSlope, RescaleIntercept=image.RescaleIntercept, RescaleType="HU"
    )
    return own


@anything_goes()
def save_frames(image: Dataset, path: Path, *, syntax: UID = ExplicitVRLittleEndian, **options: Any) -> None:
    """Write a multi-frame image; `options` of pydicom's `compress` for an encapsulated syntax."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = image.get("file_meta") or FileMetaDataset()
    if not meta.get("TransferSyntaxUID"):
        meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax.is_encapsulated else syntax
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    image.file_meta = meta
    if syntax.is_encapsulated and not meta.TransferSyntaxUID.is_encapsulated:
        image.compress(syntax, generate_instance_uid=False, **options)
    image.save_as(path, enforce_file_format=True)


def split_fragments(image: Dataset, frames: Sequence[bytes], *, has_table: bool) -> None:
    """Give an encapsulated image frames of two fragments each, with or without a basic offset table."""
    image.PixelData = encapsulate(list(frames), fragments_per_frame=2, has_bot=has_table)


def stored(image: Dataset, count: int) -> np.ndarray:
    """The stored values of an uncompressed image, shape (frames, rows, columns)."""
    kind = np.int16 if image.PixelRepresentation else np.uint16
    return np.frombuffer(image.PixelData, kind).reshape(count, image.Rows, image.Columns)

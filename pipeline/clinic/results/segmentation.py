"""The segmentation of one answer (DICOM PS3.3, A.51): the lungs, and the voxels that its table counts.

It has the grid on which the lungs were measured, which is coarser than the scan, in the scan's frame of reference. The
opacities are voxels of a density, whatever the cause: their codes are our own, and state no finding.
"""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from highdicom import AlgorithmIdentificationSequence, Volume
from highdicom.seg import Segmentation, SegmentDescription
from pydicom import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import CTImageStorage

from pipeline.clinic.corrected_mask import reader_masks
from pipeline.clinic.pictures import LUNGS, OPACITIES, read_volume
from pipeline.clinic.records import Answer
from pipeline.clinic.results import identity, sr_codes
from pipeline.clinic.results.source import Source
from pipeline.preprocessing.opacity import Opacity

SERIES_NUMBER, VERIFIED_NUMBER = 903, 913
DESCRIPTION = "fedthorax UNVERIFIED segmentation, research use only"
VERIFIED_DESCRIPTION = "fedthorax verified segmentation, research use only"
CORRECTED_DESCRIPTION = "fedthorax verified, mask corrected by hand, research use only"
CONTENT = "Lungs, and voxels counted by density"
CORRECTED_CONTENT = "Lungs, and voxels counted by density, corrected by hand"
_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # from NIfTI's axes
_ANATOMY = Code("123037004", "SCT", "Anatomical Structure")
_REGION = Code("309825002", "SCT", "Spatial and Relational Concept")
_SEGMENTS: dict[str, tuple[Code, Code, Opacity | None]] = {
    sr_codes.LUNGS_SEGMENT: (_ANATOMY, sr_codes.LUNG, None),
    sr_codes.SEGMENTS["ground_glass"]: (_REGION, sr_codes.COUNTED["ground_glass"], Opacity.GROUND_GLASS),
    sr_codes.SEGMENTS["consolidation"]: (_REGION, sr_codes.COUNTED["consolidation"], Opacity.CONSOLIDATION),
}


def segmentation(answer: Answer, source: Source, folder: Path) -> Segmentation | None:
    """Create a segmentation from the volumes in the answer's folder.

    None if the scan has no frame of reference, so that no other image can be laid over it.
    """
    if not source.header.get("FrameOfReferenceUID"):
        return None
    masks, decision = reader_masks(answer), answer.decision
    volume = _volume(masks or folder, source)
    made = Segmentation(
        source_images=[_reference(source, volume)],
        pixel_array=volume,
        segmentation_type="BINARY",
        segment_descriptions=[
            _description(number, name, is_corrected=masks is not None) for number, name in enumerate(_SEGMENTS, start=1)
        ],
        manufacturer_model_name=identity.MAKER,
        device_serial_number="none",
        content_label="LUNGS",
        content_description=CORRECTED_CONTENT if masks else CONTENT,
        content_creator_name=decision.person if decision else None,
        **_series(answer),
    )
    _refer_to(made, source)
    made.BodyPartExamined = "CHEST"
    identity.name_algorithm(made, answer)
    identity.sign(made, answer)
    return made


def _series(answer: Answer) -> dict[str, Any]:
    is_verified = answer.decision is not None
    number, description = (VERIFIED_NUMBER, VERIFIED_DESCRIPTION) if is_verified else (SERIES_NUMBER, DESCRIPTION)
    if answer.decision and answer.decision.correction.mask:
        description = CORRECTED_DESCRIPTION
    given = identity.series(answer, "segmentation", number, description)
    del given["manufacturer_model_name"]
    return given


def _volume(folder: Path, source: Source) -> Volume:
    """Return the segments as channels of a volume whose slices run from the head to the feet."""
    (lungs, affine), (opacities, _) = (read_volume(folder / name) for name in (LUNGS, OPACITIES))
    inside, counted = (each.transpose(2, 1, 0) for each in (lungs, opacities))
    masks = [inside > 0 if opacity is None else counted == opacity for *_, opacity in _SEGMENTS.values()]
    volume = Volume(
        np.stack(masks, axis=-1).astype(np.uint8),
        affine=_TO_LPS @ affine[:, [2, 1, 0, 3]],
        coordinate_system="PATIENT",
        frame_of_reference_uid=source.header.FrameOfReferenceUID,
        channels={"SegmentNumber": list(range(1, len(masks) + 1))},
    )
    return volume.flip_spatial(0)  # highdicom wants right-handed axes


def _description(number: int, name: str, *, is_corrected: bool) -> SegmentDescription:
    category, kind, opacity = _SEGMENTS[name]
    return SegmentDescription(
        segment_number=number,
        segment_label=name,
        segmented_property_category=category,
        segmented_property_type=kind,
        algorithm_type="SEMIAUTOMATIC" if is_corrected else "AUTOMATIC",
        algorithm_identification=AlgorithmIdentificationSequence(
            name=f"{identity.MAKER} lung segmenter",
            family=sr_codes.ARTIFICIAL_INTELLIGENCE,
            version=version(identity.MAKER),
        ),
        anatomic_regions=[sr_codes.LUNG] if opacity else None,
    )


def _reference(source: Source, volume: Volume) -> Dataset:
    """Return an image in the place of the scan's, which are no longer there: highdicom copies its identity."""
    image = Dataset()
    image.update(source.header)
    image.Modality = "CT"
    image.SOPClassUID = CTImageStorage
    image.Rows, image.Columns = volume.spatial_shape[1:]
    geometry = volume.get_geometry()
    image.ImagePositionPatient = list(geometry.position)
    image.ImageOrientationPatient = [*geometry.direction_cosines]
    image.PixelSpacing = list(geometry.pixel_spacing)
    image.SliceThickness = geometry.spacing_between_slices
    return image


def _refer_to(made: Dataset, source: Source) -> None:
    """Name all images of the scan as the source; no frame has the place of one of them."""
    for frame in made.PerFrameFunctionalGroupsSequence:
        if "DerivationImageSequence" in frame:
            frame.DerivationImageSequence = []
    series = Dataset()
    series.SeriesInstanceUID = source.header.SeriesInstanceUID
    series.ReferencedInstanceSequence = [_named(*image) for image in source.images]
    made.ReferencedSeriesSequence = [series]


def _named(sop_class: str, instance: str) -> Dataset:
    image = Dataset()
    image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = sop_class, instance
    return image

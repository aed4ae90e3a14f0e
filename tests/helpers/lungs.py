"""Lesion burden of scans with known lungs, without the segmenter."""

from pipeline.preprocessing.lesion_burden import Burden, burden, middle_of_body
from pipeline.preprocessing.lung_regions import LungRegions
from pipeline.preprocessing.preprocess import Prepared


def regions_of(prepared: Prepared) -> LungRegions:
    """Return the lungs from preprocessing as regions, without vessels or disease."""
    return LungRegions.of_mask(prepared.lungs, middle_of_body(prepared))


def burden_of(prepared: Prepared) -> Burden:
    return burden(prepared.image_hu, regions_of(prepared), prepared.spacing_mm)

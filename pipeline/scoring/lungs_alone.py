"""Measures the lungs of a scan without a model, for scans that a model does not answer."""

from dataclasses import dataclass, field

from pipeline.imaging.lung_mask import LungMask
from pipeline.imaging.volume import Volume
from pipeline.preprocessing.lesion_burden import Burden, burden, median_density
from pipeline.preprocessing.plausibility import look_at, require_chest
from pipeline.preprocessing.preprocess import Prepared, mask_of, orient, prepare, regions_of
from pipeline.preprocessing.preprocess_settings import EXTERNAL, Preprocessing


@dataclass(frozen=True)
class LungsAlone:
    """The lungs of one scan. `volume`: the scan upright; `prepared`, `burden`: see their classes."""

    volume: Volume = field(repr=False)
    prepared: Prepared = field(repr=False)
    burden: Burden = field(repr=False)


def measure_lungs(volume: Volume, mask: LungMask | None = None) -> LungsAlone:
    """Find and measure the lungs of a scan as it was read, or those of an external mask.

    Raises Refusal E_NO_LUNGS, E_NOT_A_WHOLE_CHEST and those of `require_chest`: nothing is measured in a scan that does
    not show an upright, whole chest in HU. With a mask also E_MASK_GRID and E_MASK_SIDES.
    """
    upright = orient(volume)
    prepared = prepare(volume, Preprocessing() if mask is None else Preprocessing(method=EXTERNAL), mask)
    require_chest(look_at(upright, prepared))
    hu = prepared.image_hu
    density = median_density(upright.hu, hu.shape)
    sides = mask_of(prepared, mask)
    found = burden(hu, regions_of(prepared), prepared.spacing_mm, sides, density, voxel_ml=prepared.voxel_ml)
    return LungsAlone(upright, prepared, found)

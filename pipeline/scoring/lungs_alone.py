"""Measures the lungs of a scan without a model, for scans that a model does not answer."""

from dataclasses import dataclass, field

from pipeline.imaging.volume import Volume
from pipeline.preprocessing.lesion_burden import Burden, burden
from pipeline.preprocessing.plausibility import look_at, require_chest
from pipeline.preprocessing.preprocess import Prepared, Preprocessing, orient, prepare, regions_of


@dataclass(frozen=True)
class LungsAlone:
    """The lungs of one scan. `volume`: the scan upright; `prepared`, `burden`: see their classes."""

    volume: Volume = field(repr=False)
    prepared: Prepared = field(repr=False)
    burden: Burden = field(repr=False)


def measure_lungs(volume: Volume) -> LungsAlone:
    """Find and measure the lungs of a scan as it was read.

    Raises Refusal E_NO_LUNGS, E_NOT_A_WHOLE_CHEST and those of `require_chest`: nothing is measured in a scan that does
    not show an upright, whole chest in HU.
    """
    upright = orient(volume)
    prepared = prepare(volume, Preprocessing())
    require_chest(look_at(upright, prepared))
    return LungsAlone(upright, prepared, burden(prepared.image_hu, regions_of(prepared), prepared.spacing_mm))

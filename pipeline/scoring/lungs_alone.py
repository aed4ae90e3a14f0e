"""Measures the lungs of a scan without a model, for scans that a model does not answer."""

from dataclasses import dataclass, field
from typing import Any

from pipeline.imaging.lung_mask import LungMask
from pipeline.imaging.missing_slices import Stated
from pipeline.imaging.volume import Volume
from pipeline.preprocessing.lesion_burden import Burden, burden, median_density
from pipeline.preprocessing.plausibility import look_at, require_chest
from pipeline.preprocessing.preprocess import Prepared, mask_of, orient, prepare, regions_of
from pipeline.preprocessing.preprocess_settings import EXTERNAL, Preprocessing
from pipeline.scoring.quality_checks import Check, checks_of_lungs, checks_of_reading

_NOTHING_STATED = Stated()


@dataclass(frozen=True)
class LungsAlone:
    """The lungs of one scan.

    `volume`: the scan upright; `prepared`, `burden`: see their classes. `checks`: those of a scored scan that say
    whether the lungs and their figures may be wrong.
    """

    volume: Volume = field(repr=False)
    prepared: Prepared = field(repr=False)
    burden: Burden = field(repr=False)
    checks: tuple[Check, ...]

    @property
    def flags(self) -> tuple[Check, ...]:
        """The checks that are not passed."""
        return tuple(check for check in self.checks if check.reason)

    def to_json(self) -> dict[str, Any]:
        """Return the measures as `lungs` of a score, and the checks as `quality` of a score."""
        return {**self.burden.to_json(), "quality": [check.to_json() for check in self.checks]}


def measure_lungs(
    volume: Volume, mask: LungMask | None = None, *, stated: Stated = _NOTHING_STATED, unread: int = 0
) -> LungsAlone:
    """Find and measure the lungs of a scan as it was read, or those of an external mask.

    `stated`, `unread`: as of `OneScan`, for the checks.
    Raises Refusal E_NO_LUNGS, E_NOT_A_WHOLE_CHEST and those of `require_chest`: nothing is measured in a scan that does
    not show an upright, whole chest in HU. With a mask also E_MASK_GRID and E_MASK_SIDES.
    """
    upright = orient(volume)
    settings = Preprocessing() if mask is None else Preprocessing(method=EXTERNAL)
    prepared = prepare(volume, settings, mask)
    anatomy = look_at(upright, prepared)
    require_chest(anatomy)
    hu = prepared.image_hu
    density = median_density(upright.hu, hu.shape)
    sides = mask_of(prepared, mask)
    regions = regions_of(prepared)
    found = burden(hu, regions, prepared.spacing_mm, sides, density, voxel_ml=prepared.voxel_ml)
    checks = (
        *checks_of_reading(volume, stated, unread),
        *checks_of_lungs(prepared, anatomy, settings, regions, sides),
    )
    return LungsAlone(upright, prepared, found, checks)

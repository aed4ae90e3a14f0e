"""Measures of one scan for the data contract: geometry, plausibility of HU, pose of the body, scanner.

The site's cohort stores them. They are numbers and words from closed lists; no free text of a header is stored.
`pipeline.preprocessing.measuring` measures; this module works without torch.
"""

import json
from dataclasses import asdict, dataclass

from pipeline.imaging.vendor_tags import Sharpness
from pipeline.preprocessing import reasons
from pipeline.preprocessing.preprocess_settings import Preprocessing

# An accredited scanner measures air between -1005 and -970 HU (American College of Radiology, CT phantom). Air around a
# patient contains scatter, and the range of values begins at -1024.
AIR_BETWEEN_HU = (-1050.0, -940.0)
_LEAST_TRACHEA_MM2 = 40.0
_LEAST_TURN_MM = 8.0  # the spine is at least 12 mm behind the centre of the lungs in phantoms, 37 mm in a real thorax


@dataclass(frozen=True)
class Measures:
    """Measures of one scan. `None` or '' where a value is not known.

    `slice_mm`: distance between slices. `pixel_mm`: the larger of the two in-plane spacings. `air_hu`: around the
    patient. `aerated_hu`: 10th percentile inside the lungs. `is_cut`: the lungs reach an end or a side of the scan.
    `spine_behind_mm`: distance of the centre of bone behind the centre of the lungs. `windpipe_above_mm2`: area of the
    trachea, i.e. air in the midline of the upper fifth of the lungs minus that of the lowest fifth; stored cohorts
    hold it under this name. `heart_left`: -1 (right) to 1 (left), side of the soft tissue between the lungs.
    `position`: PatientPosition. `manufacturer`, `kernel`, `sharpness`: as in `pipeline/imaging/vendor_tags.py`.
    """

    slice_mm: float
    pixel_mm: float
    thickness_mm: float | None
    slices: int
    lungs_ml: float
    is_cut: bool
    air_hu: float | None
    aerated_hu: float
    spine_behind_mm: float | None
    windpipe_above_mm2: float
    heart_left: float
    position: str
    manufacturer: str
    kernel: str
    sharpness: Sharpness

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, stored: str) -> "Measures":
        return cls(**json.loads(stored))


def flags(measures: Measures, settings: Preprocessing) -> set[str]:
    """Return the codes of unusual measures of this scan: W_LUNGS_CUT, W_HU_SHIFT, W_AIR_HU, W_TURNED."""
    low, high = AIR_BETWEEN_HU
    met = {
        reasons.LUNGS_CUT: measures.is_cut,
        reasons.HU_SHIFT: abs(settings.aerated_lung_hu - measures.aerated_hu) > settings.largest_shift_hu,
        reasons.AIR_HU: measures.air_hu is not None and not low <= measures.air_hu <= high,
        reasons.TURNED: is_turned(measures.spine_behind_mm, measures.windpipe_above_mm2),
    }
    return {reason.code for reason, is_met in met.items() if is_met}


def is_turned(spine_behind_mm: float | None, windpipe_above_mm2: float) -> bool:
    """Whether the body is not oriented as the header says: the spine is in front, or the trachea is below."""
    is_prone = spine_behind_mm is not None and spine_behind_mm < -_LEAST_TURN_MM
    return is_prone or windpipe_above_mm2 <= -_LEAST_TRACHEA_MM2

"""The settings with which a scan becomes the tensor that a network reads. Works without torch.

`pipeline.preprocessing.preprocess` applies them.
"""

import hashlib
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Size = Annotated[int, Field(ge=8, le=512)]
THRESHOLD: Final = 1
SEGMENTER: Final = 8
EXTERNAL: Final = 3
_EARLIER_SEGMENTERS: Final = (2, 4, 5, 6, 7)
# The radiologists' lung window begins below the scanners' lowest HU. A window on one side of all densities of lungs
# makes every lung the same.
_WINDOW_ENDS_HU: Final = (-1500.0, 3071.0)
_LUNG_HU: Final = (-1000.0, 0.0)
_LEAST_WINDOW_HU: Final = 1.0  # scans hold whole HU
METHODS = {"threshold": THRESHOLD, "segmenter": SEGMENTER, "external": EXTERNAL}  # words of `Preprocessing.method`


class Preprocessing(BaseModel):
    """The settings of `prepare`; they travel with every model, and their digest is compared.

    Parameters
    ----------
    method : 1, 3 or 8
        Version of `prepare` itself. 1 finds the lungs by threshold, 8 with the lung segmenter; 3 takes them from an
        external mask. The words "threshold", "segmenter" and "external" mean the same. 2 and 4 to 7 were earlier
        segmenters.
    shape : tuple of int
        Shape of the tensor: slices, rows, columns; each 8 to 512 voxels.
    working_spacing_mm : float
        Spacing of the isotropic grid on which the lungs are found, 1 to 10 mm.
    margin_mm : float
        Margin around the lungs' bounding box, 0 to 50 mm.
    aerated_lung_hu : float
        HU to which the aerated part of the lungs is shifted, -1000 to -700 HU.
    largest_shift_hu : float
        Largest such shift, 0 to 200 HU.
    window_hu : tuple of float
        Lowest and highest HU of the window that is scaled to -1 to 1. Between -1500 and 3071 HU, with a part of the
        lungs' densities (-1000 to 0 HU) inside.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    # Version of `prepare`; increases when the same settings give other tensors, as with other weights of the segmenter.
    method: Literal[1, 3, 8] = SEGMENTER
    shape: tuple[Size, Size, Size] = (40, 56, 56)
    working_spacing_mm: float = Field(default=4.0, ge=1, le=10)
    margin_mm: float = Field(default=8.0, ge=0, le=50)
    aerated_lung_hu: float = Field(default=-920.0, ge=-1000, le=-700)
    largest_shift_hu: float = Field(default=80.0, ge=0, le=200)
    window_hu: tuple[float, float] = (-1000.0, 200.0)

    @field_validator("method", mode="before")
    @classmethod
    def method_has_a_name(cls, value: object) -> object:
        """Stored as a number, so that the digests of settings do not depend on how they were written."""
        if value in _EARLIER_SEGMENTERS:
            raise ValueError(f"{value} was an earlier segmenter; {SEGMENTER} is today's, and scans are ingested again")
        return METHODS.get(value, value) if isinstance(value, str) else value

    @field_validator("window_hu")
    @classmethod
    def window_shows_lungs(cls, window: tuple[float, float]) -> tuple[float, float]:
        """Refuse a window in which every voxel of a lung would have the same value, or none (NaN)."""
        low, high = window
        lowest, highest = _WINDOW_ENDS_HU
        if not (lowest <= low <= highest and lowest <= high <= highest):
            raise ValueError(f"both ends must be numbers from {lowest:g} to {highest:g} HU")
        if high - low < _LEAST_WINDOW_HU:
            raise ValueError(f"the second end must be at least {_LEAST_WINDOW_HU:g} HU above the first")
        if low >= _LUNG_HU[1] or high <= _LUNG_HU[0]:
            raise ValueError(f"the window must show lungs, which have {_LUNG_HU[0]:g} to {_LUNG_HU[1]:g} HU")
        return window


def settings_digest(settings: Preprocessing) -> str:
    """Return a digest that identifies the settings; tensors made with other settings are made again."""
    return hashlib.sha256(settings.model_dump_json().encode()).hexdigest()[:16]

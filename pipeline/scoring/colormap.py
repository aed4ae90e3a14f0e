"""Defines the colours of overlays on a scan, the same on every page.

A saliency map goes from dark purple over orange to pale yellow. Brightness increases with the value, so that
colour-blind readers can read it.
"""

import numpy as np
from numpy.typing import NDArray

from pipeline.preprocessing.opacity import Opacity

CONTOUR_RGB = (0, 200, 255)  # of the lungs; differs from all greys, also for colour-blind readers
# Of voxels that are counted as ground glass and as consolidation; they differ in hue and in brightness.
OPACITY_RGB = {Opacity.GROUND_GLASS: (255, 200, 60), Opacity.CONSOLIDATION: (214, 30, 120)}
OPACITY_OPAQUE = 0.55
MOST_OPAQUE = 0.75
_AT = (0.0, 0.25, 0.5, 0.75, 1.0)
_RGB = ((10, 0, 20), (90, 15, 110), (190, 55, 80), (245, 130, 20), (252, 255, 165))


def heat_rgba(height: NDArray[np.floating]) -> NDArray[np.float64]:
    """Map heights from 0 to 1 to red, green, blue (0 to 255) and opacity (0 to 1), along a new last axis."""
    colours = [np.interp(height, _AT, channel) for channel in zip(*_RGB, strict=True)]
    return np.stack([*colours, MOST_OPAQUE * height], axis=-1)


def opacity_rgba(opacities: NDArray[np.integer]) -> NDArray[np.float64]:
    """Map values of `Opacity` to red, green, blue (0 to 255) and opacity (0 to 1), along a new last axis."""
    rgba = np.zeros((*opacities.shape, 4))
    for opacity, colour in OPACITY_RGB.items():
        rgba[opacities == opacity] = (*colour, OPACITY_OPAQUE)
    return rgba

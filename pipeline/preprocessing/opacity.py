"""Defines dense lung: the bands of HU that count as ground glass and as consolidation. It imports no other library.

Densities of lung in Covid-19 pneumonia: well aerated from -950 to -700 HU (Colombi et al., Radiology 2020; 296:E86,
https://doi.org/10.1148/radiol.2020201433); -300 HU separates ground glass and consolidation best (Quantitative CT for
detecting COVID-19 pneumonia, BMC Infect Dis 2021; 21:836, https://doi.org/10.1186/s12879-021-06556-z).
"""

from enum import IntEnum

GROUND_GLASS_HU = (-700.0, -300.0)
CONSOLIDATION_HU = (-300.0, 100.0)  # above: calcium, contrast in vessels
# Share of the lungs between -600 and -250 HU, vessels included, in 696 healthy people who never smoked: median, lowest,
# highest. Easthausen et al., Respirology 2020; 25:855-862, https://doi.org/10.1111/resp.13783.
HEALTHY_DENSE = (0.043, 0.027, 0.178)


class Opacity(IntEnum):
    """What a voxel of a lung is counted as."""

    NONE = 0
    GROUND_GLASS = 1
    CONSOLIDATION = 2

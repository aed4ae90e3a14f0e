"""Whether hospitals differ in their AUROC by more than chance, from the intervals and class sizes that they released.

Cochran's Q, with variances that do not depend on each hospital's own AUROC (`hospital_areas`). False alarms and power
are measured in benchmarks/results/coverage.md.
"""

from scipy.stats import chi2

from federation.comparison.hospital_areas import HospitalAreas


def chance_of_difference(areas: HospitalAreas) -> float:
    """Return how likely hospitals with the same AUROC differ as much; 1 with fewer than two."""
    return float(chi2.sf(areas.combined().q, len(areas) - 1)) if len(areas) > 1 else 1.0

"""A site's cohort as a map-style dataset of torch, for data loaders and other training code.

The training of a study reads whole batches instead (`pipeline.cohort.dataset.Examples`), which takes less time.
"""

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.cohort.dataset import Examples
from pipeline.cohort.store import Cohort
from pipeline.site.folder import Site, Split


class CohortDataset(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """The patients of one or more splits of a site's cohort, as a torch dataset.

    Item `i` is a tuple of three float32 tensors: the scan, shape (2, slices, rows, columns), lung window scaled to -1
    to 1 and lung mask; the tabular data, shape (4,), as `models.network.tabular` makes them of age and sex; the
    targets, shape (2,), `pcr_positive` and `severe` as 0, 1 or NaN where missing. Patients are in the order of their
    pseudonyms. A scan is read from its file when its item is asked for.

    Parameters
    ----------
    site : Site
        The site, with a cohort (see `ingest`).
    *splits : {"train", "validation", "test"}
        The splits whose patients are in the dataset.

    Raises
    ------
    Refusal
        E_COHORT_FILE where there is no cohort, or one of another version.
    """

    def __init__(self, site: Site, *splits: Split) -> None:
        with Cohort.read(site) as cohort:
            self.examples = Examples(cohort.examples(*splits))

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        scan, tabular, target = self.examples.batch(np.array([index]), None)
        return scan[0], tabular[0], target[0]

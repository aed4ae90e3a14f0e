"""The short form of learning.py, for `make bench`: hospitals of 60 patients on coarse grids, three seeds.

Three seeds show a change for the worse only if it is large; learning.py has the table to quote.
"""

from pathlib import Path

import learning
from common import Part


def measure(folder: Path) -> Part:
    return learning.measure(folder, is_short=True)

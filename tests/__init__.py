"""Tests. Libraries compute with one thread here, also in the processes that tests start.

On small arrays several threads mostly wait for each other: on two busy cores a logistic regression takes three times
the processor time. The setting is here because numpy's and scipy's libraries read it once, when they are imported.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

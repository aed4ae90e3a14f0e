"""Memory between steps of training, or between scans: kept, not handed back."""

import ctypes

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # mallopt(3)
_BYTES = 2**30


def keep_memory() -> None:
    """Let glibc keep what a step frees, for the rest of this process.

    It hands large pieces back to the kernel, and the next step faults them in again: in the short processes of a
    round that cost a tenth of the training (docs/learning.md). Other C libraries have no such setting and need none.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _BYTES)
        mallopt(_TRIM_THRESHOLD, _BYTES)

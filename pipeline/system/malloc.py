"""Keeps freed memory in the process between training steps or scans."""

import ctypes

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # mallopt(3)
_BYTES = 2**30


def keep_memory() -> None:
    """Make glibc keep freed memory for the rest of this process.

    By default glibc returns large blocks to the kernel, and the next step causes page faults for them again. In the
    short processes of a round this took a tenth of the training time (docs/learning.md). Other C libraries have no such
    setting and need none.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _BYTES)
        mallopt(_TRIM_THRESHOLD, _BYTES)

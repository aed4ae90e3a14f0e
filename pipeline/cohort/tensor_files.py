"""Files of the cohort that hold one tensor each: prepared scans, and features of encoders.

A disk may damage them, and none is the only copy of anything. What cannot be read is refused with a code, and the next
ingest, or `node encode`, makes it again. A changed number inside a whole file is not noticed.

NumPy is imported where it is used, because a node imports this module at its start and then runs for months.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.refusal import Refusal
from pipeline.cohort.reasons import COHORT_FILE
from pipeline.system.atomic_files import replacing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def save_tensor(folder: Path, name: str, tensor: "NDArray[np.float16]") -> None:
    """Write a tensor atomically: the file is either complete or absent."""
    import numpy as np

    with replacing(folder / name, flush=True) as file:
        np.save(file, tensor)


def save_scan(tensors: Path, name: str, tensor: "NDArray[np.float16]") -> None:
    """Write a prepared scan as `save_tensor`, and delete the features that encoders made of its tensor before.

    Nothing is done if the file holds this tensor already, as after an examination by another version.
    They are deleted first: a process that is killed between the two leaves a scan without features, which the next
    `node encode` computes, and never one with the features of another tensor.
    """
    if _holds(tensors / name, tensor):
        return
    for features in tensors.parent.glob(f"encoded/*/{name}"):
        features.unlink(missing_ok=True)
    save_tensor(tensors, name, tensor)


def _holds(path: Path, tensor: "NDArray[np.float16]") -> bool:
    try:
        before = load_tensor(path)
    except Refusal:
        return False
    return (before.shape, before.dtype, before.tobytes()) == (tensor.shape, tensor.dtype, tensor.tobytes())


def load_tensor(path: Path) -> "NDArray[Any]":
    """Read a tensor. Raises Refusal E_COHORT_FILE if its file is missing, or is not exactly one whole tensor."""
    import numpy as np

    try:
        with path.open("rb") as file:
            tensor: NDArray[Any] = np.lib.format.read_array(file)  # np.load would also open archives
            if file.read(1):
                raise ValueError("there is more than its header tells")
    except Exception as error:  # NumPy's reader of headers raises many kinds on damaged ones
        raise Refusal(COHORT_FILE, private=f"{path.name}: {error}") from error
    return tensor


def is_whole(path: Path) -> bool:
    """Whether a tensor's file exists and has the length that its header tells; the numbers are not read."""
    import numpy as np

    try:
        tensor = np.lib.format.open_memmap(path, mode="r")
        return bool(tensor.offset + tensor.nbytes == path.stat().st_size)
    except Exception:  # as in `load_tensor`
        return False

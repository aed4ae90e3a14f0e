"""A mask of the lungs that a reader corrected by hand: it is checked, measured, and kept beside the model's own.

The reader changes labels of the working grid (`lung_labels`): which voxels are lung, and which may count as dense. The
density of a voxel is the scan's and cannot be changed. A mask is kept in the answer's folder, one folder for each
decision, so it is removed with the answer.

CLINIC/answers/ANSWER_ID/masks/DECISION_ID/    labels, lungs and dense voxels, as in the answer's folder
"""

import base64
import binascii
import hashlib
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.refusal import Refusal
from pipeline.clinic.pictures import LABELS, LUNGS, OPACITIES, read_volume, save_volume
from pipeline.clinic.reasons import CORRECTED_MASK, MASK_NOT_KEPT
from pipeline.clinic.records import Answer
from pipeline.preprocessing.lung_labels import DENSITY_BITS, KNOWN, count, measure, sides_of
from pipeline.system.atomic_files import move_durably

MASKS = "masks"
MOST_CHARACTERS = 60_000  # of `changes`; a request has at most 64 KiB


@dataclass(frozen=True)
class CorrectedMask:
    """A checked mask. `labels`: uint8, shape (slices, rows, columns); `affine`: of these axes, to millimetres in RAS.

    `changed`: number of voxels that differ from the model's mask. `voxel_ml`: volume of a voxel in the model's table.
    """

    labels: NDArray[np.uint8]
    affine: NDArray[np.float64]
    changed: int
    voxel_ml: float

    def summary(self) -> dict[str, Any]:
        """Return what a decision stores: SHA-256 of the labels, changed voxels, and the table (as in a score)."""
        opacities, measured = count(self.labels)
        table = measure(self.labels, opacities, measured, self.voxel_ml)
        return {
            "sha256": hashlib.sha256(np.ascontiguousarray(self.labels).data).hexdigest(),
            "changed": self.changed,
            "regions": {side: {part: asdict(each) for part, each in parts.items()} for side, parts in table.items()},
        }

    def keep(self, folder: Path) -> None:
        """Write the volumes into the new folder, all or none. Raises OSError if the disk is full."""
        incoming = folder.with_name(f"{folder.name}.new")
        shutil.rmtree(incoming, ignore_errors=True)
        incoming.mkdir(mode=0o700, parents=True)
        save_volume(self.labels, self.affine, incoming / LABELS)
        save_volume((sides_of(self.labels) > 0).astype(np.uint8), self.affine, incoming / LUNGS)
        save_volume(count(self.labels)[0], self.affine, incoming / OPACITIES)
        move_durably(incoming, folder)


def read_corrected(answer: Answer, shape: Sequence[int], changes: str) -> CorrectedMask:
    """Read a mask as the API takes it, and check it against the model's own.

    Parameters
    ----------
    answer : Answer
        With the model's mask in its folder.
    shape : sequence of int
        Slices, rows and columns of the grid that the reader saw.
    changes : str
        Base64 of a zlib stream with one byte for each voxel: the corrected label XOR the model's; 0 if unchanged.

    Raises
    ------
    Refusal
        E_MASK_NOT_KEPT if an earlier version wrote the answer; E_CORRECTED_MASK if the mask is malformed, has another
        shape, an unknown label or no lung.
    """
    voxel_ml = (answer.score.get("lungs") or {}).get("voxel_ml")
    if voxel_ml is None or not (answer.folder / LABELS).is_file():
        raise Refusal(MASK_NOT_KEPT)
    stored, affine = read_volume(answer.folder / LABELS)
    before = stored.transpose(2, 1, 0)
    if tuple(shape) != before.shape:
        raise Refusal(CORRECTED_MASK, problems="its shape is not that of the answer's mask")
    change = np.frombuffer(_unpacked(changes, before.size), np.uint8).reshape(before.shape)
    labels = before ^ change
    if change.max(initial=0) & DENSITY_BITS or not set(np.unique(labels & ~np.uint8(DENSITY_BITS)).tolist()) <= KNOWN:
        raise Refusal(CORRECTED_MASK, problems="it has an unknown label")
    if not sides_of(labels).any():
        raise Refusal(CORRECTED_MASK, problems="it has no lung; if the mask is not usable, say so instead")
    return CorrectedMask(labels, affine[:, [2, 1, 0, 3]], int(np.count_nonzero(change)), voxel_ml)


def folder_of_mask(answer: Answer, decision_id: str) -> Path:
    """Return the folder of a decision's mask, whether it exists or not."""
    return answer.folder / MASKS / decision_id


def reader_masks(answer: Answer) -> Path | None:
    """Return the folder of the mask that the newest decision corrected by hand; None if it corrects none.

    Raises Refusal E_CORRECTED_MASK if its files are not those of the decision.
    """
    decision = answer.decision
    if decision is None or decision.correction.mask is None:
        return None
    folder = folder_of_mask(answer, decision.id)
    try:
        labels = read_volume(folder / LABELS)[0].transpose(2, 1, 0)
    except Refusal:
        raise Refusal(CORRECTED_MASK, problems="its files are missing") from None
    if hashlib.sha256(np.ascontiguousarray(labels).data).hexdigest() != decision.correction.mask["sha256"]:
        raise Refusal(CORRECTED_MASK, problems="its files are not those of the decision")
    return folder


def _unpacked(changes: str, size: int) -> bytes:
    """Return `size` bytes. A longer stream is refused before it is unpacked: it could fill the memory."""
    wrong = Refusal(CORRECTED_MASK, problems="it is not one zlib stream in Base64 with one byte for each voxel")
    try:
        packed = base64.b64decode(changes, validate=True)
        unpacker = zlib.decompressobj()
        content = unpacker.decompress(packed, size + 1)
    except (binascii.Error, ValueError, zlib.error):
        raise wrong from None
    if len(content) != size or not unpacker.eof or unpacker.unused_data:
        raise wrong
    return content

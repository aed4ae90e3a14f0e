"""Store the valid replies of a round on disk until all have arrived.

Whether a reply counts is known only when the others have arrived, and a number cannot be removed again from a sum.
So each reply is written to a file as it arrives, and read piece by piece when the round is summed. The server's
memory does not grow with the number of sites.
"""

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import safetensors.numpy
from flwr.app import Message
from numpy.typing import NDArray

from federation.protocol.batch_norm import is_counter
from federation.protocol.reply_validation import decode, figures, update_norm

_PREFIX = "replies-"
TEMPORARY = ".tmp"  # suffix of a reply's file; a study that is moved leaves such files behind


@dataclass(frozen=True)
class Filed:
    """A site's reply: its arrays in a file (safetensors, each flattened), the rest here.

    `norms`: lengths of its updates, by record. `order`: SHA-256 of its arrays, and its figures to order equal ones.
    `scales`: the factor of a clipped update, by record. It is applied when the file is read, because the limit is known
    only when all replies have arrived.
    """

    file: Path
    figures: Mapping[str, float]
    norms: Mapping[str, float]
    order: tuple[bytes, str]
    scales: Mapping[str, float] = field(default_factory=dict)

    def arrays(self, record: str, origin: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """Return its arrays of a record, clipped towards the model that was sent out."""
        return {
            name: self.clipped(record, name, array.reshape(-1)).reshape(array.shape) for name, array in origin.items()
        }

    def clipped(self, record: str, name: str, origin: NDArray, part: slice = slice(None)) -> NDArray:
        """Return a flattened array, or a part of it, clipped. `origin`: the same part of the model that was sent."""
        row = self.row(record, name, part)
        scale = self.scales.get(record, 1.0)
        if scale == 1.0 or is_counter(name):
            return row
        clipped = origin + scale * (row.astype(np.float64) - origin)
        return np.asarray(clipped, row.dtype)

    def row(self, record: str, name: str, part: slice = slice(None)) -> NDArray:
        """Return an array, flattened, or a part of it, as received."""
        with safetensors.safe_open(self.file, "numpy") as file:
            row: NDArray = file.get_slice(f"{record}/{name}")[part]
        return row


@contextmanager
def spool(folder: Path | None) -> Iterator[Path]:
    """Create an empty folder for a round's replies, in `folder` or in the system's temporary folder.

    It is removed at the end. First, folders that a killed process left in `folder` are removed.
    """
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob(f"{_PREFIX}*"):
            shutil.rmtree(stale)
    with TemporaryDirectory(dir=folder, prefix=_PREFIX) as made:
        yield Path(made)


def file_reply(reply: Message, file: Path, current: Mapping[str, Mapping[str, NDArray]]) -> Filed:
    """Write a valid reply to disk. `current`: the model's arrays by record. Raises OSError (disk full)."""
    records = reply.content.array_records
    arrays = {record: decode(records[record]) if group else {} for record, group in current.items()}
    rows = {f"{record}/{name}": array.reshape(-1) for record, group in arrays.items() for name, array in group.items()}
    file.write_bytes(safetensors.numpy.save(rows))
    norms = {record: update_norm(group, current[record]) for record, group in arrays.items()}
    return Filed(file, figures(reply), norms, _order(reply))


def _order(reply: Message) -> tuple[bytes, str]:
    digest = hashlib.sha256()
    for _, record in sorted(reply.content.array_records.items()):
        for name in sorted(record):
            digest.update(name.encode() + record[name].data)
    return digest.digest(), repr(sorted(figures(reply).items()))

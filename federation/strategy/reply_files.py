"""The valid replies of a round, on disk until all are there.

Whether a reply counts is known when the others have come, and a number that was added to a sum cannot be taken out of
it again. So each reply is written down as it arrives, and read piece by piece when the round is summed: the server's
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
TEMPORARY = ".tmp"  # how a reply's file ends: no single site's weights move with a study that was killed in a round


@dataclass(frozen=True)
class Filed:
    """A site's reply: its arrays in a file (safetensors, each as one row), the rest here.

    `norms`: lengths of its updates, by record. `order`: SHA-256 of its arrays; and its figures, to tell equals apart.
    `scales`: what part of an update counts, by record, where it is clipped; it is so when it is read, for the bound is
    known when all replies have come.
    """

    file: Path
    figures: Mapping[str, float]
    norms: Mapping[str, float]
    order: tuple[bytes, str]
    scales: Mapping[str, float] = field(default_factory=dict)

    def arrays(self, record: str, origin: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """Its arrays of a record, clipped towards those of the model that went out."""
        return {
            name: self.clipped(record, name, array.reshape(-1)).reshape(array.shape) for name, array in origin.items()
        }

    def clipped(self, record: str, name: str, origin: NDArray, part: slice = slice(None)) -> NDArray:
        """An array as one row, or a part of that, clipped. `origin`: the same part of the model that went out."""
        row = self.row(record, name, part)
        scale = self.scales.get(record, 1.0)
        if scale == 1.0 or is_counter(name):
            return row
        clipped = origin + scale * (row.astype(np.float64) - origin)
        return np.asarray(clipped, row.dtype)

    def row(self, record: str, name: str, part: slice = slice(None)) -> NDArray:
        """An array as one row, or a part of that, as it came."""
        with safetensors.safe_open(self.file, "numpy") as file:
            row: NDArray = file.get_slice(f"{record}/{name}")[part]
        return row


@contextmanager
def spool(folder: Path | None) -> Iterator[Path]:
    """An empty folder for a round's replies, in `folder` or where the system keeps what is temporary.

    It is removed at the end, and before that what a process that was killed has left in `folder`.
    """
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob(f"{_PREFIX}*"):
            shutil.rmtree(stale)
    with TemporaryDirectory(dir=folder, prefix=_PREFIX) as made:
        yield Path(made)


def file_reply(reply: Message, file: Path, current: Mapping[str, Mapping[str, NDArray]]) -> Filed:
    """Write a valid reply down. `current`: the model's arrays by record. Raises OSError (disk full)."""
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

"""The model that a study's seed gives, as the gateway knows it: its digest, its tensors, and if asked for its weights.

A model's digest is made of the ids of its chunks, so the gateway knows it before it has fetched the model. The process
that works out a study's schema builds the network once more and computes the same ids. Used there, where torch is.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE as CHUNK_BYTES
from numpy.typing import NDArray

from federation.gateway.flower_objects import ArrayHead, object_id

MODEL_RECORDS = ("arrays", "buffers")
Heads = Mapping[str, Mapping[str, ArrayHead]]
Records = Mapping[str, Mapping[str, NDArray]]


def model_digest(heads: Heads) -> str:
    """The SHA-256 over the names and the chunks of a model's arrays; `heads` by record and name."""
    chunks = {
        record: {name: head.chunks for name, head in heads[record].items()}
        for record in MODEL_RECORDS
        if heads.get(record)
    }
    return hashlib.sha256(json.dumps(chunks, sort_keys=True).encode()).hexdigest()


def chunks_of(array: NDArray) -> Iterator[bytes]:
    """The chunks of an array as Flower makes them: in numpy's file format, cut into pieces."""
    file = BytesIO()
    np.save(file, array, allow_pickle=False)
    data = file.getvalue()
    for start in range(0, len(data), CHUNK_BYTES):
        part = data[start : start + CHUNK_BYTES]
        yield f"ArrayChunk  {len(part)}".encode() + b"\x00" + part


def write_chunks(first: Records, folder: Path | None = None) -> Heads:
    """The heads of a model's arrays; its chunks are written into `folder`, each under its id, if one is given."""
    heads: dict[str, dict[str, ArrayHead]] = {}
    for record, group in first.items():
        for name, array in group.items():
            ids = []
            for chunk in chunks_of(array):
                ids.append(object_id(chunk))
                if folder is not None:
                    (folder / ids[-1]).write_bytes(chunk)
            heads.setdefault(record, {})[name] = ArrayHead(str(array.dtype), array.shape, tuple(ids))
    return heads


def told(heads: Heads) -> dict[str, dict[str, list[Any]]]:
    """Heads as JSON holds them; `heads_of` is the reverse."""
    return {r: {n: [h.dtype, list(h.shape), list(h.chunks)] for n, h in group.items()} for r, group in heads.items()}


def heads_of(content: Mapping[str, Mapping[str, Sequence[Any]]]) -> Heads:
    """The reverse of `told`."""
    return {
        record: {name: ArrayHead(dtype, tuple(shape), tuple(chunks)) for name, (dtype, shape, chunks) in group.items()}
        for record, group in content.items()
    }

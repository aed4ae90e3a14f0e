"""The first model of a study, which its seed determines: its digest, its arrays and, on demand, its weights.

A model's digest is computed from the ids of its chunks, so the gateway knows it before it fetches the model. The
process that computes a study's schema, where torch is loaded, also builds the network and computes the same ids.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from federation.flower.chunks import CHUNK_BYTES
from federation.gateway.flower_objects import ArrayHead, object_id

MODEL_RECORDS = ("arrays", "buffers")
Heads = Mapping[str, Mapping[str, ArrayHead]]
Records = Mapping[str, Mapping[str, NDArray]]


def model_digest(heads: Heads) -> str:
    """Return the SHA-256 over the names and chunk ids of a model's arrays; `heads` by record and name."""
    chunks = {
        record: {name: head.chunks for name, head in heads[record].items()}
        for record in MODEL_RECORDS
        if heads.get(record)
    }
    return hashlib.sha256(json.dumps(chunks, sort_keys=True).encode()).hexdigest()


def chunks_of(array: NDArray) -> Iterator[bytes]:
    """Yield an array's chunks as Flower makes them: numpy's file format, cut into pieces."""
    file = BytesIO()
    np.save(file, array, allow_pickle=False)
    data = file.getvalue()
    for start in range(0, len(data), CHUNK_BYTES):
        part = data[start : start + CHUNK_BYTES]
        yield f"ArrayChunk  {len(part)}".encode() + b"\x00" + part


def write_chunks(first: Records, folder: Path | None = None) -> Heads:
    """Return the heads of a model's arrays. If `folder` is given, write each chunk there under its id."""
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


def heads_as_json(heads: Heads) -> dict[str, dict[str, list[Any]]]:
    """Convert heads to JSON values; `heads_of` is the inverse."""
    return {r: {n: [h.dtype, list(h.shape), list(h.chunks)] for n, h in group.items()} for r, group in heads.items()}


def heads_of(content: Mapping[str, Mapping[str, Sequence[Any]]]) -> Heads:
    """Convert JSON values back to heads; the inverse of `heads_as_json`."""
    return {
        record: {name: ArrayHead(dtype, tuple(shape), tuple(chunks)) for name, (dtype, shape, chunks) in group.items()}
        for record, group in content.items()
    }

"""What a study's messages must look like: the arrays of its model and of its audit, how long it trains.

Only torch can tell the arrays of a network, and torch would take several times the memory that the gateway may have.
So a process of its own reads the study on its standard input and answers in JSON, once for each study:

    python -m federation.gateway.schema
"""

import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from io import BytesIO
from pathlib import Path

import numpy as np
from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE as CHUNK_BYTES

from federation import reasons
from federation.allowed import LOOKS, MAX_PROBED, Kind
from federation.gateway.objects import ArrayHead
from federation.rounds.wire import HALF, UPDATE
from models.refusal import Refusal
from pipeline.privacy_budget import PrivateRound

TRAINING: tuple[Kind, ...] = ("train", "train.head")  # what a reply to these brings is a model
MAX_STUDY_BYTES = 64 * 1024
_SECONDS = 300.0  # torch's first import from a slow disk takes its time


@dataclass(frozen=True)
class ArraySpec:
    """A one-dimensional array, as it travels: in numpy's file format, cut into chunks."""

    dtype: str
    length: int

    @cached_property
    def header(self) -> bytes:
        """What numpy writes before the data (numpy.lib.format, version 1.0)."""
        file = BytesIO()
        descr = np.lib.format.dtype_to_descr(np.dtype(self.dtype))
        about = {"descr": descr, "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(file, about)
        return file.getvalue()

    @property
    def size(self) -> int:
        """In bytes, with the header."""
        return len(self.header) + self.length * np.dtype(self.dtype).itemsize

    def chunk_bytes(self) -> Iterator[int]:
        """The length of each chunk in turn, as Flower cuts them."""
        for start in range(0, self.size, CHUNK_BYTES):
            yield min(CHUNK_BYTES, self.size - start)

    def fits(self, head: ArrayHead) -> bool:
        """Whether the head is that of such an array."""
        about = (head.dtype, head.shape, len(head.chunks))
        return about == (self.dtype, (self.length,), math.ceil(self.size / CHUNK_BYTES))


Specs = Mapping[str, ArraySpec]


def _moments(length: int) -> Specs:
    """Mean and variance of each of so many numbers."""
    return {name: ArraySpec("float32", length) for name in ("mean", "variance")}


@dataclass(frozen=True)
class Schema:
    """What the gateway needs to know of a study. `buffers` may be empty.

    `local_steps`: of a round, where it is counted in steps; else 0. `private_round`: what a round costs of the site's
    privacy budget; None where the study has no [privacy]. `features`: how many numbers the network makes of a scan.
    `head_from`: from where on in the packed weights the head's lie; it is their end.
    """

    arrays: Specs
    buffers: Specs
    rounds: int
    local_epochs: int
    local_steps: int
    batch_size: int
    private_round: PrivateRound | None
    features: int
    head_from: int

    @property
    def model(self) -> dict[str, Specs]:
        """The records of a model's arrays by name; without buffers there may be an empty record of them."""
        return {"arrays": self.arrays, "buffers": self.buffers}

    @property
    def is_half(self) -> bool:
        """Whether weights travel in half precision: a reply then brings what changed in them (see `rounds.wire`)."""
        return all(spec.dtype == HALF for spec in self.arrays.values())

    def reply_name(self, name: str) -> str:
        """Under which name a reply to training brings what belongs to an array of weights."""
        return UPDATE + name if self.is_half else name

    def takes(self, kind: Kind) -> dict[str, Specs]:
        """The records of arrays that come in with a message of that kind."""
        if kind == "query.handshake":
            return {}
        if kind == "evaluate.calibrate":
            return {**self.model, "typical": _moments(LOOKS)}
        if kind != "evaluate.assign":
            return self.model
        # A linear discriminant for each site, with its constant; of as many sites as there can be.
        return {**self.model, "probe": {"discriminants": ArraySpec("float32", MAX_PROBED * (self.features + 1))}}

    def gives(self, kind: Kind) -> dict[str, Specs]:
        """The records of arrays that a reply to it brings."""
        if kind in TRAINING:
            return {**self.model, "arrays": {self.reply_name(name): spec for name, spec in self.arrays.items()}}
        if kind != "evaluate.embed":
            return {}
        return {"moments": _moments(self.features), "looks": _moments(LOOKS)}

    def reply_bytes(self, kind: Kind) -> int:
        """The size of all arrays of such a reply together."""
        return sum(spec.size for specs in self.gives(kind).values() for spec in specs.values())

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> "Schema":
        content = json.loads(text)
        specs = {
            kind: {name: ArraySpec(**spec) for name, spec in content[kind].items()} for kind in ("arrays", "buffers")
        }
        private = content["private_round"] and PrivateRound(**content["private_round"])
        return cls(**{**content, **specs, "private_round": private})


def schema_of(study: str, folder: Path) -> Schema:
    """The schema of a study, given as JSON; kept in `folder`, so that each is worked out once.

    Raises Refusal E_RUN_CONFIG if it is not a study of this release.
    """
    release = version("fedthorax")
    kept = folder / f"{hashlib.sha256(f'{release}|{study}'.encode()).hexdigest()}.json"
    if kept.is_file():
        return Schema.from_json(kept.read_bytes())
    if len(study.encode()) > MAX_STUDY_BYTES:
        raise Refusal(reasons.RUN_CONFIG, private="the study is too long")
    # The one thread that it needs; a thread for each core would only cost time.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "federation.gateway.schema"],
            input=study.encode(),
            capture_output=True,
            timeout=_SECONDS,
            env=environment,
            check=True,
        )
        schema = Schema.from_json(done.stdout)
    except subprocess.CalledProcessError as error:
        raise Refusal(reasons.RUN_CONFIG, private=error.stderr.decode(errors="replace")[-2000:]) from error
    folder.mkdir(parents=True, exist_ok=True)
    temporary = kept.with_suffix(f".{os.getpid()}")
    temporary.write_text(schema.to_json())
    temporary.replace(kept)
    return schema


def work_out(study_json: bytes) -> Schema:
    """The schema of a study, from its network itself. Raises pydantic's ValidationError."""
    from federation.rounds.packing import WEIGHTS, pack
    from federation.rounds.wire import rounded
    from federation.study import Study
    from models.network import build_network

    study = Study.model_validate_json(study_json)
    network = build_network(study.network, seed=study.study.seed)
    weights, packed_buffers = pack(network)
    arrays, buffers = (
        {name: ArraySpec(str(array.dtype), array.size) for name, array in sorted(group.items())}
        for group in (rounded(weights, study.wire.precision), packed_buffers)
    )
    return Schema(
        arrays=arrays,
        buffers=buffers,
        rounds=study.study.rounds,
        local_epochs=study.epochs_a_round,
        local_steps=study.study.local_steps,
        batch_size=study.training.batch_size,
        private_round=study.private_round,
        features=network.features,
        head_from=weights[WEIGHTS].size - sum(weight.numel() for weight in network.head.parameters()),
    )


if __name__ == "__main__":
    sys.stdout.write(work_out(sys.stdin.buffer.read()).to_json())

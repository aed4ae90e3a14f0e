"""The schema of a study: the arrays of its messages, and how long it trains.

Only torch can determine the arrays of a network, and torch takes several times the memory that the gateway may use.
Once per study, a separate process reads the study from its standard input and writes the schema as JSON. It runs no
code of a package: of a network of one's own, the plan that the hospital approved states the arrays.

    python -m federation.gateway.schema RELEASES [FOLDER]

RELEASES: folder of the releases that a study may start from. FOLDER: where to write the chunks of the first model.
"""

import gc
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from federation.approval import reasons as approval_reasons
from federation.flower.chunks import CHUNK_BYTES
from federation.gateway import first_model
from federation.gateway.flower_objects import ArrayHead, Arrays
from federation.protocol import reasons as protocol_reasons
from federation.protocol import tensor_bounds
from federation.protocol.half_precision import HALF, UPDATE
from federation.protocol.metric_allowlist import APPEARANCE_SIZE, HANDSHAKE, MAX_PROBED, Kind
from federation.protocol.package_files import PACKAGES
from federation.protocol.release_files import ENCODERS
from federation.protocol.summed_answers import SUMMED
from models.refusal import Refusal
from pipeline.system.atomic_files import write_durably
from pipeline.training.privacy_budget import PrivateRound

if TYPE_CHECKING:
    from federation.protocol.study_config import Study
    from models.network import SeverityNetwork

TRAINING: tuple[Kind, ...] = ("train", "train.head")  # the replies to these kinds hold a model
MAX_STUDY_BYTES = 64 * 1024
KEPT_SCHEMAS = 32
_UNLIKE = 3  # the exit status if a release does not fit the study that starts from it
_FORMAT = 6  # of a stored schema; older ones lack `audits`, so each study would seem to have no shortcut audit
_SECONDS = 300.0  # importing torch from a slow disk for the first time takes long


@dataclass(frozen=True)
class ArraySpec:
    """A one-dimensional array in a message: numpy's file format, cut into chunks."""

    dtype: str
    length: int

    @cached_property
    def header(self) -> bytes:
        """The bytes that numpy writes before the data (numpy.lib.format, version 1.0)."""
        file = BytesIO()
        descr = np.lib.format.dtype_to_descr(np.dtype(self.dtype))
        about = {"descr": descr, "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(file, about)
        return file.getvalue()

    @property
    def size(self) -> int:
        """In bytes, including the header."""
        return len(self.header) + self.length * np.dtype(self.dtype).itemsize

    def chunk_bytes(self) -> Iterator[int]:
        """Yield the length of each chunk, as Flower cuts them."""
        for start in range(0, self.size, CHUNK_BYTES):
            yield min(CHUNK_BYTES, self.size - start)

    def fits(self, head: ArrayHead) -> bool:
        """Tell whether the head describes such an array."""
        about = (head.dtype, head.shape, len(head.chunks))
        return about == (self.dtype, (self.length,), math.ceil(self.size / CHUNK_BYTES))


Specs = Mapping[str, ArraySpec]


def _moments(length: int) -> Specs:
    """Return the arrays that hold the mean and variance of each of `length` numbers."""
    return {name: ArraySpec("float32", length) for name in ("mean", "variance")}


@dataclass(frozen=True)
class Schema:
    """What the gateway needs to know about a study. `buffers` may be empty.

    `local_steps`: steps of a round if the study counts in steps; else 0. `private_round`: what a round costs of the
    site's privacy budget; None if the study has no [privacy]. `features`: numbers that the network computes per scan.
    `head_from`: index in the packed weights where the head's weights begin; they extend to the end.

    `augment`: whether training changes each scan at random. `draws_sites`: whether a round asks only some of the sites.
    `questions`: how many questions of each kind a run may ask a site. `first`: the heads of the weights and buffers
    that the study starts from (`first_model.heads_as_json`). `parts`: the tensors in each packed array
    (`tensor_bounds.Part`). `reaches`: filters and channels that must stay near the first model's
    (`tensor_bounds.Reach`).

    `server_step`: how far the server's own optimiser may move each weight in a round, besides the sites' updates.
    `server_factor`: how much it may lengthen the sites' updates. `is_robust`: whether medians pool the calibrations.
    `secure`: whether updates are masked. `groups`: over how many groups of sites they are summed; 0: one.
    `summed_answers`: whether figures of rounds and answers to questions leave only as part of a sum.
    `pretrains`: whether the network learns measures of scans, of patients without labels too. `audits`: whether a test
    may ask for the figures of the shortcut audit.
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
    name: str = ""
    augment: bool = True
    draws_sites: bool = False
    questions: Mapping[str, int] = field(default_factory=dict)
    first: Mapping[str, Mapping[str, Sequence[Any]]] = field(default_factory=dict)
    parts: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)
    reaches: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)
    server_step: float = 0.0
    server_factor: float = 1.0
    is_robust: bool = False
    secure: bool = False
    summed_answers: bool = False
    groups: int = 0
    pretrains: bool = False
    audits: bool = False

    @property
    def summed(self) -> bool:
        """Whether figures and answers leave only as part of a sum, with the updates or without them."""
        return self.secure or self.summed_answers

    def masks(self, kind: Kind) -> bool:
        """Whether a reply of this kind leaves only as part of a sum, besides ε."""
        return kind != HANDSHAKE and (self.secure or (self.summed and kind in SUMMED))

    @cached_property
    def first_model(self) -> str:
        """The digest of the model that the study starts from."""
        return first_model.model_digest(first_model.heads_of(self.first))

    @property
    def model(self) -> dict[str, Specs]:
        """The records of a model's arrays, by name; the record of buffers may be empty."""
        return {"arrays": self.arrays, "buffers": self.buffers}

    def fixed(self, name: str) -> list[tuple[int, int]]:
        """Return the ranges (start, end) of a packed array that training does not change."""
        parts = self.parts.get(name, ())
        return tensor_bounds.fixed_ranges(parts, self.arrays[name].length) if parts else []

    @property
    def is_half(self) -> bool:
        """Whether weights are sent in half precision; a reply then holds their changes (see `half_precision`)."""
        return all(spec.dtype == HALF for spec in self.arrays.values())

    def reply_name(self, name: str) -> str:
        """Return the name under which a reply to a training task holds an array of weights."""
        return UPDATE + name if self.is_half else name

    def takes(self, kind: Kind) -> dict[str, Specs]:
        """Return the records of arrays in a task of this kind."""
        if kind == "query.handshake":
            return {}
        if kind == "evaluate.calibrate":
            return {**self.model, "typical": _moments(APPEARANCE_SIZE)}
        if kind != "evaluate.assign":
            return self.model
        # One linear discriminant with its constant per site, for the maximum number of sites.
        return {**self.model, "probe": {"discriminants": ArraySpec("float32", MAX_PROBED * (self.features + 1))}}

    def gives(self, kind: Kind) -> dict[str, Specs]:
        """Return the records of arrays in a reply of this kind."""
        if kind in TRAINING:
            return {**self.model, "arrays": {self.reply_name(name): spec for name, spec in self.arrays.items()}}
        if kind != "evaluate.embed":
            return {}
        return {"moments": _moments(self.features), "looks": _moments(APPEARANCE_SIZE)}

    def reply_bytes(self, kind: Kind) -> int:
        """Return the total size of all arrays in a reply of this kind, in bytes."""
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
        parts = {name: [tensor_bounds.Part(*part) for part in group] for name, group in content["parts"].items()}
        reaches = {name: [tensor_bounds.Reach(*reach) for reach in group] for name, group in content["reaches"].items()}
        return cls(**{**content, **specs, "private_round": private, "parts": parts, "reaches": reaches})


def schema_of(study: str, folder: Path, releases: Path) -> Schema:
    """Return the schema of a study, given as JSON. It is computed once and kept in `folder`, with the first model.

    `releases`: holds the release that the study starts from, if any. The caller has checked its approval.

    Raises Refusal: E_RUN_CONFIG if it is not a study of this release, E_BEGIN_UNLIKE.
    """
    kept = folder / f"{_key(study)}.json"
    if kept.is_file():
        return Schema.from_json(kept.read_bytes())
    chunks = _chunks(study, folder)
    # The first round needs the model. To compute it again, then, would take another two seconds of processor time.
    chunks.mkdir(parents=True, exist_ok=True)
    try:
        schema = in_a_process(study, str(releases), str(chunks))
    except Refusal:
        shutil.rmtree(chunks, ignore_errors=True)
        raise
    write_durably(kept, schema.to_json().encode())
    _forget_old(folder)
    return schema


def _forget_old(folder: Path) -> None:
    """Keep only the newest schemas, because the server chooses the names and seeds of studies."""
    schemas = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for old in schemas[KEPT_SCHEMAS:]:
        old.unlink(missing_ok=True)
    kept = {path.stem for path in schemas[:KEPT_SCHEMAS]}
    for models in folder.glob("*.first"):
        if models.stem not in kept:
            shutil.rmtree(models, ignore_errors=True)


def first_model_of(study: str, folder: Path, releases: Path) -> Arrays:
    """Return the model that a study starts from; its chunks are kept in `folder`. Raises as `schema_of` does."""
    chunks = _chunks(study, folder)
    schema = schema_of(study, folder, releases)
    heads = first_model.heads_of(schema.first)
    wanted = [chunk for group in heads.values() for head in group.values() for chunk in head.chunks]
    if not all((chunks / chunk).is_file() for chunk in wanted):
        chunks.mkdir(parents=True, exist_ok=True)
        in_a_process(study, str(releases), str(chunks))
    return Arrays(heads, lambda chunk: (chunks / chunk).read_bytes())


def _chunks(study: str, folder: Path) -> Path:
    return folder / f"{_key(study)}.first"


def _key(study: str) -> str:
    return hashlib.sha256(f"{version('fedthorax')}|{_FORMAT}|{study}".encode()).hexdigest()


def in_a_process(study: str, *arguments: str) -> Schema:
    """Run this module in a process of its own, with these arguments. Raises Refusal E_RUN_CONFIG, E_BEGIN_UNLIKE."""
    if len(study.encode()) > MAX_STUDY_BYTES:
        raise Refusal(approval_reasons.RUN_CONFIG, private="the study is too long")
    # One thread is enough; one per core would only cost time.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "federation.gateway.schema", *arguments],
            input=study.encode(),
            capture_output=True,
            timeout=_SECONDS,
            env=environment,
            check=True,
        )
        return Schema.from_json(done.stdout)
    except subprocess.CalledProcessError as error:
        if error.returncode == _UNLIKE:
            raise Refusal(
                protocol_reasons.BEGIN_UNLIKE, private=error.stderr.decode(errors="replace")[-2000:]
            ) from error
        raise Refusal(approval_reasons.RUN_CONFIG, private=error.stderr.decode(errors="replace")[-2000:]) from error


def work_out(study_json: bytes, releases: Path = Path(), folder: Path | None = None) -> Schema:
    """Compute the schema of a study from its network; write the chunks of its first model into `folder`.

    Raises pydantic's ValidationError, and Refusal as `use_encoder` and `begin_network` do.
    """
    from federation.gateway.questions import questions_of
    from federation.protocol.first_weights import begin_network, use_encoder
    from federation.protocol.flat_weights import WEIGHTS, pack
    from federation.protocol.half_precision import rounded
    from federation.protocol.study_config import Study
    from federation.protocol.study_packages import allow_plans
    from federation.strategy.flower_strategies import build_strategy, is_robust, server_optimiser

    study = Study.model_validate_json(study_json)
    allow_plans(study.network, releases.parent / PACKAGES)  # all lie in the site's folder
    use_encoder(study, releases.parent / ENCODERS)
    network = begin_network(study, releases)
    weights, packed_buffers = pack(network)
    first = {"arrays": rounded(weights, study.wire.precision), "buffers": packed_buffers}
    arrays, buffers = (
        {name: ArraySpec(str(array.dtype), array.size) for name, array in sorted(first[record].items())}
        for record in ("arrays", "buffers")
    )
    chosen = study.strategy
    optimiser = server_optimiser(chosen.name, chosen.options, code=chosen.code)
    return Schema(
        arrays=arrays,
        buffers=buffers,
        name=study.study.name,
        augment=study.training.augment,
        draws_sites=study.study.sites_per_round > 0,
        questions=questions_of(study),
        first=first_model.heads_as_json(first_model.write_chunks(first, folder)),
        parts=tensor_bounds.parts_of(network, learning_rate=study.training.learning_rate, epochs=study.epochs_a_round),
        reaches={} if study.privacy is not None else _reaches(study, network),
        server_step=optimiser.step,
        server_factor=optimiser.factor,
        secure=study.aggregation.secure,
        summed_answers=study.aggregation.summed_answers,
        groups=study.aggregation.groups,
        pretrains=study.network.pretrains,
        audits=study.audits,
        is_robust=is_robust(build_strategy(chosen.name, chosen.options, code=chosen.code)),
        rounds=study.study.rounds,
        local_epochs=study.epochs_a_round,
        local_steps=study.study.local_steps,
        batch_size=study.training.batch_size,
        private_round=study.private_round,
        features=network.features,
        head_from=weights[WEIGHTS].size - sum(weight.numel() for weight in network.head.parameters()),
    )


def _reaches(study: "Study", network: "SeverityNetwork") -> dict[str, list[tensor_bounds.Reach]]:
    """Return the limits on filters; none for a private study, whose noise moves filters further and limits updates."""
    return tensor_bounds.reaches_of(
        network,
        learning_rate=study.training.learning_rate,
        epochs=study.epochs_a_round,
        rounds=study.study.rounds,
    )


if __name__ == "__main__":
    gc.disable()  # a short process; while it imports torch, collections would take a sixth of its time
    try:
        sys.stdout.write(work_out(sys.stdin.buffer.read(), *map(Path, sys.argv[1:])).to_json())
    except Refusal as refusal:
        sys.stderr.write(f"{refusal} {refusal.private}")
        sys.exit(_UNLIKE)

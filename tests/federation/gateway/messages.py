"""Messages as a node and a server make them, with Flower's own classes, and what spoils them."""

import functools
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import flwr.app.message.array as flower_array
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, no_object_id_recompute

from federation.gateway.objects import read_content
from federation.gateway.outbound import Arrays, Rules
from federation.gateway.patients import Patients
from federation.gateway.schema import ArraySpec, Schema
from federation.reasons import TASK_DAMAGED
from federation.rounds.packing import WEIGHTS

Objects = dict[str, bytes]
Model = dict[str, dict[str, np.ndarray]]  # arrays by record and name
MIN_PATIENTS = 10
TASKS = 500
MEAN, VARIANCE, COUNTER = (f"batch_norm.{kind}" for kind in ("running_mean", "running_var", "num_batches_tracked"))
PATIENTS = Patients(
    of_split={"train": 60, "validation": 20, "test": 30},
    labelled={"train": 55, "validation": 20, "test": 30},
    with_value={
        (split, label, value): 10
        for split in ("train", "validation", "test")
        for label in ("pcr_positive", "severe")
        for value in (False, True)
    },
)


def message(content: RecordDict, **metadata: Any) -> Message:
    """A task or a reply, with its id set."""
    about: dict[str, Any] = {
        "run_id": 7,
        "message_id": "",
        "src_node_id": 42,
        "dst_node_id": 1,
        "reply_to_message_id": "a" * 64,
        "group_id": "",
        "created_at": 1.8e9,
        "ttl": 3600.0,
        "message_type": "train",
    }
    made = make_message(Metadata(**about | metadata), content=content)
    made.metadata.__dict__["_message_id"] = made.object_id
    return made


def objects_of(made: Message) -> Objects:
    """All objects of a message by their ids."""
    return {id: part.deflate() for id, part in get_all_nested_objects(made).items()}


def schema_for(weights: int, channels: int, *, epochs: int = 2) -> Schema:
    """The schema of a model with so many weights, and buffers of so many channels (none if 0)."""
    kinds = {MEAN: "float32", VARIANCE: "float32", COUNTER: "int64"} if channels else {}
    buffers = {name: ArraySpec(dtype, channels) for name, dtype in sorted(kinds.items())}
    return Schema({WEIGHTS: ArraySpec("float32", weights)}, buffers, 3, epochs, 8, None)


def model(schema: Schema, rng: np.random.Generator) -> Model:
    """A model of this schema as it comes in."""
    arrays = {WEIGHTS: rng.standard_normal(schema.arrays[WEIGHTS].length, np.float32)}
    sizes = {name: spec.length for name, spec in schema.buffers.items()}
    if not sizes:
        return {"arrays": arrays, "buffers": {}}
    buffers = {
        MEAN: rng.standard_normal(sizes[MEAN], np.float32),
        VARIANCE: rng.random(sizes[VARIANCE], np.float32),
        COUNTER: rng.integers(0, 1000, sizes[COUNTER]),
    }
    return {"arrays": arrays, "buffers": buffers}


def trained(came_in: Model, rng: np.random.Generator) -> Model:
    """The same model after a round of training."""
    out = {record: {name: array.copy() for name, array in arrays.items()} for record, arrays in came_in.items()}
    weights = out["arrays"][WEIGHTS]
    step = rng.standard_normal(weights.size)
    length = rng.uniform(0, 1.9) * np.linalg.norm(weights)  # the site's bound is 2
    weights += (step * length / np.linalg.norm(step)).astype(np.float32)
    if out["buffers"]:
        out["buffers"][MEAN] *= np.float32(rng.uniform(0, 3))
        out["buffers"][VARIANCE] *= np.float32(rng.uniform(0, 3))
        out["buffers"][COUNTER] += rng.integers(1, 50)
    return out


def figures(kind: str, rng: np.random.Generator) -> dict[str, int | float]:
    """Some of the figures that a reply may bring, and the number of examples."""
    from federation.allowed import EPSILON, EXAMPLES_OF, FIGURES

    table = {name: figure for name, figure in FIGURES[kind].items() if name != EPSILON}  # type: ignore[index]
    names = [name for name in table if rng.random() < 0.7]
    values = {name: float(rng.uniform(table[name].low, table[name].high)) for name in names}
    most = PATIENTS.of_split[EXAMPLES_OF[kind]]  # type: ignore[index]
    return {**values, "num-examples": int(rng.integers(MIN_PATIENTS, most + 1))}


def record_of(arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


@functools.cache
def task(number: int) -> tuple[Schema, Model]:
    """One of the models that come in. To be left as it is: several replies answer it."""
    rng = np.random.default_rng([number, 0])
    schema = schema_for(int(rng.integers(1, 200)), int(rng.integers(0, 20)))
    return schema, model(schema, rng)


@functools.cache
def arrived(number: int, chunk_bytes: int) -> Arrays:
    """The arrays of a task as the gateway has kept them, in chunks of the length that Flower now cuts."""
    records = {name: record_of(arrays) for name, arrays in task(number)[1].items() if arrays}
    made = message(RecordDict(records))
    objects = objects_of(made)
    return Arrays(read_content(made.object_id, objects, TASK_DAMAGED).arrays, objects.__getitem__)


@dataclass
class Case:
    """A reply that is in order, and all that it is judged by; `spoil` changes one thing of it."""

    seed: int
    rng: np.random.Generator
    kind: str
    schema: Schema
    came_in: Model
    out: Model
    metrics: dict[str, Any]
    patients: Patients = PATIENTS
    more: dict[str, Any] = field(default_factory=dict)  # records besides
    without: set[str] = field(default_factory=set)  # records left out
    bytes_of: dict[str, bytes] = field(default_factory=dict)  # of arrays, in place of what numpy writes

    @classmethod
    def random(cls, seed: int) -> "Case":
        schema, came_in = task(seed % TASKS)
        rng = np.random.default_rng(seed)
        kind = "train" if rng.random() < 0.8 else "evaluate"
        out = trained(came_in, rng) if kind == "train" else {}
        return cls(seed, rng, kind, schema, came_in, out, figures(kind, rng))

    def record(self, name: str) -> ArrayRecord:
        record = record_of(self.out[name])
        for key, data in self.bytes_of.items():
            if key in record:
                record[key].data = data
        return record

    def content(self) -> RecordDict:
        arrays = {name: self.record(name) for name in self.out if self.out[name] or name == "arrays"}
        records = {**arrays, "metrics": MetricRecord(self.metrics), **self.more}
        return RecordDict({name: record for name, record in records.items() if name not in self.without})

    def objects(self) -> tuple[str, Objects]:
        """The reply's id and its objects."""
        content = self.content()
        with no_object_id_recompute():  # as Flower's node does it: an object is written once, not at every look
            reply = message(content, message_type=self.kind)
            return reply.object_id, objects_of(reply)

    def rules(self) -> Rules:
        return Rules(
            kind=self.kind,  # type: ignore[arg-type]
            schema=self.schema,
            came_in=arrived(self.seed % TASKS, flower_array.FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE),
            patients=self.patients,
            min_patients=MIN_PATIENTS,
            max_update=2.0,
        )

    @property
    def weights(self) -> np.ndarray:
        return self.out["arrays"][WEIGHTS]


def npy(array: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


# --- what spoils a reply, one thing at a time; those of TRAIN need arrays, those of BUFFERS buffers --------


def _set(array: np.ndarray, value: float, rng: np.random.Generator) -> None:
    array[rng.integers(array.size)] = value


def _swap(case: Case, record: str, name: str, new: np.ndarray) -> None:
    case.out[record][name] = new


def _few(case: Case, name: str) -> None:
    """A figure whose label is known of fewer patients than the site allows."""
    from federation.allowed import FIGURES

    label = FIGURES[case.kind][name].label  # type: ignore[index]
    case.metrics[name] = 0.5
    few = {key: (4 if key[1] == label else count) for key, count in case.patients.with_value.items()}
    case.patients = replace(case.patients, with_value=few)


def _one_class(case: Case) -> None:
    case.metrics["auroc_severe"] = 0.5
    one = {key: (0 if key[1:] == ("severe", True) else 30) for key in case.patients.with_value}
    case.patients = replace(case.patients, with_value=one)


Spoil = Callable[[Case], object]
ANY: dict[str, Spoil] = {
    "a patient's name as a figure's": lambda c: c.metrics.update({"SMITH^JOHN": 1.0}),
    "a figure of the other kind": lambda c: c.metrics.update(
        {"slope_severe" if c.kind == "train" else "train_loss": 1.0}
    ),
    "a row of pixels as a figure": lambda c: c.metrics.update({"loss_severe": [0.1, 0.2, 0.3]}),
    "a list of one": lambda c: c.metrics.update({"num-examples": [20]}),
    "NaN as a figure": lambda c: c.metrics.update({"loss_severe": float("nan")}),
    "infinity as a figure": lambda c: c.metrics.update({"loss_severe": float("inf")}),
    "a figure below its range": lambda c: c.metrics.update({"auroc_severe": -1e-9}),
    "a figure above its range": lambda c: c.metrics.update({"auroc_severe": 1.0 + 1e-9}),
    "an identifier as a figure": lambda c: c.metrics.update({"loss_severe": 19451008.0}),
    "no examples": lambda c: c.metrics.pop("num-examples"),
    "too few examples": lambda c: c.metrics.update({"num-examples": MIN_PATIENTS - 1}),
    "more examples than patients": lambda c: c.metrics.update({"num-examples": 61}),
    "examples below zero": lambda c: c.metrics.update({"num-examples": -20}),
    "examples as a fraction": lambda c: c.metrics.update({"num-examples": 20.0}),
    "the privacy spent, from the app": lambda c: c.metrics.update({"epsilon": 1.0}),
    "a loss over few patients": lambda c: _few(c, "loss_severe"),
    "an AUROC over few patients": lambda c: _few(c, "auroc_pcr_positive"),
    "an AUROC of one class": _one_class,
    "a record of text": lambda c: c.more.update(notes=ConfigRecord({"row": "PCR positive 2020-03-17"})),
    "text in place of figures": lambda c: c.more.update(metrics=ConfigRecord({"num-examples": 20})),
    "a second record of figures": lambda c: c.more.update(more=MetricRecord({"loss_severe": 0.5})),
    "no figures": lambda c: c.without.add("metrics"),
    "an extra record of arrays": lambda c: c.more.update(scan=record_of({"x": np.zeros(8, np.int16)})),
    "the ledger's record, from the app": lambda c: c.more.update(ledger=ConfigRecord({"head": "0" * 64, "lines": 1})),
}
TRAIN: dict[str, Spoil] = {
    "no arrays": lambda c: c.without.add("arrays"),
    "an array more": lambda c: _swap(c, "arrays", "scan", np.zeros(4, np.float32)),
    "an array of another name": lambda c: _swap(c, "arrays", "SMITH", c.out["arrays"].pop(WEIGHTS)),
    "wider numbers": lambda c: _swap(c, "arrays", WEIGHTS, c.weights.astype(np.float64)),
    "whole numbers": lambda c: _swap(c, "arrays", WEIGHTS, c.weights.astype(np.int32)),
    "the other order of bytes": lambda c: _swap(c, "arrays", WEIGHTS, c.weights.astype(">f4")),
    "one value more": lambda c: _swap(c, "arrays", WEIGHTS, np.append(c.weights, np.float32(0))),
    "two dimensions": lambda c: _swap(c, "arrays", WEIGHTS, c.weights[None]),
    "none": lambda c: _swap(c, "arrays", WEIGHTS, np.array(1, np.float32)),
    "NaN": lambda c: _set(c.weights, np.nan, c.rng),
    "infinity": lambda c: _set(c.weights, -np.inf, c.rng),
    "a step too far": lambda c: _swap(c, "arrays", WEIGHTS, c.came_in["arrays"][WEIGHTS] * np.float32(-1.02)),
    "a huge weight": lambda c: _set(c.weights, 3e38, c.rng),
    "bytes after the array": lambda c: c.bytes_of.update({WEIGHTS: npy(c.weights) + b"SMITH^JOHN"}),
    "bytes missing": lambda c: c.bytes_of.update({WEIGHTS: npy(c.weights)[:-1]}),
    "bytes in the header": lambda c: c.bytes_of.update({WEIGHTS: npy(c.weights).replace(b"   ", b" X ", 1)}),
    "a header that promises more": lambda c: c.bytes_of.update(
        {WEIGHTS: npy(c.weights).replace(f"({c.weights.size},)".encode(), b"(9999999999,)")}
    ),
    "no array but a text": lambda c: c.bytes_of.update({WEIGHTS: b"SMITH^JOHN".ljust(len(npy(c.weights)), b"\0")}),
    "a pickle": lambda c: c.bytes_of.update({WEIGHTS: npy(np.array([c.metrics], object), allow_pickle=True)}),
    "an empty file": lambda c: c.bytes_of.update({WEIGHTS: b""}),
}
BUFFERS: dict[str, Spoil] = {
    "no buffers": lambda c: c.without.add("buffers"),
    "a buffer missing": lambda c: c.out["buffers"].pop(MEAN),
    "a buffer more": lambda c: _swap(c, "buffers", "x.running_mean", c.out["buffers"][MEAN]),
    "a negative variance": lambda c: _set(c.out["buffers"][VARIANCE], -1e-6, c.rng),
    "NaN in a mean": lambda c: _set(c.out["buffers"][MEAN], np.nan, c.rng),
    "a counter of another width": lambda c: _swap(c, "buffers", COUNTER, c.out["buffers"][COUNTER].astype(np.int32)),
    "a counter that fell": lambda c: _set(c.out["buffers"][COUNTER], -1, c.rng),
    "an identifier as a counter": lambda c: _set(c.out["buffers"][COUNTER], 19451008, c.rng),
    "weights among the buffers": lambda c: _swap(c, "buffers", WEIGHTS, c.weights),
}


def spoils_for(case: Case) -> dict[str, Spoil]:
    """All that can spoil this reply."""
    train = TRAIN if case.kind == "train" else {}
    return {**ANY, **train, **(BUFFERS if train and case.schema.buffers else {})}

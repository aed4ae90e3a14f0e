"""Messages of a node and a server, built with Flower's own classes, and faults that make a reply invalid."""

import functools
import io
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import flwr.app.message.array as flower_array
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, no_object_id_recompute

from federation.enrolment.certificates import create_node_key
from federation.gateway.batch_norm_bounds import steps_of_round
from federation.gateway.first_model import chunks_of, heads_as_json, write_chunks
from federation.gateway.flower_objects import Arrays, object_id, read_content
from federation.gateway.lineage import Lineage
from federation.gateway.questions import QUESTIONS
from federation.gateway.reasons import TASK_DAMAGED
from federation.gateway.reply_checks import Rules
from federation.gateway.schema import TRAINING, ArraySpec, Schema
from federation.protocol.coarse_moments import RANGES
from federation.protocol.figure_rounding import HIGH, LOW, figure_of_end, rounded
from federation.protocol.flat_weights import WEIGHTS
from federation.protocol.half_precision import UPDATE
from federation.protocol.metric_allowlist import (
    APPEARANCE_SIZE,
    BINS,
    EPSILON,
    EXAMPLES_OF,
    FIGURES,
    LABELS,
    Kind,
    class_counts,
    tail,
)
from federation.protocol.patient_counts import Patients
from models.operating_points import POINTS
from pipeline.cohort.store import Cohort, PatientRow
from pipeline.evaluation.subgroups import GROUPS
from pipeline.site.folder import Site, init_site, site_settings

Objects = dict[str, bytes]
Model = dict[str, dict[str, np.ndarray]]  # arrays by record and name
MIN_PATIENTS = 10
LONG = 1e30  # the maximum length of a tensor
ANYWHERE = 1e9  # the movement limit of a tensor in tests of other limits
TASKS = 500
MEAN, VARIANCE, COUNTER = (f"batch_norm.{kind}" for kind in ("running_mean", "running_var", "num_batches_tracked"))


class EveryStudy(dict[str, list[str]]):
    """Treats every digest as that of a study of the release."""

    def get(self, digest: str, default: object = None) -> list[str]:  # type: ignore[override]
        return ["study"]


CLASSES = [
    (split, label, value)
    for split in ("train", "validation", "test")
    for label in ("pcr_positive", "severe")
    for value in (False, True)
]
PATIENTS = Patients(
    of_split={"train": 60, "validation": 20, "test": 30},
    with_value=dict.fromkeys(CLASSES, 10),
    in_group={(*each, group): 10 for each in CLASSES for group in GROUPS},
)


def site_of_thirty(folder: Path) -> Site:
    """A hospital with 30 patients in each split: 20 with a positive PCR, and severe 10 of these."""
    site = init_site(folder / "site", site_settings(None, name="north", server="127.0.0.1:1"))
    create_node_key(site.node_key)
    rows = [
        PatientRow(f"{split}{number:03}", split, f"{split}{number}.npy", 60.0, "F", number % 3 != 0, number % 3 == 1)
        for split in ("train", "validation", "test")
        for number in range(30)
    ]
    with Cohort(site) as cohort:
        cohort.replace(rows, [], [])  # type: ignore[arg-type]
    return site


# The share of each kind among the random replies.
KINDS: dict[Kind, float] = {
    "query.handshake": 0.12,
    "train": 0.37,
    "train.head": 0.17,
    "evaluate.calibrate": 0.05,
    "evaluate.test": 0.11,
    "evaluate.embed": 0.12,
    "evaluate.assign": 0.06,
}
ABOUT = {"version": version("fedthorax"), "contract": "a" * 64, "golden": "b" * 64, "patients": "50-99"}


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


def schema_for(
    weights: int, channels: int, *, epochs: int = 2, steps: int = 0, features: int = 6, precision: str = "float32"
) -> Schema:
    """The schema of a model with this number of weights, and with buffers of this number of channels (none if 0)."""
    kinds = {MEAN: "float32", VARIANCE: "float32", COUNTER: "int64"} if channels else {}
    buffers = {name: ArraySpec(dtype, channels) for name, dtype in sorted(kinds.items())}
    bare = Schema(
        arrays={WEIGHTS: ArraySpec(precision, weights)},
        buffers=buffers,
        rounds=3,
        local_epochs=epochs,
        local_steps=steps,
        batch_size=8,
        private_round=None,
        features=features,
        head_from=weights * 3 // 4,
        questions=dict.fromkeys(QUESTIONS, 10),
        audits=True,
    )
    return replace(bare, first=heads_as_json(write_chunks(first_of(bare))), parts=parts_for(bare, share=ANYWHERE))


def parts_for(schema: Schema, *, share: float) -> dict[str, list[list[float]]]:
    """The tensors of a schema, one for each array. Each may move by `share` of its length in a round."""
    return {name: [[0, 1.0, share, 0.0, LONG]] for name in [*schema.arrays, *schema.buffers]}


def first_of(schema: Schema) -> Model:
    """The initial model of a study with this schema, from its seed."""
    return model(schema, np.random.default_rng(0))


def arrays_of(model: Model) -> Arrays:
    """A model as the gateway reads it."""
    chunks: Objects = {}
    for group in model.values():
        for array in group.values():
            chunks |= {object_id(chunk): chunk for chunk in chunks_of(array)}
    return Arrays(write_chunks({name: group for name, group in model.items() if group}), chunks.__getitem__)


def train_here(site: Site, schema: Schema, came_in: Model, *, run: str = "trial-0123abcd") -> None:
    """Record at a site that it has trained a model in a run."""
    folder = site.folder / "gateway"
    folder.mkdir(exist_ok=True)
    lineage = Lineage(folder / "models", run, schema, read_first=lambda: arrays_of(first_of(schema)), max_missed=5)
    with TemporaryDirectory() as chunks:
        write_chunks(came_in, Path(chunks))
        lineage.accept(1, arrays_of(came_in), Path(chunks))


def model(schema: Schema, rng: np.random.Generator) -> Model:
    """A random model of this schema, as a task contains it."""
    spec = schema.arrays[WEIGHTS]
    arrays = {WEIGHTS: rng.standard_normal(spec.length, np.float32).astype(spec.dtype)}
    sizes = {name: spec.length for name, spec in schema.buffers.items()}
    if not sizes:
        return {"arrays": arrays, "buffers": {}}
    buffers = {
        MEAN: rng.standard_normal(sizes[MEAN], np.float32),
        VARIANCE: rng.random(sizes[VARIANCE], np.float32),
        COUNTER: rng.integers(0, 1000, sizes[COUNTER]),
    }
    return {"arrays": arrays, "buffers": buffers}


def trained(came_in: Model, rng: np.random.Generator, steps: int) -> Model:
    """The same model after a training round of this number of steps."""
    out = {record: {name: array.copy() for name, array in arrays.items()} for record, arrays in came_in.items()}
    weights = out["arrays"].pop(WEIGHTS)
    step = rng.standard_normal(weights.size)
    length = rng.uniform(0, 1.9) * np.linalg.norm(weights.astype(np.float64))  # the limit of the site is 2
    out["arrays"] = _moved(weights, step * length / np.linalg.norm(step))
    if out["buffers"]:
        out["buffers"][MEAN] *= np.float32(rng.uniform(0, 3))
        out["buffers"][VARIANCE] *= np.float32(rng.uniform(0.9**steps, 3))
        out["buffers"][COUNTER] += steps
    return out


def fine_tuned(came_in: Model, schema: Schema, rng: np.random.Generator) -> Model:
    """The same model with another head."""
    out = {record: {name: array.copy() for name, array in arrays.items()} for record, arrays in came_in.items()}
    weights = out["arrays"].pop(WEIGHTS)
    step = np.zeros(weights.size)
    step[schema.head_from :] = weights[schema.head_from :] * rng.uniform(-1, 1, weights.size - schema.head_from)
    out["arrays"] = _moved(weights, step)
    return out


def _moved(weights: np.ndarray, step: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays of a reply: the weights after a step, or in half precision the step itself."""
    if weights.dtype == np.float16:
        return {UPDATE + WEIGHTS: step.astype(np.float16)}
    return {WEIGHTS: weights + step.astype(np.float32)}


def moments(schema: Schema, rng: np.random.Generator) -> Model:
    """Means and variances of features and of appearance features (`looks`)."""

    def of(length: int) -> dict[str, np.ndarray]:
        mean, variance = rng.standard_normal(length), rng.uniform(0, 9, length)
        told = {"mean": mean.astype(np.float32), "variance": variance.astype(np.float32)}
        return {name: RANGES[name].rounded(array) for name, array in told.items()}

    return {"moments": of(schema.features), "looks": of(APPEARANCE_SIZE)}


def steps_at(schema: Schema, patients: int) -> int:
    """The number of steps of a round of this schema with this number of training patients."""
    return steps_of_round(patients, batch_size=schema.batch_size, epochs=schema.local_epochs, steps=schema.local_steps)


def figures(kind: Kind, rng: np.random.Generator) -> dict[str, int | float]:
    """Some of the metrics that a reply may contain, and the number of examples. Empty for a handshake."""
    if kind == "query.handshake":
        return {}
    table = {name: figure for name, figure in FIGURES[kind].items() if name != EPSILON and figure.counts is None}
    drawn = {name for name in table if rng.random() < min(0.7, 12 / len(table))}
    bases = {figure_of_end(name, table) or name for name in drawn}
    names = [name for name in table if (figure_of_end(name, table) or name) in bases]
    names = [name for name in table if name in {*names, *_tails_of(names)}]
    values: dict[str, int | float] = {name: float(rng.uniform(table[name].low, table[name].high)) for name in names}
    for base in bases & {name.removesuffix(LOW) for name in names if name.endswith(LOW)}:
        ends = (base + LOW, base, base + HIGH)
        values |= dict(zip(ends, sorted(values[name] for name in ends), strict=True))
    values |= {name: PATIENTS.own(table[name]) for name in names if table[name].reveals_classes}
    values = dict(rounded(values, kind, PATIENTS))
    if kind == "evaluate.test" and rng.random() < 0.5:
        values[f"count_severe_1_{rng.integers(BINS):02}"] = MIN_PATIENTS
    return {**values, "num-examples": PATIENTS.of_split[EXAMPLES_OF[kind]]}


def _tails_of(names: Collection[str]) -> set[str]:
    """Return the figures without which some of these do not leave: the rest of a tail, the sizes of its classes."""
    found: set[str] = set()
    for label in LABELS:
        for part in (tail(point, label) for point in POINTS):
            if not set(part).isdisjoint(names):
                found |= {*part, *class_counts(label)}
    return found


def record_of(arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


@functools.cache
def task(number: int) -> tuple[Schema, Model]:
    """The schema and the model of one task. Several replies share it: do not modify it."""
    rng = np.random.default_rng([number, 0])
    precision = "float16" if number % 2 else "float32"
    schema = schema_for(int(rng.integers(1, 200)), int(rng.integers(0, 20)), precision=precision)
    return schema, model(schema, rng)


@functools.cache
def arrived(number: int, chunk_bytes: int) -> Arrays:
    """The arrays of a task as the gateway stores them, in chunks of Flower's current chunk size."""
    records = {name: record_of(arrays) for name, arrays in task(number)[1].items() if arrays}
    made = message(RecordDict(records))
    objects = objects_of(made)
    return Arrays(read_content(made.object_id, objects, TASK_DAMAGED).arrays, objects.__getitem__)


@dataclass
class Case:
    """A valid reply and everything that its checks need. A `Spoil` function adds one fault."""

    seed: int
    rng: np.random.Generator
    kind: Kind
    schema: Schema
    came_in: Model
    out: Model
    metrics: dict[str, Any]
    patients: Patients = PATIENTS
    histograms: bool = True
    embeddings: bool = True
    more: dict[str, Any] = field(default_factory=dict)  # additional records
    without: set[str] = field(default_factory=set)  # records left out
    about: dict[str, str] = field(default_factory=lambda: dict(ABOUT))  # as the gateway computes it
    bytes_of: dict[str, bytes] = field(default_factory=dict)  # the bytes of arrays, instead of those that numpy writes

    @classmethod
    def random(cls, seed: int) -> "Case":
        schema, came_in = task(seed % TASKS)
        rng = np.random.default_rng(seed)
        kind: Kind = rng.choice(list(KINDS), p=list(KINDS.values()))
        return cls.of(kind, schema, came_in, rng, seed)

    @classmethod
    def of(cls, kind: Kind, schema: Schema, came_in: Model, rng: np.random.Generator, seed: int) -> "Case":
        out: Model = {}
        if kind in TRAINING:
            steps = steps_at(schema, PATIENTS.of_split["train"])
            out = trained(came_in, rng, steps) if kind == "train" else fine_tuned(came_in, schema, rng)
        elif kind == "evaluate.embed":
            out = moments(schema, rng)
        case = cls(seed, rng, kind, schema, came_in, out, figures(kind, rng))
        if kind == "query.handshake":
            case.more["site"] = ConfigRecord(dict(ABOUT))
            case.without.add("metrics")
        return case

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
        with no_object_id_recompute():  # as in Flower's node: each object is serialized once
            reply = message(content, message_type=self.kind)
            return reply.object_id, objects_of(reply)

    def rules(self) -> Rules:
        return Rules(
            kind=self.kind,
            schema=self.schema,
            came_in=arrived(self.seed % TASKS, flower_array.FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE),
            patients=self.patients,
            min_patients=MIN_PATIENTS,
            max_update=2.0,
            histograms=self.histograms,
            embeddings=self.embeddings,
            about=self.about,
        )

    @property
    def name(self) -> str:
        """The name of the array that contains the weights or their update."""
        return self.schema.reply_name(WEIGHTS)

    @property
    def weights(self) -> np.ndarray:
        return self.out["arrays"][self.name]


def npy(array: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


# --- faults of a reply, one at a time ---------------------------------------------------------------------


def _set(array: np.ndarray, value: float, rng: np.random.Generator) -> None:
    array[rng.integers(array.size)] = value


def _swap(case: Case, record: str, name: str, new: np.ndarray) -> None:
    case.out[record][name] = new


def _few(case: Case, name: str) -> None:
    """A metric whose label is known for fewer patients than the site requires."""
    label = FIGURES[case.kind][name].label
    case.metrics[name] = 0.5
    few = {key: (4 if key[1] == label else count) for key, count in case.patients.with_value.items()}
    case.patients = replace(case.patients, with_value=few)


def _one_class(case: Case) -> None:
    case.metrics["auroc_severe"] = 0.5
    one = {key: (0 if key[1:] == ("severe", True) else 30) for key in case.patients.with_value}
    case.patients = replace(case.patients, with_value=one)


def _small_group(case: Case) -> None:
    case.metrics["auroc_severe@female"] = 0.5
    few = {key: (4 if key[3] == "female" else count) for key, count in case.patients.in_group.items()}
    case.patients = replace(case.patients, in_group=few)


def _lag(array: np.ndarray, rng: np.random.Generator) -> None:
    array[rng.integers(array.size)] -= 1


def _shrink(case: Case) -> None:
    """One variance below the share of the received variance that remains even if the variance of all batches is 0."""
    steps = steps_at(case.schema, case.patients.of_split["train"])
    place = int(np.argmax(case.came_in["buffers"][VARIANCE]))
    case.out["buffers"][VARIANCE][place] = case.came_in["buffers"][VARIANCE][place] * 0.9**steps * 0.9


def _low_bit(array: np.ndarray, rng: np.random.Generator) -> None:
    """Flip the lowest bit of one number."""
    array.view(np.uint32)[rng.integers(array.size)] ^= 1


def _against_the_policy(case: Case) -> None:
    case.metrics["count_severe_0_03"] = MIN_PATIENTS
    case.histograms = False


def _embeddings_against_the_policy(case: Case) -> None:
    case.metrics["distance_mean"] = 0.1
    case.embeddings = False


Spoil = Callable[[Case], object]
ANY: dict[str, Spoil] = {
    "a record of text": lambda c: c.more.update(notes=ConfigRecord({"row": "PCR positive 2020-03-17"})),
    "text in place of figures": lambda c: (
        c.more.update(metrics=ConfigRecord({"num-examples": 20})),
        c.without.discard("metrics"),
    ),
    "a second record of figures": lambda c: c.more.update(more=MetricRecord({"loss_severe": 0.5})),
    "an extra record of arrays": lambda c: c.more.update(scan=record_of({"x": np.zeros(8, np.int16)})),
    "the ledger's record, from the app": lambda c: c.more.update(ledger=ConfigRecord({"head": "0" * 64, "lines": 1})),
    "arrays of another kind's reply": lambda c: c.more.update(probe=record_of({"discriminants": np.zeros(7)})),
}
# All replies except that to a handshake contain metrics.
FIGURED: dict[str, Spoil] = {
    "a patient's name as a figure's": lambda c: c.metrics.update({"SMITH^JOHN": 1.0}),
    "a figure of the other kind": lambda c: c.metrics.update(
        {"slope_severe" if c.kind in TRAINING else "train_loss": 1.0}
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
    "fewer examples than patients": lambda c: c.metrics.update({"num-examples": c.metrics["num-examples"] - 1}),
    "examples below zero": lambda c: c.metrics.update({"num-examples": -20}),
    "examples as a fraction": lambda c: c.metrics.update({"num-examples": 20.0}),
    "the privacy spent, from the app": lambda c: c.metrics.update({"epsilon": 1.0}),
    "no figures": lambda c: c.without.add("metrics"),
    "what the site is, unasked": lambda c: c.more.update(site=ConfigRecord(dict(ABOUT))),
}
LABELLED: dict[str, Spoil] = {
    "a loss over few patients": lambda c: _few(c, "loss_severe"),
    "an AUROC over few patients": lambda c: _few(c, "auroc_pcr_positive"),
    "an AUROC of one class": _one_class,
}
TEST: dict[str, Spoil] = {
    "a subgroup of few patients": _small_group,
    "a count of few patients": lambda c: c.metrics.update({"count_severe_0_03": MIN_PATIENTS - 1}),
    "more in a histogram than there are": lambda c: c.metrics.update({"count_severe_0_03": 11}),
    "a count that is no whole number": lambda c: c.metrics.update({"count_severe_0_03": 10.5}),
    "a histogram against the policy": _against_the_policy,
    "a prevalence that is none": lambda c: c.metrics.update({"prevalence_severe": 0.7}),
    "an interval of no figure": lambda c: (
        c.metrics.pop("auroc_severe", 0),
        c.metrics.update({"auroc_severe_low": 0.5}),
    ),
    "half an interval": lambda c: (
        c.metrics.pop("auprc_severe_low", 0),
        c.metrics.update({"auprc_severe": 0.5, "auprc_severe_high": 0.5}),
    ),
}
CALIBRATE: dict[str, Spoil] = {
    "a distance against the policy": _embeddings_against_the_policy,
    "a variance that no fit has": lambda c: c.metrics.update({"variance_slope_severe": 0.3}),
    "an identifier as a distance": lambda c: c.metrics.update({"distance_sd": 19451008.0}),
}
ASSIGN: dict[str, Spoil] = {
    "a site that cannot be": lambda c: c.metrics.update({"assigned_32": 0.5}),
    "more than all patients": lambda c: c.metrics.update({"assigned_03": 1.5}),
}
TRAIN: dict[str, Spoil] = {
    "no arrays": lambda c: c.without.add("arrays"),
    "an array more": lambda c: _swap(c, "arrays", "scan", np.zeros(4, np.float32)),
    "an array of another name": lambda c: _swap(c, "arrays", "SMITH", c.out["arrays"].pop(c.name)),
    "wider numbers": lambda c: _swap(c, "arrays", c.name, c.weights.astype(np.float64)),
    "whole numbers": lambda c: _swap(c, "arrays", c.name, c.weights.astype(np.int32)),
    "the other order of bytes": lambda c: _swap(
        c, "arrays", c.name, c.weights.astype(c.weights.dtype.newbyteorder(">"))
    ),
    "the other precision": lambda c: _swap(
        c, "arrays", c.name, c.weights.astype(np.float32 if c.schema.is_half else np.float16)
    ),
    "the other precision's name": lambda c: _swap(
        c, "arrays", WEIGHTS if c.schema.is_half else UPDATE + WEIGHTS, c.out["arrays"].pop(c.name)
    ),
    "one value more": lambda c: _swap(c, "arrays", c.name, np.append(c.weights, c.weights[:1])),
    "two dimensions": lambda c: _swap(c, "arrays", c.name, c.weights[None]),
    "none": lambda c: _swap(c, "arrays", c.name, np.array(1, c.weights.dtype)),
    "NaN": lambda c: _set(c.weights, np.nan, c.rng),
    "infinity": lambda c: _set(c.weights, -np.inf, c.rng),
    "a step too far": lambda c: c.out["arrays"].update(
        _moved(c.came_in["arrays"][WEIGHTS], c.came_in["arrays"][WEIGHTS] * -2.02)
    ),
    "a huge weight": lambda c: _set(c.weights, np.finfo(c.weights.dtype).max, c.rng),
    "bytes after the array": lambda c: c.bytes_of.update({c.name: npy(c.weights) + b"SMITH^JOHN"}),
    "bytes missing": lambda c: c.bytes_of.update({c.name: npy(c.weights)[:-1]}),
    "bytes in the header": lambda c: c.bytes_of.update({c.name: npy(c.weights).replace(b"   ", b" X ", 1)}),
    "a header that promises more": lambda c: c.bytes_of.update(
        {c.name: npy(c.weights).replace(f"({c.weights.size},)".encode(), b"(9999999999,)")}
    ),
    "no array but a text": lambda c: c.bytes_of.update({c.name: b"SMITH^JOHN".ljust(len(npy(c.weights)), b"\0")}),
    "a pickle": lambda c: c.bytes_of.update({c.name: npy(np.array([c.metrics], object), allow_pickle=True)}),
    "an empty file": lambda c: c.bytes_of.update({c.name: b""}),
}
BUFFERS: dict[str, Spoil] = {
    "no buffers": lambda c: c.without.add("buffers"),
    "a buffer missing": lambda c: c.out["buffers"].pop(MEAN),
    "a buffer more": lambda c: _swap(c, "buffers", "x.running_mean", c.out["buffers"][MEAN]),
    "a negative variance": lambda c: _set(c.out["buffers"][VARIANCE], -1e-6, c.rng),
    "NaN in a mean": lambda c: _set(c.out["buffers"][MEAN], np.nan, c.rng),
    "a counter of another width": lambda c: _swap(c, "buffers", COUNTER, c.out["buffers"][COUNTER].astype(np.int32)),
    "a counter that fell": lambda c: _set(c.out["buffers"][COUNTER], -1, c.rng),
    "a counter one step behind": lambda c: _lag(c.out["buffers"][COUNTER], c.rng),
    "a mean that no layer makes": lambda c: _set(c.out["buffers"][MEAN], 1e32, c.rng),
    "a variance that no layer makes": lambda c: _set(c.out["buffers"][VARIANCE], 3e38, c.rng),
    "a variance that fell too far": _shrink,
    "an identifier as a mean": lambda c: _set(c.out["buffers"][MEAN], 19451008.0, c.rng),
    "an identifier as a counter": lambda c: _set(c.out["buffers"][COUNTER], 19451008, c.rng),
    "weights among the buffers": lambda c: _swap(c, "buffers", WEIGHTS, c.weights),
}


HEAD: dict[str, Spoil] = {
    "another weight than the head's": lambda c: _add(c.weights[: c.schema.head_from], c.rng),
}
HEAD_HALF: dict[str, Spoil] = {
    "the sign of a change that is none": lambda c: _set(c.weights[: c.schema.head_from], -0.0, c.rng),
}
HEAD_BUFFERS: dict[str, Spoil] = {
    "a buffer that moved": lambda c: _add(c.out["buffers"][MEAN], c.rng),
    "a counter that went on": lambda c: _add(c.out["buffers"][COUNTER], c.rng),
}
MOMENTS: dict[str, Spoil] = {
    "no moments": lambda c: c.without.add("moments"),
    "a mean missing": lambda c: c.out["moments"].pop("mean"),
    "an embedding besides": lambda c: _swap(c, "moments", "patient", c.out["moments"]["mean"]),
    "a negative variance of features": lambda c: _set(c.out["moments"]["variance"], -1e-6, c.rng),
    "no looks": lambda c: c.without.add("looks"),
    "a negative variance of looks": lambda c: _set(c.out["looks"]["variance"], -1e-6, c.rng),
    "digits beyond those of a mean": lambda c: _low_bit(c.out["moments"]["mean"], c.rng),
    "digits beyond those of a variance": lambda c: _low_bit(c.out["looks"]["variance"], c.rng),
    "a mean beyond its range": lambda c: _set(c.out["moments"]["mean"], 2048.0, c.rng),
    "a variance next to nothing": lambda c: _set(c.out["looks"]["variance"], 2.0**-40, c.rng),
    "a zero with a sign": lambda c: _set(c.out["looks"]["mean"], -0.0, c.rng),
    "NaN among the looks": lambda c: _set(c.out["looks"]["mean"], np.nan, c.rng),
    "looks of each patient": lambda c: _swap(c, "looks", "mean", np.zeros((9, APPEARANCE_SIZE), np.float32)),
    "NaN among the features": lambda c: _set(c.out["moments"]["mean"], np.nan, c.rng),
    "infinity among the features": lambda c: _set(c.out["moments"]["variance"], np.inf, c.rng),
    "one feature more": lambda c: _swap(c, "moments", "mean", np.zeros(c.schema.features + 1, np.float32)),
    "wider features": lambda c: _swap(c, "moments", "mean", np.zeros(c.schema.features)),
    "features of each patient": lambda c: _swap(c, "moments", "mean", np.zeros((9, c.schema.features), np.float32)),
    "weights besides moments": lambda c: c.more.update(arrays=record_of(c.came_in["arrays"])),
    "moments of few patients": lambda c: setattr(c, "patients", replace(c.patients, of_split={"train": 9})),
}


def _tell(key: str, value: object) -> Spoil:
    return lambda c: c.more["site"].update({key: value})


HANDSHAKE: dict[str, Spoil] = {
    "a key more": _tell("beds", 900),
    "a key missing": lambda c: c.more["site"].pop("golden"),
    "text as a version": _tell("version", "SMITH^JOHN"),
    "another version": _tell("version", "0.0.19451008"),
    "a short hash": _tell("contract", "a" * 63),
    "a hash in capitals": _tell("golden", "B" * 64),
    "a hash as bytes": _tell("golden", b"b" * 64),
    "two hashes": _tell("contract", ["a" * 64, "b" * 64]),
    "a number of patients": _tell("patients", "60"),
    "the number of patients": _tell("patients", 60),
    "a band of none": _tell("patients", "60-60"),
    "the band of other sites": _tell("patients", "100-199"),
    "the band of a site with fewer": lambda c: c.about.update(patients="20-49"),
    "an identifier as a hash": _tell("contract", "19451008".zfill(64)),
    "another golden volume": _tell("golden", "c" * 64),
    "no answer": lambda c: c.more.pop("site"),
    "figures besides": lambda c: (c.metrics.update({"num-examples": 20}), c.without.clear()),
    "weights besides": lambda c: c.more.update(arrays=record_of(c.came_in["arrays"])),
}


def _add(array: np.ndarray, rng: np.random.Generator) -> None:
    place = rng.integers(array.size)
    array[place] = np.nextafter(array[place], array.dtype.type(9)) if array.dtype.kind == "f" else array[place] + 1


def spoils_for(case: Case) -> dict[str, Spoil]:
    """All faults that apply to this reply."""
    if case.kind == "query.handshake":
        return {**ANY, **HANDSHAKE}
    spoils = {**ANY, **FIGURED}
    if case.kind == "train":
        spoils |= LABELLED
    if case.kind in TRAINING:
        spoils |= {**TRAIN, **(BUFFERS if case.schema.buffers else {})}
    if case.kind == "train.head" and case.schema.head_from:
        spoils |= {
            **HEAD,
            **(HEAD_HALF if case.schema.is_half else {}),
            **(HEAD_BUFFERS if case.schema.buffers else {}),
        }
    if case.kind == "evaluate.test":
        spoils |= {**LABELLED, **TEST}
    own = {"evaluate.calibrate": CALIBRATE, "evaluate.embed": MOMENTS, "evaluate.assign": ASSIGN}
    return spoils | own.get(case.kind, {})


ALL = {
    **ANY,
    **FIGURED,
    **LABELLED,
    **TEST,
    **CALIBRATE,
    **ASSIGN,
    **TRAIN,
    **BUFFERS,
    **HEAD,
    **HEAD_HALF,
    **HEAD_BUFFERS,
    **MOMENTS,
    **HANDSHAKE,
}

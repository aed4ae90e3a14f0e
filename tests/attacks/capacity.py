"""Count the bits that a hostile app can put into one reply besides the model: figures, digests, codes, moments,
counters.

The app draws random values for every carrier, the server reads the received values, and the bits on which both agree
are counted. For each number two distributions are tried, and the better one counts: uniform over its range, and uniform
over the logarithm of its size (all numbers that a computer can represent).
"""

from collections.abc import Callable, Iterator
from math import ceil
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from federation.client.client_app import app as own_app
from federation.protocol.capacity import bits as allowed_bits
from federation.protocol.metric_allowlist import (
    APPEARANCE_SIZE,
    EXAMPLES_OF,
    FIGURES,
    MAX_PROBED,
    Figure,
    Kind,
    withheld_figures,
)
from tests.attacks.result import Result
from tests.attacks.rig import Answer, Rig, alone_study, rig, seed_network
from tests.federation.gateway.messages import record_of

ADVERSARY = "the app's code"
Draw = Callable[[Figure, np.random.Generator], float]
DrawArray = Callable[[NDArray[Any], np.random.Generator], NDArray[Any]]


def _even(figure: Figure, rng: np.random.Generator) -> float:
    return float(rng.uniform(figure.low, figure.high))


def _by_size(figure: Figure, rng: np.random.Generator) -> float:
    """Draw uniformly from all positive floats up to the figure's highest value."""
    highest = np.float64(figure.high).view(np.uint64)
    return float(rng.integers(1, int(highest)).astype(np.uint64).view(np.float64))


_LUCK = float(np.log2(np.e))  # a rounding error is below half a step, on average by this number of bits


def bits(sent: NDArray[Any], arrived: NDArray[Any], low: float, high: float) -> float:
    """Return the number of bits that both arrays share, from their difference relative to the range."""
    if not len(sent) or sent.shape != arrived.shape:
        return 0.0
    off = np.abs(arrived.astype(np.float64) - sent.astype(np.float64))
    width = 52 if sent.dtype == np.float64 else 23
    by_value = np.log2(np.maximum(1.0, (high - low) / np.maximum(2 * off, (high - low) * 2.0**-width)))
    return max(0.0, float(by_value.sum()) - _LUCK * len(sent))


def bits_by_size(sent: NDArray[Any], arrived: NDArray[Any], highest: float) -> float:
    """As `bits`, but by the rank among all positive floats of this type up to the highest."""
    if not len(sent) or sent.shape != arrived.shape:
        return 0.0
    whole = np.uint64 if sent.dtype == np.float64 else np.uint32
    places = float(sent.dtype.type(highest).view(whole))
    off = np.abs(arrived.view(whole).astype(np.float64) - sent.view(whole).astype(np.float64))
    return max(0.0, float(np.log2(np.maximum(1.0, places / np.maximum(1.0, 2 * off))).sum()) - _LUCK * len(sent))


# --- the hostile app --------------------------------------------------------------------------------------


class Hostile:
    """The real app; `fill` replaces the content of its reply."""

    def __init__(self, fill: Callable[[RecordDict], RecordDict]) -> None:
        self._fill = fill

    def __call__(self, message: Message, context: Context) -> Message:
        reply = own_app(message, context)
        return reply if reply.has_error() else Message(self._fill(reply.content), reply_to=message)


def figures(attacked: Rig, kind: Kind, draw: Draw, rng: np.random.Generator, **options: Any) -> tuple[float, str, int]:
    """Return the bits in the figures of a reply, the code or "", and the number of figures that carry bits."""
    study = alone_study()
    silent = withheld_figures(kind, is_private=False)
    _train_first(attacked, kind)
    sent: dict[str, float] = {}

    def fill(content: RecordDict) -> RecordDict:
        reported = dict(content.metric_records["metrics"])
        table = {name: figure for name, figure in FIGURES[kind].items() if not figure.reveals_classes}
        sent.update({name: draw(table[name], rng) for name in reported if name in table})
        return RecordDict({**content, "metrics": MetricRecord({**reported, **sent})})

    attacked.app = Hostile(fill)
    answer = attacked.ask(kind, study, seed_network(study), **options)
    names = [name for name in sent if name in answer.metrics and name not in silent]
    found = 0.0
    for name in names:
        figure = FIGURES[kind][name]
        one, other = np.array([sent[name]]), np.array([float(answer.metrics[name])])
        # Numbers drawn by their size are nearly all close to zero, so agreement in value shows nothing.
        by_size = draw is _by_size
        found += bits_by_size(one, other, figure.high) if by_size else bits(one, other, figure.low, figure.high)
    return found, answer.code, len(names)


def _train_first(attacked: Rig, kind: Kind) -> None:
    """Train first: the hospital answers questions only about models that it trained."""
    attacked.talk_into(alone_study())
    if kind.startswith("evaluate"):
        attacked.must("train", alone_study(), seed_network(alone_study()))


def _options(kind: Kind, features: int) -> dict[str, Any]:
    return {
        "evaluate.test": {"config": {"audit": True}},
        "evaluate.calibrate": {
            "records": {"typical": dict.fromkeys(("mean", "variance"), np.ones(APPEARANCE_SIZE, np.float32))}
        },
        "evaluate.assign": {
            "config": {"probed": 2},
            "records": {"probe": {"discriminants": np.zeros(MAX_PROBED * (features + 1), np.float32)}},
        },
    }.get(kind, {})


def in_figures(kind: Kind) -> Result:
    """Return the better of two ways of drawing, each at a separate hospital."""
    best, code, carriers = 0.0, "", 0
    for draw in (_even, _by_size):
        with rig() as attacked:
            options = _options(kind, seed_network(alone_study()).features)
            found, refused, names = figures(attacked, kind, draw, np.random.default_rng(1), **options)
        code = code or refused
        if found > best:
            best, carriers = found, names
    return _result(kind, "figures", best, "" if best else code, f"{carriers} figures")


def _result(kind: Kind, carrier: str, found: float, code: str, note: str) -> Result:
    allowed = 0 if kind == "train" and carrier != "figures" else ceil(allowed_bits(kind, features=32))
    whole = round(found)
    note = f"{note}; {whole} bits, {allowed} allowed"
    over = max(0, whole - allowed)
    return Result(f"bits hidden in {carrier} of {kind}", ADVERSARY, "bits too many", over, 0, whole, code, note)


def in_digests() -> Result:
    """Count the bits in two digests that the app invents."""
    study, rng = alone_study(), np.random.default_rng(2)
    invented = {key: rng.bytes(32).hex() for key in ("contract", "golden")}
    with rig() as attacked:
        attacked.talk_into(study)
        attacked.app = Hostile(
            lambda content: RecordDict({"site": ConfigRecord({**content.config_records["site"], **invented})})
        )
        answer = attacked.ask("query.handshake", study)
    arrived = sum(answer.about.get(key) == value for key, value in invented.items())
    return _result("query.handshake", "digests", 256.0 * arrived, answer.code, "contract and golden volume")


# --- arrays -----------------------------------------------------------------------------------------------


def in_arrays(
    kind: Kind, record: str, name: str, draw: Callable[[NDArray[Any], np.random.Generator], NDArray[Any]]
) -> Result:
    """Count the bits in one array of a reply."""
    study, rng = alone_study(), np.random.default_rng(3)
    sent: list[NDArray[Any]] = []

    def fill(content: RecordDict) -> RecordDict:
        arrays = {key: array.numpy() for key, array in content.array_records[record].items()}
        sent.append(draw(arrays[name], rng))
        filled: dict[str, Any] = {**content, record: record_of({**arrays, name: sent[0]})}
        return RecordDict(filled)

    with rig() as attacked:
        _train_first(attacked, kind)
        attacked.app = Hostile(fill)
        answer = attacked.ask(kind, study, seed_network(study))
    found = _array_bits(sent[0], answer, record, name) if sent and not answer.code else 0.0
    short = name.rpartition(".")[2]
    carrier, numbers = short if record == "buffers" else f"{record} {short}", len(sent[0]) if sent else 0
    return _result(kind, carrier, found, answer.code, f"{numbers} numbers")


def _array_bits(sent: NDArray[Any], answer: Answer, record: str, name: str) -> float:
    arrived = answer.arrays[record][name]
    if sent.dtype.kind == "i":
        return float((arrived == sent).sum() * np.log2(sent.max() + 1))
    return bits_by_size(np.abs(sent), np.abs(arrived), float(np.finfo(np.float32).max))


def _any_size(like: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    highest = int(np.finfo(np.float32).max.view(np.uint32))
    return rng.integers(1, highest, like.size).astype(np.uint32).view(np.float32)


def _counters(like: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    return rng.integers(0, 128, like.size)


def _low_bits(like: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """Randomise the last 12 of 24 bits, a relative change of some 1e-4. Fixed weights, which end in zeros, stay
    unchanged.
    """
    last = rng.integers(0, 0x1000, like.size).astype(np.uint32)
    last[(like.view(np.uint32) & np.uint32(0xFFF)) == 0] = 0
    return ((like.view(np.uint32) & ~np.uint32(0xFFF)) | last).view(np.float32)


def in_weights() -> Result:
    """Count the bits that arrive unchanged among the last twelve bits of each weight."""
    study, rng = alone_study(), np.random.default_rng(4)
    sent: list[NDArray[Any]] = []

    def fill(content: RecordDict) -> RecordDict:
        sent.append(_low_bits(content.array_records["arrays"]["weights"].numpy(), rng))
        filled: dict[str, Any] = {**content, "arrays": record_of({"weights": sent[0]})}
        return RecordDict(filled)

    with rig() as attacked:
        attacked.talk_into(study)
        attacked.app = Hostile(fill)
        answer = attacked.ask("train", study, seed_network(study))
    found = 0
    if not answer.code:
        same = ~(sent[0].view(np.uint32) ^ answer.arrays["arrays"]["weights"].view(np.uint32))
        for place in range(12):
            share = float(((same >> np.uint32(place)) & 1).mean())
            found += round(max(0.0, 2 * share - 1) * sent[0].size)
    return _result("train", "low bits of weights", found, answer.code, f"{sent[0].size} weights")


def attacks() -> Iterator[Result]:
    """Try every carrier."""
    yield in_digests()
    for kind in EXAMPLES_OF:
        if FIGURES[kind] and kind != "train.head":  # only the released study baselines asks for it
            yield in_figures(kind)
    yield in_arrays("train", "buffers", "batch_norm.running_mean", _any_size)
    yield in_arrays("train", "buffers", "batch_norm.running_var", _any_size)
    yield in_arrays("train", "buffers", "batch_norm.num_batches_tracked", _counters)
    for record in ("moments", "looks"):
        yield in_arrays("evaluate.embed", record, "mean", _any_size)
        yield in_arrays("evaluate.embed", record, "variance", _any_size)
    yield in_weights()

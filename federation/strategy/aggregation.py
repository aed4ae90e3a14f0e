"""Run Flower's strategies over replies on disk, with the same results as over replies in memory.

A mean processes one reply after another, so Flower receives arrays whose numbers are read on demand. A robust strategy
needs all sites at once, but only one part of the model at a time, and runs over the parts in turn. Krum and centred
clipping compare whole models; see `_points`.
"""

import gc
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import Bulyan, FedAvg, MultiKrum
from numpy.typing import NDArray

from federation.flower.krum import select_multikrum
from federation.protocol.metric_allowlist import EXAMPLES
from federation.protocol.reply_validation import encode
from federation.strategy.centered_clip import CenteredClip
from federation.strategy.flower_strategies import is_robust
from federation.strategy.own_strategy import OwnStrategy
from federation.strategy.reply_files import Filed

PART_NUMBERS = 2**20  # of all sites together, in one part for a robust strategy
LEAST_NUMBERS = 2**14  # of each site in one part: with fewer, Flower's overhead would dominate


class Part(NamedTuple):
    """A range of one of the model's arrays, flattened."""

    name: str
    at: slice


@dataclass(frozen=True)
class Aggregation:
    """One round of a strategy: `replies` in the order in which they are summed, and their weights.

    `model`: the arrays that were sent out. A robust strategy receives updates in float64 instead of weights. Medians,
    trimmed means and Krum's distances are the same for both. But Flower computes a distance as |x|² + |y|² - 2xy, and
    in float32 this loses an update that is small compared with the weights.
    """

    inner: FedAvg
    number: int
    replies: Sequence[Filed]
    weights: Sequence[int]
    model: Mapping[str, NDArray]

    def run(self) -> dict[str, NDArray] | None:
        """Return the new arrays, with the model's shapes and dtypes; None if the strategy returns none."""
        inner, number = self.inner, self.number
        whole = [Part(name, slice(None)) for name in sorted(self.model)]
        if isinstance(inner, MultiKrum):
            messages = self._messages(whole, self._chosen(inner, inner.num_nodes_to_select))
            return self._joined([(whole, FedAvg.aggregate_train(inner, number, messages)[0])])
        if isinstance(inner, CenteredClip):
            return self._centred(inner)
        if isinstance(inner, OwnStrategy):
            return self._own(inner)
        if not is_robust(inner):
            return self._joined([(whole, inner.aggregate_train(number, self._messages(whole))[0])])
        with _many_as_one(), self._choosing():
            return self._joined(
                ([part], inner.aggregate_train(number, self._messages([part]))[0]) for part in self._parts()
            )

    def _joined(self, made: Iterable[tuple[Sequence[Part], ArrayRecord | None]]) -> dict[str, NDArray] | None:
        """Join the model's parts. Some strategies compute in float64; the model keeps its own dtypes."""
        rows = {name: np.empty(array.size, array.dtype) for name, array in self.model.items()}
        for parts, record in made:
            if record is None:
                return None
            for part in parts:
                rows[part.name][part.at] = record[part.name].numpy().reshape(-1) + self._origin(part)
        return {name: row.reshape(self.model[name].shape) for name, row in rows.items()}

    def _messages(self, parts: Sequence[Part], places: Iterable[int] | None = None) -> list[Message]:
        """Return the replies (all, or those at `places`) as messages for Flower; their numbers are still on disk."""
        return [self._message(place, parts) for place in (range(len(self.replies)) if places is None else places)]

    def _message(self, place: int, parts: Sequence[Part]) -> Message:
        arrays = ArrayRecord()
        for part in parts:
            arrays[part.name] = _OnDisk(partial(self._numbers, self.replies[place], part))
        content = RecordDict({"arrays": arrays, "metrics": MetricRecord({EXAMPLES: self.weights[place]})})
        return Message(content, dst_node_id=1, message_type="train")

    def _numbers(self, reply: Filed, part: Part) -> NDArray:
        origin = self.model[part.name].reshape(-1)[part.at]
        row = reply.clipped("arrays", part.name, origin, part.at)
        return row - self._origin(part) if is_robust(self.inner) else row.reshape(self.model[part.name].shape)

    def _origin(self, part: Part) -> NDArray | int:
        """Return the model's values, which updates are measured from; 0 if the strategy receives weights."""
        return self.model[part.name].reshape(-1)[part.at].astype(np.float64) if is_robust(self.inner) else 0

    def _centred(self, inner: CenteredClip) -> dict[str, NDArray]:
        """Return the model moved by centred clipping."""
        shares = inner.shares(self._points().T, self.weights)
        rows = {name: np.empty(array.size, array.dtype) for name, array in self.model.items()}
        for part in self._parts():
            moved = np.asarray(self._origin(part))
            for share, reply in zip(shares, self.replies, strict=True):
                moved = moved + share * self._numbers(reply, part)
            rows[part.name][part.at] = moved
        return {name: row.reshape(self.model[name].shape) for name, row in rows.items()}

    def _own(self, inner: OwnStrategy) -> dict[str, NDArray]:
        """Return the model moved by a package's strategy, which gets the updates of whole models in memory."""
        whole = [Part(name, slice(None)) for name in sorted(self.model)]
        updates = np.empty((len(self.replies), sum(array.size for array in self.model.values())), dtype=np.float32)
        for row, reply in zip(updates, self.replies, strict=True):
            np.concatenate([self._numbers(reply, part) for part in whole], out=row, casting="same_kind")
        update, rows, start = inner.combined(updates, self.weights), {}, 0
        for part in whole:
            array = self.model[part.name]
            moved = self._origin(part) + update[start : start + array.size]
            rows[part.name] = np.asarray(moved, array.dtype).reshape(array.shape)
            start += array.size
        return rows

    def _parts(self) -> Iterator[Part]:
        """Yield the whole model in parts that are small even for all sites together."""
        length = max(LEAST_NUMBERS, PART_NUMBERS // len(self.replies))
        for name in sorted(self.model):
            for start in range(0, self.model[name].size, length):
                yield Part(name, slice(start, min(start + length, self.model[name].size)))

    @contextmanager
    def _choosing(self) -> Iterator[None]:
        """For Bulyan, make its first step select by whole models in every part."""
        if not isinstance(self.inner, Bulyan):
            yield
            return
        selected = len(self.replies) - 2 * self.inner.num_malicious_nodes
        rule, chosen = self.inner.selection_rule, self._chosen(self.inner, selected)
        self.inner.selection_rule = lambda contents, *_: [contents[place] for place in chosen]
        try:
            yield
        finally:
            self.inner.selection_rule = rule

    def _chosen(self, krum: MultiKrum | Bulyan, count: int) -> list[int]:
        """Return the places of the `count` replies that Flower's Krum selects, in its order."""
        contents = [RecordDict({"arrays": encode({"point": point})}) for point in self._points().T]
        places = {id(content): place for place, content in enumerate(contents)}
        return [places[id(each)] for each in select_multikrum(contents, krum.num_malicious_nodes, count)]

    def _points(self) -> NDArray:
        """Return the updates as columns of few numbers, with the same lengths and distances.

        Lengths and distances follow from the inner products of all pairs of updates, which are summed part by part.
        Their eigenvectors give as many points as there are sites, in as many dimensions. The updates are compared as
        unit vectors, so that a short one keeps its direction beside one that is far too long.
        """
        products: NDArray = np.zeros((len(self.replies), len(self.replies)))
        for part in self._parts():
            rows = np.stack([self._numbers(reply, part) for reply in self.replies])
            products += rows @ rows.T
        lengths = np.sqrt(np.diag(products))
        scale = np.where(lengths > 0, lengths, 1.0)
        squares, vectors = np.linalg.eigh(products / np.outer(scale, scale))
        return np.asarray(np.sqrt(np.maximum(squares, 0.0))[:, None] * vectors.T * scale)


class _OnDisk(Array):
    """An array whose numbers are read when Flower asks for them."""

    def __init__(self, read: Callable[[], NDArray]) -> None:
        super().__init__(dtype="", shape=(), stype="numpy.ndarray", data=b"")
        self._read = read

    def numpy(self) -> NDArray:
        return self._read()


@contextmanager
def _many_as_one() -> Iterator[None]:
    """Silence Flower's log of each aggregation, and speed up Bulyan's garbage collection at every array.

    A round consists of many aggregations here. Frozen objects are skipped by the garbage collector.
    """
    flower = logging.getLogger("flwr")
    level = flower.level
    flower.setLevel(logging.WARNING)
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        flower.setLevel(level)

"""An in-memory Flower grid with synthetic sites, for tests of how the server handles replies."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import numpy as np
from flwr.app import Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, no_object_id_recompute
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity

from federation.protocol.reply_validation import decode, encode

# Flower needs these to create a Message outside a run.
TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1

Answer = RecordDict | Error
Site = Callable[[Message], list[Answer]]


def over_the_wire(message: Message) -> Message:
    """Return the message as received: Flower deflates and inflates it."""
    with no_object_id_recompute():  # as in Flower's grid and node
        contents = {name: part.deflate() for name, part in get_all_nested_objects(message).items()}
    return cast(Message, inflate_object_from_contents(message.object_id, contents))


class FakeGrid(Grid):
    """Grid whose sites are functions from the received message to replies. An empty list means no reply."""

    def __init__(self, sites: Mapping[int, Site]) -> None:
        self.sites = dict(sites)
        self.sent: list[Message] = []

    def get_node_ids(self) -> Iterable[int]:
        return list(self.sites)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        replies = []
        for message in messages:
            arrived = over_the_wire(message)
            self.sent.append(arrived)
            for answer in self.sites[message.metadata.dst_node_id](arrived):
                # (The cast is for mypy: the two reply types are two overloads.)
                replies.append(over_the_wire(Message(cast(Any, answer), reply_to=arrived)))
        return replies

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError


def honest_answer(site: int, message: Message) -> RecordDict:
    """Return a plausible reply: each tensor is changed by a random step, seeded by site and round."""
    draw = np.random.default_rng([site, int(message.content.config_records["config"]["server-round"])])
    records: dict[str, Any] = {}
    for name in ("arrays", "buffers"):
        if record := message.content.array_records.get(name):
            records[name] = encode({key: moved(key, array, draw) for key, array in decode(record).items()})
    records["metrics"] = MetricRecord({"loss": float(draw.uniform()), "num-examples": 20 + 10 * site})
    return RecordDict(records)


def moved(name: str, array: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    if array.dtype.kind == "i":
        return array + 3
    step = draw.normal(scale=0.1, size=array.shape)
    return np.asarray(array + (abs(step) if name.endswith("running_var") else step), dtype=array.dtype)


def honest(site: int) -> Site:
    return lambda message: [honest_answer(site, message)]

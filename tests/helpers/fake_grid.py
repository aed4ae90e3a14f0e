"""A grid in memory, with synthetic sites, for tests of what the server does with their replies."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import numpy as np
from flwr.app import Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, no_object_id_recompute
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity

from federation.protocol.reply_validation import decode, encode

# Without these a Message cannot be made outside a run.
TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1

Answer = RecordDict | Error
Site = Callable[[Message], list[Answer]]


def over_the_wire(message: Message) -> Message:
    """The message as it arrives: taken apart and put together again by Flower."""
    with no_object_id_recompute():  # as Flower's own grid and node do
        contents = {name: part.deflate() for name, part in get_all_nested_objects(message).items()}
    return cast(Message, inflate_object_from_contents(message.object_id, contents))


class FakeGrid(Grid):
    """Answers of each site come from a function from the message it got; an empty list is silence."""

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
                # (mypy: the two kinds of answer are two overloads.)
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
    """A reply that a site could send: each tensor moved by what its site and round draw."""
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

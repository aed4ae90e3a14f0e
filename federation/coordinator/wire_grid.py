"""A grid that sends messages in full or half precision, and counts their bytes."""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial

import numpy as np
from flwr.app import ArrayRecord, Message, RecordDict

from federation.coordinator.eager_grid import EagerGrid, PartOfGrid
from federation.protocol.half_precision import HALF, UPDATE, Precision, rounded
from federation.protocol.reply_validation import decode, encode, read_array


class Wire:
    """A grid whose callers always see float32 weights, whatever their precision in transit.

    `bytes_down` and `bytes_up`: bytes of the arrays in the last messages and in their replies, summed over all sites.
    """

    def __init__(self, grid: EagerGrid | PartOfGrid, precision: Precision) -> None:
        self._grid, self._is_half = grid, precision == HALF
        self.bytes_down = self.bytes_up = 0

    def get_node_ids(self) -> Iterable[int]:
        """Return the node ids of the wrapped grid."""
        return self._grid.get_node_ids()

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Send and receive as the wrapped grid does. Raises Refusal E_MODEL_NOT_FINITE: see `rounded`."""
        messages = list(messages)
        held = self._narrow(messages) if self._is_half else {}
        self.bytes_down, self.bytes_up = sum(map(array_bytes, messages)), 0
        return map(partial(self._received, held), self._grid.send_and_receive(messages, timeout=timeout))

    def _received(self, held: Mapping[int, ArrayRecord], reply: Message) -> Message:
        """Return a reply with float32 weights; `held`: the weights before they were rounded, by node."""
        self.bytes_up += array_bytes(reply)
        if (record := held.get(reply.metadata.src_node_id)) is not None:
            _widen(reply, record)
        return reply

    def _narrow(self, messages: Iterable[Message]) -> dict[int, ArrayRecord]:
        """Round the weights of messages; return the weights before, by node. A shared record is rounded once."""
        held, narrow = {}, {}
        for message in messages:
            if (record := message.content.array_records.get("arrays")) is None:
                continue
            if id(record) not in narrow:
                narrow[id(record)] = encode(rounded(decode(record), HALF))
            message.content = RecordDict({**message.content, "arrays": narrow[id(record)]})
            held[message.metadata.dst_node_id] = record
        return held


def _widen(reply: Message, record: ArrayRecord) -> None:
    """Replace a reply's changes by weights. If they are not exactly the expected changes, remove the array."""
    if not reply.has_content() or type(reply.content.get("arrays")) is not ArrayRecord:
        return
    sent, held = reply.content.array_records["arrays"], decode(record)
    whole = {}
    for name, array in held.items():
        found = sent.get(UPDATE + name)
        change = None if found is None else read_array(found, np.broadcast_to(np.float16(0), array.shape))
        if change is not None:
            whole[name] = array + change.astype(array.dtype)
    exact = len(sent) == len(whole) == len(held)
    reply.content = RecordDict({**reply.content, "arrays": encode(whole if exact else {})})
    sent.clear()  # Flower's views of a message's records contain reference cycles, which would keep it in memory


def array_bytes(message: Message) -> int:
    """Return the bytes of a message's arrays; 0 for an error."""
    if not message.has_content():
        return 0
    records = message.content.array_records.values()
    return sum(len(array.data) for record in records for array in record.values())

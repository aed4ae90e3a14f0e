"""How weights travel between the server and the sites: as they are, or in half precision ([wire] in study.toml).

In half precision the weights go down as float16, and up comes what a site's training changed in them, as float16 too.
The server adds that to the weights that it holds in float32. So no number that is kept from round to round is ever
rounded: what is lost is at most 2^-11 of a change, once, and of a change below 6e-8 all; of the weights themselves it
would be 2^-11 of numbers that a round moves by some per cent. Batch-norm buffers, one number in a thousand, stay as
they are, for variances may be large and counters must be exact.

All who ask sites for anything do it through a `Wire`, and see float32 on their side of it. Light where it is imported:
the gateway has no torch.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
from flwr.app import ArrayRecord, Message, RecordDict
from numpy.typing import NDArray

from federation import reasons
from federation.rounds.replies import decode, encode, read_array
from models.refusal import Refusal

if TYPE_CHECKING:
    from federation.rounds.grid import EagerGrid, PartOfGrid

Arrays = Mapping[str, NDArray]
Precision = Literal["float32", "float16"]
HALF: Precision = "float16"
UPDATE = "update."  # before the name of an array that holds what changed


def rounded(arrays: Arrays, precision: Precision) -> dict[str, NDArray]:
    """Weights as they go down.

    Raises Refusal E_MODEL_NOT_FINITE where one is too large for half precision, which ends at 65,504.
    """
    with np.errstate(over="ignore"):
        sent = {name: array.astype(precision, copy=False) for name, array in arrays.items()}
    if not all(np.isfinite(array).all() for array in sent.values()):
        raise Refusal(reasons.MODEL_NOT_FINITE)
    return sent


def changes(new: Arrays, sent: Arrays) -> dict[str, NDArray]:
    """What goes up: of weights in float32, how they differ from the rounded ones that came, rounded as well.

    A change that is too large becomes infinite, and is refused. Torch rounds, to the same bits: numpy takes fifty times
    as long over numbers under 6e-5, which most changes are.
    """
    import torch

    moved = {name: np.asarray(new[name] - sent[name].astype(np.float32)) for name in sent}
    return {UPDATE + name: torch.from_numpy(each).half().numpy() for name, each in moved.items()}


class Wire:
    """A grid on whose near side weights are float32, whatever the precision in which they travel.

    `bytes_down` and `bytes_up` count what the last messages and their replies held in arrays, all sites together.
    """

    def __init__(self, grid: "EagerGrid | PartOfGrid", precision: Precision) -> None:
        self._grid, self._is_half = grid, precision == HALF
        self.bytes_down = self.bytes_up = 0

    def get_node_ids(self) -> Iterable[int]:
        """As the grid has them."""
        return self._grid.get_node_ids()

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """As the grid does. Raises Refusal E_MODEL_NOT_FINITE: see `rounded`."""
        messages = list(messages)
        held = self._narrow(messages) if self._is_half else {}
        self.bytes_down, self.bytes_up = sum(map(array_bytes, messages)), 0
        return map(partial(self._received, held), self._grid.send_and_receive(messages, timeout=timeout))

    def _received(self, held: Mapping[int, ArrayRecord], reply: Message) -> Message:
        """A reply as the near side sees it; `held` are the weights by node as they were before they were rounded."""
        self.bytes_up += array_bytes(reply)
        if (record := held.get(reply.metadata.src_node_id)) is not None:
            _widen(reply, record)
        return reply

    def _narrow(self, messages: Iterable[Message]) -> dict[int, ArrayRecord]:
        """Round the weights of messages; what each node's were before. One record for all is rounded once."""
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
    """Put the weights in place of a reply's changes; no array in the place of what are not exactly these changes."""
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
    sent.clear()  # Flower's views of a message's records refer to themselves, and would keep it


def array_bytes(message: Message) -> int:
    """What a message holds in arrays; 0 for an error."""
    if not message.has_content():
        return 0
    records = message.content.array_records.values()
    return sum(len(array.data) for record in records for array in record.values())

"""A grid that looks for replies often.

Flower's own `send_and_receive` sleeps three seconds between looks, whatever the size of the study; with three nodes a
round took 7.5 s with it and 6 s with half a second.
"""

import time
from collections.abc import Iterable, Sequence

from flwr.app import Message
from flwr.serverapp import Grid

POLL_S = 0.5


class EagerGrid:
    """The part of a `Grid` that strategies use, over another grid."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def get_node_ids(self) -> Sequence[int]:
        """Nodes that are online."""
        return list(self._grid.get_node_ids())

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages and collect replies until all are there or `timeout` seconds have passed."""
        waiting = set(self._grid.push_messages(messages))
        deadline = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while waiting and (deadline is None or time.monotonic() < deadline):
            for reply in self._grid.pull_messages(waiting):
                replies.append(reply)
                waiting.discard(reply.metadata.reply_to_message_id)
            if waiting:
                time.sleep(POLL_S)
        return replies

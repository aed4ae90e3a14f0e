"""A grid that polls for replies often, and hands each one on before it fetches the next.

Flower's own `send_and_receive` polls every three seconds, whatever the size of the study. With a few nodes we poll four
times a second; with many, less often, so that the server's load is bounded. Flower's function also sends all messages
at once and returns only when it has all replies, so its memory grows with the number of sites.
"""

import time
from collections.abc import Container, Iterable, Iterator, Sequence

from flwr.app import Message
from flwr.serverapp import Grid

from federation.flower.grid import missing_parts

POLL_S = 0.25
AT_ONCE = 2  # maximum number of replies fetched at a time
LOOKS_PER_S = 10.0  # requests at a time, each for AT_ONCE replies; the server looks up a message in some milliseconds


class EagerGrid:
    """The part of a `Grid` that strategies use, as a wrapper of another grid."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def get_node_ids(self) -> Sequence[int]:
        """Return the nodes that are online."""
        return list(self._grid.get_node_ids())

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Send messages and yield the replies as they arrive, until all are there or `timeout` seconds have passed.

        The time that the receiver needs for each reply does not count: replies that arrived in time are yielded. Then,
        in place of a reply of which parts are still missing, an error of the grid is yielded.
        """
        waiting = [each for message in messages for each in self._grid.push_messages([message])]
        return self._replies(waiting, None if timeout is None else time.monotonic() + timeout)

    def _replies(self, waiting: list[str], deadline: float | None) -> Iterator[Message]:
        while waiting:
            left_s = float("inf") if deadline is None else deadline - time.monotonic()
            for start in range(0, len(looked_for := list(waiting)), AT_ONCE):
                with missing_parts(until=deadline):
                    replies = list(self._grid.pull_messages(looked_for[start : start + AT_ONCE]))
                answered = {reply.metadata.reply_to_message_id for reply in replies}
                waiting = [each for each in waiting if each not in answered]
                while replies:
                    yield replies.pop(0)  # not in a variable, which would keep it while the next one arrives
            if left_s <= 0:
                return
            if waiting:
                pause_s = max(POLL_S, len(waiting) / AT_ONCE / LOOKS_PER_S)
                time.sleep(min(pause_s, left_s))


class AllBut(Container[int]):
    """All nodes except some."""

    def __init__(self, nodes: Iterable[int]) -> None:
        self._nodes = frozenset(nodes)

    def __contains__(self, node: object) -> bool:
        return node not in self._nodes


class PartOfGrid:
    """A grid that is restricted to some of its nodes."""

    def __init__(self, grid: "EagerGrid | PartOfGrid", nodes: Container[int]) -> None:
        self._grid, self._nodes = grid, nodes

    def get_node_ids(self) -> Sequence[int]:
        """Return the selected nodes that are online."""
        return [node for node in self._grid.get_node_ids() if node in self._nodes]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Send and receive as the whole grid does."""
        return self._grid.send_and_receive(messages, timeout=timeout)

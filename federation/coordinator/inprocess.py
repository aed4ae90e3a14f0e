"""Rounds in this process: Flower's messages, answered by the study's own app over site folders, without its runtime.

For benchmarks, notebooks and tests. Flower's simulation starts a SuperLink, and processes for every message, some ten
seconds each; here a message costs its packing alone. Nothing else differs: the strategies, the guard, the app's
functions and so the weights are the same.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from federation.client.client_app import app
from federation.coordinator.connected_sites import Sites
from federation.coordinator.eager_grid import EagerGrid
from federation.protocol.simulated_sites import SIMULATED
from federation.protocol.study_config import Study
from pipeline.site.folder import Site

_SERVER_NODE = 1  # as Flower numbers it


@contextmanager
def playing(folders: Sequence[Path]) -> Iterator[None]:
    """Let the study's app find these folders, as in a simulation, while the block runs."""
    before = os.environ.get(SIMULATED)
    os.environ[SIMULATED] = os.pathsep.join(map(str, folders))
    try:
        yield
    finally:
        os.environ.pop(SIMULATED)
        if before is not None:
            os.environ[SIMULATED] = before


class InProcessGrid:
    """Site folders as the nodes 1, 2, ... in their order: the part of a `Grid` that strategies use.

    Each message is answered at once, one after the other. It takes the place of Flower's task identity in this process,
    so no Flower app may run beside it.
    """

    def __init__(self, study: Study, folders: Sequence[Path], run: str) -> None:
        self._folders = list(folders)
        config = {"study": study.model_dump_json(), "run": run}
        self._contexts = {
            node: Context(1, node, {"partition-id": node - 1}, RecordDict(), dict(config))
            for node in range(1, len(folders) + 1)
        }
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, _SERVER_NODE, 1

    def get_node_ids(self) -> Sequence[int]:
        """All of them, always."""
        return list(self._contexts)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """The replies to messages; nothing is ever late."""
        with playing(self._folders):
            return [app(message, self._contexts[message.metadata.dst_node_id]) for message in messages]


def sites_here(study: Study, folders: Sequence[Path], *, run: str = "in-process") -> Sites:
    """The sites of these folders, to be trained with (`Training.execute`) or asked, under their own names."""
    names = {node: Site.open(folder).name for node, folder in enumerate(folders, start=1)}
    grid = cast(EagerGrid, InProcessGrid(study, folders, run))
    return Sites(grid, names, {}, {}, study.wire.precision)

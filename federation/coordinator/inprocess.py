"""Run rounds in this process: the study's own app answers Flower's messages, without Flower's runtime.

For benchmarks, notebooks and tests. Flower's simulation starts a SuperLink, and processes for every message, which
take some ten seconds each. Here a message only costs its packing. The strategies, the guard and the app's functions
are the same, and therefore the weights are the same. The replies of a study with secure aggregation are masked, see
`simulated_gateways`.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from flwr.app import Context, Message, RecordDict

from federation.client.client_app import app
from federation.coordinator.connected_sites import Sites
from federation.coordinator.eager_grid import EagerGrid
from federation.coordinator.simulated_gateways import SimulatedGateways
from federation.flower.identity import TaskIdentity
from federation.protocol.simulated_sites import SIMULATED
from federation.protocol.study_config import Study
from pipeline.site.folder import Site

_SERVER_NODE = 1  # Flower's number


@contextmanager
def playing(folders: Sequence[Path]) -> Iterator[None]:
    """Make these folders the simulated sites of the study's app while the block runs."""
    before = os.environ.get(SIMULATED)
    os.environ[SIMULATED] = os.pathsep.join(map(str, folders))
    try:
        yield
    finally:
        os.environ.pop(SIMULATED)
        if before is not None:
            os.environ[SIMULATED] = before


class InProcessGrid:
    """A grid whose nodes 1, 2, ... are site folders, with the part of a `Grid` that strategies use.

    The messages are answered immediately, one after the other. The grid replaces Flower's task identity in this
    process, so no other Flower app may run in it.
    """

    def __init__(
        self, study: Study, folders: Sequence[Path], run: str, gateways: SimulatedGateways | None = None
    ) -> None:
        """`gateways`: of the sites, if their replies are masked."""
        self._folders, self.gateways = list(folders), gateways
        config = {"study": study.model_dump_json(), "run": run}
        self._contexts = {
            node: Context(1, node, {"partition-id": node - 1}, RecordDict(), dict(config))
            for node in range(1, len(folders) + 1)
        }
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, _SERVER_NODE, 1

    def get_node_ids(self) -> Sequence[int]:
        """Return all nodes: they are always online."""
        return list(self._contexts)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Return the replies to messages; none is ever late."""
        messages = list(messages)
        with playing(self._folders):
            replies = [app(message, self._contexts[message.metadata.dst_node_id]) for message in messages]
        return replies if self.gateways is None else self.gateways.masked(messages, replies)


def sites_here(study: Study, folders: Sequence[Path], *, run: str = "in-process") -> Sites:
    """Return the sites of these folders under their own names, for training (`Training.execute`) or requests.

    The sites of a study with secure aggregation mask. Raises Refusal E_SECAGG_ROSTER_SMALL.
    """
    names = {node: Site.open(folder).name for node, folder in enumerate(folders, start=1)}
    gateways = SimulatedGateways(study, folders, run) if study.sums_answers else None
    grid = cast(EagerGrid, InProcessGrid(study, folders, run, gateways))
    return Sites(grid, names, {}, {}, study.wire.precision, gateways.study if gateways else None)

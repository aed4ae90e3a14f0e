"""The sites of a run as the server knows them, and how they are asked for anything but a round of training.

Node ids become names here, once: a site that is enrolled while a run goes on has no part in it.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from federation.coordinator.eager_grid import EagerGrid, PartOfGrid
from federation.coordinator.wire_grid import Wire
from federation.enrolment.invitations import enrolled_patients
from federation.protocol.half_precision import Precision
from federation.protocol.metric_allowlist import Figure
from federation.protocol.reply_validation import EXAMPLES, NO_HEAD, Expected, LedgerHead, Sifted, figures, sift
from federation.protocol.simulated_sites import simulated_folders
from federation.superlink.control import read_server_config
from federation.superlink.nodes import sites as registered_sites

MAX_EXAMPLES = 100_000  # no hospital has more; a reply that claims more is refused

Content = Callable[[int], RecordDict]
Records = dict[str, ArrayRecord | MetricRecord | ConfigRecord]


def to_all(records: Records) -> Content:
    """The same for every node: arrays are encoded once, and lie in memory once however many nodes are asked."""
    return lambda _: RecordDict({**records})


@dataclass(frozen=True)
class Sites:
    """Who takes part. `names` and `enrolled` (patients, of sites that were enrolled with a number) are by node id.

    `heads`: where each ledger ended when its site last told; kept up to date by whoever asks a site. `precision`: in
    which weights travel.
    """

    grid: EagerGrid | PartOfGrid
    names: Mapping[int, str]
    enrolled: Mapping[int, int]
    heads: dict[int, LedgerHead]
    precision: Precision = "float32"

    @property
    def wire(self) -> Wire:
        """The way to them."""
        return Wire(self.grid, self.precision)

    def nodes(self) -> list[int]:
        """Those that are online now."""
        return sorted(self.grid.get_node_ids())

    def name(self, node: int) -> str:
        return self.names.get(node, "unknown")

    def only(self, nodes: Iterable[int]) -> "Sites":
        """Some of them, with the same ledgers."""
        return replace(self, grid=PartOfGrid(self.grid, frozenset(nodes)))

    def ask(self, kind: str, content: Content, expected: Expected, *, nodes: Sequence[int], timeout_s: float) -> Sifted:
        """Ask nodes for one thing each; `content` makes the records of the message to a node.

        Nodes that do not answer in time, or not as `expected`, are among the refused with their codes.
        """
        messages = []
        for node in nodes:
            records = content(node)
            config = dict(records.config_records.get("config") or {})
            head = self.heads.get(node, NO_HEAD).config()
            records["config"] = ConfigRecord({"server-round": 0, **config, **head})
            messages.append(Message(records, dst_node_id=node, message_type=kind))
        replies = self.wire.send_and_receive(messages, timeout=timeout_s)
        sifted = sift(replies, nodes, expected, self.heads, keep=lambda reply: reply)
        self.heads.update(sifted.heads)
        return sifted

    def figures(self, sifted: Sifted) -> dict[int, dict[str, float]]:
        """The figures of the valid replies; nobody counts with more patients than the site was enrolled with."""
        found = {node: figures(reply) for node, reply in sifted.valid.items()}
        return {
            node: {**each, EXAMPLES: min(each[EXAMPLES], self.enrolled.get(node, MAX_EXAMPLES))}
            for node, each in found.items()
        }

    def entry(self, what: str, sifted: Sifted) -> dict[str, Any]:
        """What the history tells of one question to all: who answered, who did not and why, the ledgers."""
        return {
            "step": what,
            "sites": sorted(map(self.name, sifted.valid)),
            "refused": {self.name(node): code for node, code in sorted(sifted.refused.items())},
            "ledger": self.ledger(sifted.heads),
        }

    def ledger(self, heads: Mapping[int, LedgerHead]) -> dict[str, dict[str, Any]]:
        """Heads as the history tells them."""
        return {self.name(node): asdict(head) for node, head in sorted(heads.items())}


def gather(
    server_folder: Path, grid: EagerGrid, wanted: int, wait_s: float, history: Sequence[Mapping[str, Any]]
) -> Sites:
    """Wait until `wanted` sites are online, or for `wait_s` seconds; `history` tells what their ledgers were."""
    deadline = time.monotonic() + wait_s
    while len(list(grid.get_node_ids())) < wanted and time.monotonic() < deadline:
        time.sleep(1)
    nodes = sorted(grid.get_node_ids())
    names = {node: f"site-{k}" for k, node in enumerate(nodes, start=1)}
    if read_server_config(server_folder).simulated_sites:
        names |= _simulated(Sites(grid, names, {}, {}), nodes, wait_s)
        return Sites(grid, names, {}, {})
    names |= {site.node_id: site.name for site in registered_sites(server_folder)}
    patients = enrolled_patients(server_folder)
    enrolled = {node: number for node, name in names.items() if (number := patients.get(name))}
    last: dict[str, Any] = {}
    for entry in history:
        last |= entry.get("ledger", {})
    heads = {node: LedgerHead(**last[name]) for node, name in names.items() if name in last}
    return Sites(grid, names, enrolled, heads)


def _simulated(sites: Sites, nodes: Sequence[int], wait_s: float) -> dict[int, str]:
    """The names of simulated sites: Flower draws their node ids, and only they know which folder they play."""
    from pipeline.site.folder import Site

    folders = simulated_folders()
    places = Expected({}, {}, {"partition": Figure(0, len(folders) - 1, "train")}, MAX_EXAMPLES)
    sifted = sites.ask("query.partition", lambda _: RecordDict(), places, nodes=nodes, timeout_s=wait_s)
    return {node: Site.open(folders[int(each["partition"])]).name for node, each in sites.figures(sifted).items()}

"""The sites of a run from the server's view, and all requests to them other than training rounds.

Node ids are mapped to site names once, at the start of a run. A site that is enrolled later does not take part.
"""

import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from federation.coordinator.eager_grid import AllBut, EagerGrid, PartOfGrid
from federation.coordinator.wire_grid import Wire
from federation.enrolment.invitations import enrolled_patients
from federation.protocol.half_precision import Precision
from federation.protocol.metric_allowlist import EXAMPLES, Figure
from federation.protocol.reply_validation import NO_HEAD, Expected, LedgerHead, Sifted, figures, sift
from federation.protocol.simulated_sites import simulated_folders
from federation.runs.accepted_ledgers import last_heads
from federation.strategy.round_report import by_code
from federation.superlink.control import read_server_config
from federation.superlink.nodes import sites as registered_sites

if TYPE_CHECKING:
    from federation.coordinator.masked_study import MaskedStudy

MAX_EXAMPLES = 100_000  # no hospital has more; a reply with a higher number is refused

Content = Callable[[int], RecordDict]
Records = dict[str, ArrayRecord | MetricRecord | ConfigRecord]


def to_all(records: Records) -> Content:
    """Make the same content for every node. Its arrays are encoded and stored once, for any number of nodes."""
    return lambda _: RecordDict({**records})


@dataclass(frozen=True)
class Sites:
    """The sites that take part in a run.

    `names` and `enrolled` are by node id; `enrolled` is the number of patients given at enrolment, if any. `heads`:
    the last ledger head that each site reported; every request updates it. `precision`: the number format of weights
    in transit. `masked`: of simulated sites that mask, what masked rounds need to know.
    """

    grid: EagerGrid | PartOfGrid
    names: Mapping[int, str]
    enrolled: Mapping[int, int]
    heads: dict[int, LedgerHead]
    precision: Precision = "float32"
    masked: "MaskedStudy | None" = None

    @property
    def wire(self) -> Wire:
        """The grid that carries messages to the sites."""
        return Wire(self.grid, self.precision)

    def nodes(self) -> list[int]:
        """Return the nodes that are online now."""
        return sorted(self.grid.get_node_ids())

    def name(self, node: int) -> str:
        return self.names.get(node, "unknown")

    def only(self, nodes: Iterable[int]) -> "Sites":
        """Return a subset of the sites that shares their ledger heads."""
        return replace(self, grid=PartOfGrid(self.grid, frozenset(nodes)))

    def without(self, nodes: Iterable[int]) -> "Sites":
        """Return the sites except some, also those that come online later; they share their ledger heads."""
        return replace(self, grid=PartOfGrid(self.grid, AllBut(nodes)))

    def ask(self, kind: str, content: Content, expected: Expected, *, nodes: Sequence[int], timeout_s: float) -> Sifted:
        """Send one request to each node; `content` makes the records of the message to a node.

        A node that does not answer in time, or not as `expected`, is reported as refused, with a code.
        """
        replies = self.wire.send_and_receive(self.messages(kind, content, nodes), timeout=timeout_s)
        sifted = sift(replies, nodes, expected, self.heads, keep=lambda reply: reply)
        self.heads.update(sifted.heads)
        return sifted

    def messages(self, kind: str, content: Content, nodes: Sequence[int]) -> list[Message]:
        """Return a request to each node, with the head of its ledger."""
        messages = []
        for node in nodes:
            records = content(node)
            config = dict(records.config_records.get("config") or {})
            head = self.heads.get(node, NO_HEAD).config()
            records["config"] = ConfigRecord({"server-round": 0, **config, **head})
            messages.append(Message(records, dst_node_id=node, message_type=kind))
        return messages

    def figures(self, sifted: Sifted) -> dict[int, dict[str, float]]:
        """Return the metrics of the valid replies; the number of patients is limited to the enrolled number."""
        found = {node: figures(reply) for node, reply in sifted.valid.items()}
        return {
            node: {**each, EXAMPLES: min(each[EXAMPLES], self.enrolled.get(node, MAX_EXAMPLES))}
            for node, each in found.items()
        }

    def entry(self, what: str, sifted: Sifted) -> dict[str, Any]:
        """Return the history entry of one request: sites that answered, refusals with codes, ledger heads."""
        return {
            "step": what,
            "sites": sorted(map(self.name, sifted.valid)),
            "refused": {self.name(node): code for node, code in sorted(sifted.refused.items())},
            "ledger": self.ledger(sifted.heads),
        }

    def ledger(self, heads: Mapping[int, LedgerHead]) -> dict[str, dict[str, Any]]:
        """Return ledger heads in the format of the history."""
        return {self.name(node): asdict(head) for node, head in sorted(heads.items())}


def ask_and_note(
    sites: Sites,
    kind: str,
    content: Content,
    expected: Expected,
    what: str,
    history: list[Mapping[str, Any]],
    say: Callable[[str], None],
    timeout_s: float,
    among: Container[str] | None = None,
) -> Sifted:
    """Ask the online sites, or those of the given names; say who is left out and why, and append it to `history`."""
    nodes = [node for node in sites.nodes() if among is None or sites.name(node) in among]
    sifted = sites.ask(kind, content, expected, nodes=nodes, timeout_s=timeout_s)
    for line in by_code({sites.name(node): code for node, code in sifted.refused.items()}):
        say(f"{what} without {line}")
    say(f"{what} at {len(sifted.valid)} of {len(nodes)} sites")
    history.append(sites.entry(what, sifted))
    return sifted


def gather(
    server_folder: Path, grid: EagerGrid, wanted: int, wait_s: float, history: Sequence[Mapping[str, Any]]
) -> Sites:
    """Wait until `wanted` sites are online, at most `wait_s` seconds; `history` contains their last ledger heads."""
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
    last = last_heads(history)
    heads = {node: last[name] for node, name in names.items() if name in last}
    return Sites(grid, names, enrolled, heads)


def _simulated(sites: Sites, nodes: Sequence[int], wait_s: float) -> dict[int, str]:
    """Ask simulated sites for their names: Flower draws the node ids, and only a node knows its site's folder."""
    from pipeline.site.folder import Site

    folders = simulated_folders()
    places = Expected({}, {}, {"partition": Figure(0, len(folders) - 1, "train")}, MAX_EXAMPLES)
    sifted = sites.ask("query.partition", lambda _: RecordDict(), places, nodes=nodes, timeout_s=wait_s)
    return {node: Site.open(folders[int(each["partition"])]).name for node, each in sites.figures(sifted).items()}

"""Metrics of a running node and its gateway, from the node's state, its processes, the ledger and the cohort."""

import shutil
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, InfoMetricFamily, Metric

from federation.enrolment.standing import standing
from federation.ledger.chain import EMPTY, PASSED, Head, Line, ledger_file, next_line
from federation.ledger.restored import ACCEPTED, RESTORED
from federation.node.state import NodeState
from federation.system.monitoring import gauge, gauges
from models.refusal import Refusal
from pipeline.site.folder import MONTH_SECONDS, Site

ANSWERED = "answered: "
VERIFY_AGAIN_SECONDS = 24 * 3600.0


class NodeMetrics:
    """Computes the metrics of a node. `state`: as the node keeps it. `processes`: whether each of them runs."""

    def __init__(self, site: Site, state: NodeState, processes: Callable[[], Mapping[str, bool]]) -> None:
        self._site, self._state, self._processes = site, state, processes
        self._ledger = _LedgerCounts(ledger_file(site))

    def ready(self) -> dict[str, bool]:
        """Return what a node needs to take part, and whether it has it."""
        self._ledger.read()
        processes = self._processes()
        return {
            "processes": bool(processes) and all(processes.values()),
            "connected": self._state.connection == "online",
            "restore_accepted": not self._ledger.is_restored,
        }

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics."""
        yield from self._node()
        yield from self._gateway()
        yield from self._privacy()
        yield from self._cohort()

    def _node(self) -> Iterator[Metric]:
        state = self._state
        yield InfoMetricFamily("fedthorax_node", "The installed release", {"version": version("fedthorax")})
        yield gauge("node_connected", "Whether the study's server accepts the node", state.connection == "online")
        yield gauge("node_busy", "Whether the node works on a task", bool(state.doing))
        yield gauge("node_started_timestamp_seconds", "When the node started", state.started.timestamp())
        if state.contact:
            says = "The last known answer of the study's server"
            yield gauge("node_last_contact_timestamp_seconds", says, state.contact.timestamp())
        yield _counter("node_rounds", "Rounds of training whose reply left, over all starts", state.rounds)
        if state.refused and state.refused_at:
            refused = {state.refused: state.refused_at.timestamp()}
            yield gauges("node_last_refusal_timestamp_seconds", "The last refusal, by code", "code", refused)
        if found := standing(self._site):
            says = "When the node's certificate ends"
            yield gauge("node_certificate_end_timestamp_seconds", says, found.until.timestamp())
        free = shutil.disk_usage(self._site.folder).free
        yield gauge("node_disk_free_bytes", "Free space on the disk of the site's folder", free)
        yield gauges("node_process_up", "Whether each process of the node runs", "process", self._processes())

    def _gateway(self) -> Iterator[Metric]:
        self._ledger.read()
        says = "Messages that the gateway passed or refused, by direction and code"
        messages = CounterMetricFamily("fedthorax_gateway_messages", says, labels=["direction", "verdict"])
        for (direction, verdict), count in sorted(self._ledger.messages.items()):
            messages.add_metric([direction, verdict], count)
        yield messages
        yield gauge("gateway_ledger_lines", "Lines of the ledger", self._ledger.head.lines)
        says = "Whether no line of the ledger was changed, removed or cut off, as far as this process can see"
        yield gauge("gateway_ledger_verified", says, self._ledger.is_verified)
        yield gauge("gateway_restored", "Whether a restore waits for the hospital's decision", self._ledger.is_restored)
        asked = sum(at > time.time() - MONTH_SECONDS for at in self._ledger.answers.values())
        yield gauge("gateway_questions", "Questions about models that were answered in 31 days", asked)
        limit = self._site.settings.gateway.max_questions_a_month
        yield gauge("gateway_questions_limit", "Their limit", limit)

    def _privacy(self) -> Iterator[Metric]:
        from pipeline.training.privacy_budget import spent_epsilon  # numpy

        limits = self._site.settings.privacy
        with suppress(Refusal):
            spent = spent_epsilon(self._site, delta=limits.max_delta)
            yield gauge("node_privacy_epsilon", "Privacy budget that all studies have spent: epsilon", spent)
        yield gauge("node_privacy_epsilon_limit", "The privacy budget: epsilon", limits.max_epsilon)

    def _cohort(self) -> Iterator[Metric]:
        folder = self._site.cohort_folder
        with suppress(OSError):
            ingested = (folder / "refusals.csv").stat().st_mtime  # written by each ingest
            yield gauge("node_last_ingest_timestamp_seconds", "When the cohort was last written", ingested)
        with suppress(sqlite3.Error):
            uri = f"{(folder / 'cohort.sqlite').absolute().as_uri()}?mode=ro"
            with closing(sqlite3.connect(uri, uri=True, timeout=5)) as database:
                (patients,) = database.execute("SELECT count(*) FROM patients").fetchone()
            yield gauge("node_patients", "Patients in the cohort", patients)


def _counter(name: str, says: str, value: float) -> Metric:
    return CounterMetricFamily(f"fedthorax_{name}", says, value)


class _LedgerCounts:
    """Counts of a ledger's lines. Each call of `read` reads and verifies what was added, and once a day the whole file.

    `is_verified` is False from the first line on that is not as it was written, and if the file became shorter.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._reading, self._was_cut = path, threading.Lock(), False
        self._forget()

    def _forget(self) -> None:
        self._at, self._began = 0, time.monotonic()
        self.head, self.is_verified, self.is_restored = EMPTY, True, False
        self.messages: Counter[tuple[str, str]] = Counter()
        self.answers: dict[str, float] = {}  # when it left, in seconds since 1970, by the question's digest

    def read(self) -> None:
        with self._reading:
            size = self._path.stat().st_size if self._path.exists() else 0
            self._was_cut |= size < self._at
            if size < self._at or time.monotonic() - self._began > VERIFY_AGAIN_SECONDS:
                self._forget()
            with suppress(OSError):
                self._read_on()
            self.is_verified &= not self._was_cut

    def _read_on(self) -> None:
        with self._path.open("rb") as file:
            file.seek(self._at)
            for raw in file:
                if not raw.endswith(b"\n"):
                    break  # a line that is being written
                line = next_line(raw, self.head)
                self.is_verified = line is not None
                if line is None:
                    break
                self._count(line)
                self._at += len(raw)

    def _count(self, line: Line) -> None:
        self.head = Head(line.number, line.sha256)
        if line.direction != "here":
            self.messages[line.direction, line.verdict] += 1
        elif line.kind.startswith(ANSWERED) and line.verdict == PASSED:
            self.answers.setdefault(line.digest, datetime.fromisoformat(line.time).timestamp())
        elif line.kind.partition(":")[0] in (RESTORED, ACCEPTED):
            self.is_restored = line.kind.startswith(f"{RESTORED}:")

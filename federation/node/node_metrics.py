"""Metrics of a running node and its gateway, from the node's state, its processes, the ledger and the cohort."""

import json
import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, InfoMetricFamily, Metric

from federation.enrolment.standing import standing
from federation.ledger.chain import PASSED, ledger_file
from federation.ledger.restored import ACCEPTED, RESTORED
from federation.node.state import NodeState
from federation.system.monitoring import gauge, gauges
from pipeline.site.folder import MONTH_SECONDS, Site

ANSWERED = "answered: "


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
        yield gauge("gateway_ledger_lines", "Lines of the ledger", self._ledger.lines)
        yield gauge("gateway_restored", "Whether a restore waits for the hospital's decision", self._ledger.is_restored)
        asked = sum(at > time.time() - MONTH_SECONDS for at in self._ledger.answers.values())
        yield gauge("gateway_questions", "Questions about models that were answered in 31 days", asked)
        limit = self._site.settings.gateway.max_questions_a_month
        yield gauge("gateway_questions_limit", "Their limit", limit)

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
    """Counts of a ledger's lines; each call of `read` reads only what was added. It verifies nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._forget()

    def _forget(self) -> None:
        self._at, self.lines, self.is_restored = 0, 0, False
        self.messages: Counter[tuple[str, str]] = Counter()
        self.answers: dict[str, float] = {}  # when it left, in seconds since 1970, by the question's digest

    def read(self) -> None:
        with suppress(OSError, ValueError, KeyError), self._path.open("rb") as file:
            if self._path.stat().st_size < self._at:
                self._forget()
            file.seek(self._at)
            for raw in file:
                if not raw.endswith(b"\n"):
                    break  # a line that is being written
                self._count(json.loads(raw))
                self._at += len(raw)

    def _count(self, line: Mapping[str, str]) -> None:
        self.lines += 1
        direction, kind, verdict = line["direction"], line["kind"], line["verdict"]
        if direction != "here":
            self.messages[direction, verdict] += 1
        elif kind.startswith(ANSWERED) and verdict == PASSED:
            self.answers.setdefault(line["digest"], datetime.fromisoformat(line["time"]).timestamp())
        elif kind.partition(":")[0] in (RESTORED, ACCEPTED):
            self.is_restored = kind.startswith(f"{RESTORED}:")

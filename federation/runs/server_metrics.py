"""Metrics of a study's server: its processes, sites, certificates, runs, and what the ingress refused."""

import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, InfoMetricFamily, Metric

from federation.enrolment.invitations import overview
from federation.runs.run_folder import run_names
from federation.runs.submission import UNDER_WAY, state
from federation.server.start import valid_certificates
from federation.system.monitoring import gauge, gauges
from federation.system.refusals_page import REASONS
from models.refusal import Refusal
from pipeline.system.child_logs import Tail

# As the ingress writes a line. The caller chooses the path in it, so only known codes count, behind two spaces.
_REFUSED = re.compile(r"^\S+ \S+ refused site=\S+ .*  (E_[A-Z_]+)", re.ASCII)


class ServerMetrics:
    """Computes the metrics of the server in `folder`. `processes`: whether each of them runs."""

    def __init__(self, folder: Path, processes: Callable[[], Mapping[str, bool]]) -> None:
        self._folder, self._processes = folder, processes
        self._refused: Counter[str] = Counter()
        self._door = Tail(folder / "logs" / "door.log")

    def ready(self) -> dict[str, bool]:
        """Return whether each process runs."""
        return {**self._processes()}

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics; those of the sites are missing while Flower's server does not respond."""
        yield InfoMetricFamily("fedthorax_server", "The installed release", {"version": version("fedthorax")})
        yield gauges("server_process_up", "Whether each process of the server runs", "process", self._processes())
        yield gauge(
            "server_disk_free_bytes",
            "Free space on the disk of the server's folder",
            shutil.disk_usage(self._folder).free,
        )
        ends = {holder: until.timestamp() for holder, until in valid_certificates(self._folder).items()}
        yield gauges("server_certificate_end_timestamp_seconds", "When a certificate ends", "holder", ends)
        with suppress(Refusal):
            yield from self._sites()
        yield from self._runs()
        yield self._ingress()

    def _sites(self) -> Iterator[Metric]:
        found = [site for site in overview(self._folder) if site.state != "invited"]
        online = {site.name: float(site.online) for site in found if site.state != "revoked"}
        ends = {site.name: site.until.timestamp() for site in found if site.until and site.state != "revoked"}
        yield gauges("server_site_online", "Whether a site's node is connected", "site", online)
        says = "When the certificate of a site's node ends"
        yield gauges("server_site_certificate_end_timestamp_seconds", says, "site", ends)

    def _runs(self) -> Iterator[Metric]:
        states: Counter[str] = Counter()
        newest: dict[str, float] = {}
        for name in run_names(self._folder):
            folder = self._folder / "runs" / name
            with suppress(Refusal):
                stands = state(self._folder, folder)
                states[stands.replace(" ", "_")] += 1
                if stands in UNDER_WAY:
                    files = (folder / "study.json", folder / "history.json")
                    newest[name] = max(file.stat().st_mtime for file in files if file.exists())
        yield gauges("server_runs", "Runs by state", "state", states)
        says = "When an active run last finished a round, or began"
        yield gauges("server_run_progress_timestamp_seconds", says, "run", newest)

    def _ingress(self) -> Metric:
        while lines := self._door.lines():
            found = [match[1] for line in lines if (match := _REFUSED.search(line))]
            self._refused.update(code for code in found if code in REASONS)
        says = "Requests that the ingress refused since the server started, by code"
        family = CounterMetricFamily("fedthorax_ingress_refused", says, labels=["code"])
        for code, count in sorted(self._refused.items()):
            family.add_metric([code], count)
        return family

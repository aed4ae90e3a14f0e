"""The cost of masking a round, with real processes: seconds, bytes and the gateway's memory, against the same round
without masks.

A server with its ingress and three sites, each with a gateway and a SuperNode, over TLS on loopback; a model of 8 MB.
Each site runs the study's own app, with a random step instead of training.
"""

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import Figure, Part
from flower_app import packed, start, wait
from round_rig import MEMORY_MB, Line, gateway_peaks_mb, make_site, supernode_process

from federation.approval.approvals import Approvals
from federation.approval.peers import PeerApprovals
from federation.approval.studies import StudyApprovals
from federation.enrolment.invitations import invite
from federation.enrolment.join import join, with_server_address
from federation.enrolment.peers import roster_of
from federation.gateway.loopback import loopback_certificate
from federation.gateway.process import start_gateway
from federation.gateway.schema import schema_of
from federation.protocol.study_config import Study
from federation.server.start import init_server, start_server
from federation.superlink.control import read_server_config
from federation.system.process import LOOPBACK, free_port
from pipeline.site.folder import Site

NAMES = ("north", "south", "west")
ROUNDS, WARM_UP = 4, 1  # the first round loads the app's libraries at each site
LONGER_SECONDS = 3.0  # goal: the most that masks may add to a round
MORE_MB = 1.0  # and to the bytes between a site and the server
_APP = Path(__file__).with_name("masked_app")
_PEERS_SECONDS = 60.0


@dataclass(frozen=True)
class Round:
    """A round of all sites: its seconds, and the megabytes between one site and the server, the mean over sites."""

    seconds: float
    up_mb: float
    down_mb: float


class MaskedRig:
    """Start a server and three sites that have approved the list of hospitals, for the block."""

    def __init__(self, folder: Path) -> None:
        self._server = folder / "server"
        self._sites = {name: make_site(folder / name) for name in NAMES}
        self._app = packed({file.stem: file.read_text() for file in _APP.glob("*_app.py")}, {"study": "", "run": ""})
        self._lines: list[Line] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "MaskedRig":
        init_server(self._server, port=free_port())
        self._stack.enter_context(start_server(self._server))
        for name, site in self._sites.items():
            join(site, invite(self._server, name))
            Approvals(site).approve(self._app, by="the benchmark")
            self._stack.enter_context(self._node(site))
        until = time.monotonic() + _PEERS_SECONDS
        while len((roster := roster_of(self._server)).members) < len(NAMES):
            if time.monotonic() > until:
                raise RuntimeError("the gateways have not presented their keys")
            time.sleep(0.5)
        for site in self._sites.values():
            PeerApprovals(site).approve(roster, by="the benchmark")
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        for line in self._lines:
            line.close()

    @contextlib.contextmanager
    def _node(self, site: Site) -> Iterator[None]:
        """Run a gateway and a SuperNode; a relay between the gateway and the server counts the bytes."""
        self._lines.append(line := Line(read_server_config(self._server).port))
        settings = site.folder / "site.toml"
        settings.write_text(with_server_address(settings.read_text(), f"{LOOPBACK}:{line.port}"))
        site, port = Site.open(site.folder), free_port()
        with (
            start_gateway(site, port=port, log=site.logs / "gateway.log"),
            supernode_process(site, port, loopback_certificate(site)[0]),
        ):
            yield

    def run(self, study: Study, run: str) -> list[Round]:
        """Run a study's rounds."""
        text = study.model_dump_json()
        for site in self._sites.values():
            StudyApprovals(site).approve(text, by="the benchmark")
            schema_of(text, site.folder / "gateway" / "schemas", site.folder)  # not a part of a round
        wait(self._server, start(self._server, self._app, {"study": text, "run": run}))
        return [self._round(each) for each in json.loads((self._server / "rounds.json").read_text())[WARM_UP:]]

    def _round(self, each: dict[str, Any]) -> Round:
        if each["lost_for"]:
            raise RuntimeError(f"a round was lost: {each['lost_for']}")
        up, down = (
            sum(line.passed(way, each["began"], each["done"]) for line in self._lines) / len(self._lines) / 1e6
            for way in ("up", "down")
        )
        return Round(each["done"] - each["began"], up, down)


def study(*, secure: bool) -> Study:
    table = {"name": "bench", "rounds": ROUNDS, "sites": len(NAMES), "quorum": len(NAMES), "seed": 1 + secure}
    tables = {"study": table, "strategy": {"name": "FedAvg"}, "aggregation": {"secure": secure}}
    return Study.model_validate(tables)


def measure(folder: Path) -> Part:
    with MaskedRig(folder) as rig:
        plain, masked = rig.run(study(secure=False), "plain-00000001"), rig.run(study(secure=True), "masked-00000001")
        peaks = gateway_peaks_mb()
    longer = [one.seconds - other.seconds for one, other in zip(masked, plain, strict=True)]
    more = [one.up_mb + one.down_mb - other.up_mb - other.down_mb for one, other in zip(masked, plain, strict=True)]
    against = "without masks"
    return Part(
        [
            f"{len(NAMES)} sites with real processes over TLS, a model of 8 MB, no training; {ROUNDS - WARM_UP} rounds "
            "of each kind after one that loads the libraries. Seconds from the server's sending until the new model, "
            "with Flower's polling every 0.5 to 3 s."
        ],
        [
            Figure("a round of 3 sites with masks", against, "s", _seconds(masked), _seconds(plain)),
            Figure("masks make a round longer by", "the goal", "s", longer, [LONGER_SECONDS], "at most 1"),
            Figure("megabytes up, a site", against, "MB", [r.up_mb for r in masked], [r.up_mb for r in plain]),
            Figure("megabytes down, a site", against, "MB", [r.down_mb for r in masked], [r.down_mb for r in plain]),
            Figure("masks add to the bytes of a site", "the goal", "MB", more, [MORE_MB], "at most 1"),
            Figure("memory of the gateways", "the limit", "MB", peaks, [MEMORY_MB], "at most 1"),
        ],
    )


def _seconds(rounds: list[Round]) -> list[float]:
    return [each.seconds for each in rounds]

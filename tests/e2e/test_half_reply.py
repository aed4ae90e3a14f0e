"""A hostile hospital announces a reply and never sends the rest of it: the round ends without it. Synthetic data."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from federation.system.process import LOOPBACK, free_port
from tests.e2e.conftest import Command, allow, enter, ok, run_command, wait_online
from tests.e2e.test_federation import STUDY
from tests.helpers.connect_proxy import connect_proxy

pytestmark = pytest.mark.chaos  # some two minutes

TIMEOUT_S = 60  # of the round
# What a connection of the hospital carries: more than all requests but the parts of a model, which has half a megabyte.
# New connections work, so the hospital remains online.
MOST_BYTES = 100_000


def test_hospital_that_sends_half_a_reply_does_not_hold_up_the_round(
    two_sites: Path, tmp_path: Path, start: Callable[..., Command]
) -> None:
    """Without the round's end, the round took 186 s: so long did Flower wait for the missing parts."""
    server, sites = tmp_path / "server", tmp_path / "sites"
    shutil.copytree(two_sites, sites)
    study = tmp_path / "study.toml"
    text = STUDY.replace("sites = 3", "sites = 2").replace("quorum = 2", "quorum = 1")
    study.write_text(text.replace("rounds = 4", "rounds = 1").replace("timeout_s = 120", f"timeout_s = {TIMEOUT_S}"))
    # An address of this machine that may be reached through a proxy, unlike localhost.
    ok("server", "init", server, "--host", "127.0.0.2", "--port", str(free_port()))
    start("server", "start", server).wait_for("The server is up", seconds=300)
    for name in ("north", "south"):
        enter(sites / name, server, name)
        allow(sites / name, study)
    with connect_proxy(most_bytes=MOST_BYTES) as line:
        settings = sites / "south" / "site.toml"
        text = settings.read_text()
        assert text.count("[server]\n") == 1
        settings.write_text(text.replace("[server]\n", f'[server]\nproxy = "http://{LOOPBACK}:{line.port}"\n'))
        nodes = [start("node", "start", sites / name) for name in ("north", "south")]
        wait_online(nodes)
        done = run_command("study", "run", study, "--server", server)
        for node in nodes:
            node.interrupt()
    assert line.cut
    assert done.returncode == 0, done.stdout + done.stderr
    assert "south: E_SITE_MISSING" in done.stderr, done.stderr
    assert "round 1 of 1 · 1 of 2 sites" in done.stderr
    (history,) = server.glob("runs/*/history.json")
    (seconds,) = (entry["seconds"] for entry in json.loads(history.read_text()) if entry.get("round") == 1)
    assert seconds < 2 * TIMEOUT_S

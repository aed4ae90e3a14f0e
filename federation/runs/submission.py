"""Runs: a study submitted to a running server, watched and stopped; and the server of a simulation.

A simulation goes the same way as the real thing (same app, same submission), to a SuperLink that runs the
clients itself, on Ray, over the site folders of this machine.
"""

import hashlib
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from federation.approval.fab import APP, build
from federation.runs import reasons
from federation.runs.run_folder import Ended, read_note
from federation.server import reasons as server_reasons
from federation.server.start import start_superlink, this_start
from federation.superlink import reasons as superlink_reasons
from federation.superlink.control import control, read_server_config
from federation.system.process import Process, free_port, port_is_taken
from models.refusal import Refusal

if TYPE_CHECKING:
    from flwr.proto.federation_config_pb2 import SimulationConfig

MARK = "fedthorax: "  # begins what the server's app says to whoever watches the run

State = Ended | Literal["waiting", "running", "interrupted", "server down"]
UNDER_WAY: tuple[State, ...] = ("waiting", "running")
# Flower's words for it.
_STATES: Mapping[str, State] = {
    "pending": "waiting",
    "starting": "waiting",
    "running": "running",
    "finished:completed": "completed",
    "finished:failed": "failed",
    "finished:stopped": "stopped",
}


def build_app() -> tuple[bytes, str]:
    """The app that travels, and its SHA-256, by which a site approves it.

    The same files give the same bytes on every machine, so that a site which has installed the same release knows
    the hash beforehand.
    """
    app = build(APP)
    return app, hashlib.sha256(app).hexdigest()


def submit(folder: Path, run_config: Mapping[str, str]) -> int:
    """Start a run on the server in `folder`; its id. `run_config` may set the keys of the app's own config.

    Raises Refusal: E_NO_SERVER, E_SERVER_UNREACHABLE, E_CONTROL_FAILED.
    """
    from flwr.common.serde import user_config_to_proto
    from flwr.proto.control_pb2 import StartRunRequest
    from flwr.proto.fab_pb2 import Fab

    content, sha256 = build_app()
    request = StartRunRequest(
        fab=Fab(hash_str=sha256, content=content),
        override_config=user_config_to_proto(dict(run_config)),
        override_federation_config=_simulation(read_server_config(folder).simulated_sites),
    )
    with control(folder) as client:
        return int(client.StartRun(request).run_id)


def status(folder: Path, run_id: int) -> str:
    """Where a run stands: pending, starting, running, or finished:completed, :failed or :stopped.

    Raises Refusal: E_RUN_UNKNOWN and those of `submit`.
    """
    from flwr.proto.control_pb2 import ListRunsRequest

    with control(folder) as client:
        run = client.ListRuns(ListRunsRequest(run_id=run_id)).run_dict[run_id]
    return ":".join(filter(None, [run.status.status, run.status.sub_status]))


def state(folder: Path, run: Path) -> State:
    """Where the run in the folder `run` stands, asked of the server in `folder` unless its end was noted.

    A run that nobody saw the end of is "interrupted" where the server knows it no longer or was started anew since
    (Flower goes on calling it running for a while), and its server is "down" where that does not answer; either can be
    resumed. Raises Refusal E_RUN_FILES.
    """
    note = read_note(run)
    if note.ended:
        return note.ended
    try:
        known = _STATES.get(status(folder, note.run_id), "interrupted") if note.run_id else "interrupted"
        is_over = known in UNDER_WAY and note.server_start != this_start(folder)
        return "interrupted" if is_over else known
    except Refusal as refusal:
        return "interrupted" if refusal.reason is superlink_reasons.RUN_UNKNOWN else "server down"


def wait(folder: Path, run_id: int, on_line: Callable[[str], None]) -> str:
    """Give each line that the run logs at the server to `on_line` until the run ends; its status then.

    Raises Refusal: E_RUN_UNKNOWN and those of `submit`; E_SERVER_UNREACHABLE if the server ends meanwhile.
    """
    from flwr.proto.control_pb2 import StreamLogsRequest

    rest = ""
    with control(folder) as client:
        for piece in client.StreamLogs(StreamLogsRequest(run_id=run_id)):
            *lines, rest = (rest + piece.log_output).split("\n")
            for line in lines:
                on_line(line)
    if rest:
        on_line(rest)
    return status(folder, run_id)


def stop(folder: Path, run_id: int) -> None:
    """Stop a run.

    Raises Refusal: E_RUN_UNKNOWN and those of `submit`; E_CONTROL_FAILED if it has ended already.
    """
    from flwr.proto.control_pb2 import StopRunRequest

    with control(folder) as client:
        client.StopRun(StopRunRequest(run_id=run_id))


@contextmanager
def simulation_server(folder: Path, sites: Sequence[Path]) -> Iterator[Process]:
    """A server in `folder` that plays the nodes of `sites` itself, while the block lasts.

    The client finds its site as entry `node_config["partition-id"]` of the environment variable
    `FEDTHORAX_SIMULATED_SITES`, a list of folders joined by os.pathsep. There is no TLS and no node
    authentication: it listens on a free port of loopback, for the length of one study.

    Raises Refusal: E_NO_SITES, E_EXISTS if the folder holds a real server, E_PORT_IN_USE if a simulation runs
    in it already, E_NOT_STARTED.
    """
    if not sites or not all(site.is_dir() and os.pathsep not in str(site.resolve()) for site in sites):
        raise Refusal(reasons.NO_SITES, private=os.pathsep.join(map(str, sites)))
    folder = folder.resolve()
    settings = folder / "server.toml"
    if settings.exists():
        _refuse_other_server(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings.write_text(f"# A simulation.\nport = {free_port()}\nsimulated_sites = {len(sites)}\n")
    try:
        # Ray's sockets lie in its folder, and a socket's path has at most 107 bytes: `folder` may be too deep.
        with (
            tempfile.TemporaryDirectory(prefix="ray-") as ray,
            start_superlink(
                folder,
                config=read_server_config(folder),
                arguments=["--insecure", "--simulation"],
                FEDTHORAX_SIMULATED_SITES=os.pathsep.join(str(site.resolve()) for site in sites),
                RAY_TMPDIR=ray,
                # Ray listens beyond loopback and starts whatever it is sent; with a token, only from us.
                RAY_AUTH_MODE="token",
                RAY_AUTH_TOKEN=secrets.token_hex(32),
            ) as superlink,
        ):
            yield superlink
    finally:
        settings.unlink()


def _refuse_other_server(folder: Path) -> None:
    """Refuse a folder that is in use; what a simulation left that was killed is none."""
    config = read_server_config(folder)
    if not config.simulated_sites:
        raise Refusal(server_reasons.EXISTS, private=str(folder))
    if port_is_taken(config.host, config.port):
        raise Refusal(server_reasons.PORT_IN_USE, port=config.port)


def _simulation(sites: int) -> "SimulationConfig | None":
    """One simulated node for each site, as many at a time as there are processors."""
    from flwr.proto.federation_config_pb2 import SimulationConfig

    if not sites:
        return None
    # Without a bound Ray makes a worker, each with its own torch, for every processor of the machine.
    workers = min(sites, os.cpu_count() or 1)
    return SimulationConfig(num_supernodes=sites, client_resources_num_cpus=1, init_args_num_cpus=workers)

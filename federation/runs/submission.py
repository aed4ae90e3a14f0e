"""Submit a run to a running server, follow and stop it; and start the server of a simulation.

A simulation uses the same app and the same submission as a real run. Its SuperLink runs the clients itself, with Ray,
on the site folders of this machine.
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
    from federation.flower.control import SimulationConfig

MARK = "fedthorax: "  # prefix of the ServerApp's lines that are shown to those who follow the run

State = Ended | Literal["waiting", "running", "interrupted", "server down"]
UNDER_WAY: tuple[State, ...] = ("waiting", "running")
# Flower's names of these states.
_STATES: Mapping[str, State] = {
    "pending": "waiting",
    "starting": "waiting",
    "running": "running",
    "finished:completed": "completed",
    "finished:failed": "failed",
    "finished:stopped": "stopped",
}


def build_app() -> tuple[bytes, str]:
    """Return the app that is sent to the sites, and its SHA-256, by which a site approves it.

    The same files give the same bytes on every machine. A site that has installed the same release therefore knows
    the hash in advance.
    """
    app = build(APP)
    return app, hashlib.sha256(app).hexdigest()


def require_reachable(folder: Path) -> None:
    """Ask the server in `folder` for its runs, to know that it answers. Raises as `submit` does."""
    from federation.flower.control import ListRunsRequest

    with control(folder) as client:
        client.ListRuns(ListRunsRequest(limit=1))


def submit(folder: Path, run_config: Mapping[str, str]) -> int:
    """Start a run on the server in `folder` and return its id. `run_config` may set keys of the app's own config.

    Raises Refusal: E_NO_SERVER, E_SERVER_UNREACHABLE, E_CONTROL_FAILED.
    """
    from federation.flower.control import StartRunRequest
    from federation.flower.messages import Fab, user_config_to_proto

    content, sha256 = build_app()
    request = StartRunRequest(
        fab=Fab(hash_str=sha256, content=content),
        override_config=user_config_to_proto(dict(run_config)),
        override_federation_config=_simulation(read_server_config(folder).simulated_sites),
    )
    with control(folder) as client:
        return int(client.StartRun(request).run_id)


def status(folder: Path, run_id: int) -> str:
    """Return a run's status: pending, starting, running, or finished:completed, :failed or :stopped.

    Raises Refusal: E_RUN_UNKNOWN and those of `submit`.
    """
    from federation.flower.control import ListRunsRequest

    with control(folder) as client:
        run = client.ListRuns(ListRunsRequest(run_id=run_id)).run_dict[run_id]
    return ":".join(filter(None, [run.status.status, run.status.sub_status]))


def state(folder: Path, run: Path) -> State:
    """Return the state of the run in the folder `run`: as recorded, or as the server in `folder` reports it.

    A run without a recorded end is "interrupted" if the server does not know it any more or has been restarted since
    (Flower reports it as running for a while). It is "server down" if the server does not respond. Both can be
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
    """Call `on_line` with each log line of the run until the run ends; return its status.

    Raises Refusal: E_RUN_UNKNOWN and those of `submit`; E_SERVER_UNREACHABLE if the server ends before the run.
    """
    from federation.flower.control import StreamLogsRequest

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

    Raises Refusal: E_RUN_UNKNOWN and those of `submit`; E_CONTROL_FAILED if it has already ended.
    """
    from federation.flower.control import StopRunRequest

    with control(folder) as client:
        client.StopRun(StopRunRequest(run_id=run_id))


@contextmanager
def simulation_server(folder: Path, sites: Sequence[Path]) -> Iterator[Process]:
    """Start a server in `folder` that simulates the nodes of `sites`; stop it at the end of the block.

    The client finds its site as entry `node_config["partition-id"]` of the environment variable
    `FEDTHORAX_SIMULATED_SITES`, a list of folders joined by os.pathsep. There is no TLS and no node authentication:
    the server listens on a free port of loopback, for one study only.

    Raises Refusal: E_NO_SITES, E_EXISTS if the folder contains a real server, E_PORT_IN_USE if a simulation already
    runs in it, E_NOT_STARTED.
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
        # Ray's sockets are in its folder. A socket's path has at most 107 bytes, and `folder` may be longer.
        with (
            tempfile.TemporaryDirectory(prefix="ray-") as ray,
            start_superlink(
                folder,
                config=read_server_config(folder),
                arguments=["--insecure", "--simulation"],
                FEDTHORAX_SIMULATED_SITES=os.pathsep.join(str(site.resolve()) for site in sites),
                RAY_TMPDIR=ray,
                # Ray listens beyond loopback and executes what it receives. The token restricts it to this process.
                RAY_AUTH_MODE="token",
                RAY_AUTH_TOKEN=secrets.token_hex(32),
            ) as superlink,
        ):
            yield superlink
    finally:
        settings.unlink()


def _refuse_other_server(folder: Path) -> None:
    """Refuse a folder that is in use. The files of a simulation that was killed do not count as use."""
    config = read_server_config(folder)
    if not config.simulated_sites:
        raise Refusal(server_reasons.EXISTS, private=str(folder))
    if port_is_taken(config.host, config.port):
        raise Refusal(server_reasons.PORT_IN_USE, port=config.port)


def _simulation(sites: int) -> "SimulationConfig | None":
    """One simulated node for each site; as many run at once as there are processors."""
    from federation.flower.control import SimulationConfig

    if not sites:
        return None
    # Without this bound Ray starts one worker, each with its own torch, for every processor of the machine.
    workers = min(sites, os.cpu_count() or 1)
    return SimulationConfig(num_supernodes=sites, client_resources_num_cpus=1, init_args_num_cpus=workers)

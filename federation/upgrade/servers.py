"""A study's server: its files with a format, whether a run is under way, and the sites that it would not accept."""

from importlib.metadata import version
from pathlib import Path

from federation.enrolment import registry
from federation.protocol.versions import who_must_upgrade
from federation.runs.listing import last_versions
from federation.runs.run_folder import unfinished
from federation.runs.submission import UNDER_WAY, state
from federation.superlink.control import read_server_config
from federation.system.process import LOOPBACK, port_is_taken
from federation.upgrade.plan import Commands, Plan, Store, make_plan, undo


def stores(folder: Path) -> list[Store]:
    """Return the files of a server that have a format of their own. Flower's state.db is made again if it is lost."""
    return [Store(folder / registry.FILE, registry.FORMAT)]


def plan_server(folder: Path) -> Plan:
    """Return what this version would change at a server, and which runs are under way.

    Raises Refusal: those of `read_server_config`, E_RUN_FILES.
    """
    running = is_running(folder)
    under_way = [run for run in unfinished(folder) if running and state(folder, folder / "runs" / run) in UNDER_WAY]
    waits = [f"the run {run} is under way: wait for its end, or `fedthorax study stop {run}`" for run in under_way]
    own, told = version("fedthorax"), last_versions(folder)
    unlike = {site: why for site, theirs in sorted(told.items()) if (why := who_must_upgrade(theirs, own))}
    waits += [f"{site} last had version {told[site]}: {why.says}" for site, why in unlike.items()]
    commands = Commands("fedthorax-server", "fedthorax server")
    return make_plan("server", folder, stores(folder), commands, running=running, waits_for=waits)


def undo_server(folder: Path) -> dict[str, int]:
    """Go back to the files from before the last upgrade. Raises what `undo` and `read_server_config` raise."""
    return undo(folder, stores(folder), what="server", is_running=lambda: is_running(folder))


def is_running(folder: Path) -> bool:
    return port_is_taken(LOOPBACK, read_server_config(folder).control_port)

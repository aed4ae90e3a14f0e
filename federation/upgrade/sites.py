"""A site: its files with a format, and whether a task is under way."""

from federation.node.start import LOCK
from federation.node.state import NodeState
from federation.secure_aggregation import store as masked_rounds
from federation.upgrade.plan import Commands, Plan, Store, make_plan, undo
from pipeline.cohort.store import FILE as COHORT_FILE
from pipeline.cohort.store import LOCK as COHORT_LOCK
from pipeline.cohort.store import SCHEMA, SCHEMA_VERSION
from pipeline.feeds.result_queue import queue_state
from pipeline.records import fhir_store
from pipeline.site.folder import Site
from pipeline.system.locks import is_held
from pipeline.system.sqlite_format import SqliteFormat
from pipeline.training import privacy_budget


def stores(site: Site) -> list[Store]:
    """Return the files of a site that have a format of their own, whether or not they exist."""
    folder = site.folder
    return [
        Store(folder / "gateway" / "secagg" / masked_rounds.FILE, masked_rounds.FORMAT),
        Store(folder / "privacy" / privacy_budget.FILE, privacy_budget.FORMAT),
        Store(site.fhir_store, fhir_store.FORMAT),
        Store(site.cohort_folder / COHORT_FILE, SqliteFormat(SCHEMA_VERSION, SCHEMA), made_again=True),
    ]


def plan_site(site: Site) -> Plan:
    """Return what this version would change at a site, and whether a task, an ingest or a delivery is under way."""
    running, state = is_running(site), NodeState.load(site.logs)
    waits = []
    if running and state and state.doing:
        waits.append("the node works on a task of a round; it lasts until its reply was sent")
    if is_held(site.cohort_folder / COHORT_LOCK):
        waits.append("an ingest is under way")
    if (queue := queue_state(site)) and queue.is_listening:
        waits.append("the listener for laboratory results runs: stop it, too")
    commands = Commands("fedthorax-node", "fedthorax node", after=("ingest",))
    return make_plan("site", site.folder, stores(site), commands, running=running, waits_for=waits)


def undo_site(site: Site) -> dict[str, int]:
    """Go back to the files from before the last upgrade; the gateway then learns from the ledger what they lack.

    Raises what `undo` raises.
    """
    return undo(site.folder, stores(site), what="node", is_running=lambda: is_running(site))


def is_running(site: Site) -> bool:
    return is_held(site.logs / LOCK)

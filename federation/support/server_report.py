"""The report on a study's server: its settings, certificates, hospitals as counts, runs as counts and codes.

No name of a hospital, a study or a run is in it, no key, no weights and no figure of a model. MLflow's address, which
may contain a password, comes from the environment and is not read.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from federation.enrolment.registry import FILE as REGISTRY
from federation.runs.listing import last_versions
from federation.runs.progress import rounds_of
from federation.runs.run_folder import read_history, read_note, read_study, run_names
from federation.runs.submission import State, state
from federation.server.start import valid_certificates
from federation.superlink.control import read_server_config
from federation.superlink.nodes import sites as registered_sites
from federation.superlink.reasons import NO_SERVER
from federation.support.log_summary import log_summary
from federation.support.sections import (
    databases,
    disk,
    head,
    known_word,
    listed_words,
    read_only,
    section,
    tally,
    version_word,
)
from federation.support.settings_summary import settings_summary
from federation.system.refusals_page import REASONS
from federation.upgrade.servers import is_running, stores
from models.refusal import Refusal

_LOGS = ("superlink.log", "superexec.log", "door.log", "door.err")
_PARTS = (REGISTRY, "state.db", "mlflow.db", "mlartifacts", "runs", "releases", "flower_home", "logs")
_MOST_RUNS = 20  # of the newest
# The newest certificate of each hospital.
_NEWEST = (
    "SELECT revoked IS NOT NULL, ends FROM certificates"
    " WHERE rowid IN (SELECT max(rowid) FROM certificates GROUP BY site)"
)


def server_report(folder: Path) -> dict[str, Any]:
    """Return the report as JSON values. Raises Refusal E_NO_SERVER."""
    if not (folder / "server.toml").is_file():
        raise Refusal(NO_SERVER, private=str(folder))
    return {
        **head(folder),
        "settings": section(lambda: settings_summary(read_server_config(folder))),
        "running": section(lambda: is_running(folder)),
        "certificates": section(lambda: _certificates(folder)),
        "hospitals": section(lambda: _hospitals(folder)),
        "runs": section(lambda: list(_runs(folder))),
        "newest_study": section(lambda: _newest_study(folder)),
        "databases": section(lambda: databases(stores(folder))),
        "disk": section(lambda: disk(folder, _PARTS)),
        "logs": section(lambda: log_summary(folder / "logs", _LOGS)),
    }


def _certificates(folder: Path) -> dict[str, str]:
    return {holder: until.isoformat() for holder, until in valid_certificates(folder).items()}


def _hospitals(folder: Path) -> dict[str, Any]:
    """Return how many hospitals are in each state, and which versions their nodes last reported."""
    if not (folder / REGISTRY).exists():  # nobody was invited yet
        return {}
    with read_only(folder / REGISTRY) as registry:
        (open_codes,) = registry.execute("SELECT count(*) FROM invitations WHERE used_by IS NULL").fetchone()
        newest = registry.execute(_NEWEST).fetchall()
    states = ("revoked" if revoked else "enrolled" if ends > time.time() else "expired" for revoked, ends in newest)
    versions = [version_word(each) for each in last_versions(folder).values()]
    return {
        "open_codes": open_codes,
        "states": tally(states, ("revoked", "enrolled", "expired")),
        "online": section(lambda: sum(site.online for site in registered_sites(folder))),
        "versions": tally(versions, set(versions)),
    }


def _runs(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the newest runs, the oldest of them first; they have no names."""
    for name in run_names(folder)[-_MOST_RUNS:]:
        yield section(partial(_run, folder, folder / "runs" / name))


def _run(folder: Path, run: Path) -> dict[str, Any]:
    rounds, note = rounds_of(read_history(run)), read_note(run)
    return {
        "begun": note.begun.isoformat(timespec="seconds"),
        "state": known_word(state(folder, run), listed_words(State)),
        "rounds": read_study(run).study.rounds,
        "rounds_done": len(rounds),
        "lost": tally((each["lost_for"] for each in rounds if each["lost"]), REASONS),
        "refused": tally(_refused(rounds), REASONS),
        "counted_in_the_last_round": len(rounds[-1]["sites"]) if rounds else 0,
    }


def _refused(rounds: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for each in rounds:
        yield from each.get("refused", {}).values()


def _newest_study(folder: Path) -> dict[str, Any] | None:
    """Return the settings of the newest run, or None if there is no run."""
    names = run_names(folder)
    return settings_summary(read_study(folder / "runs" / names[-1])) if names else None

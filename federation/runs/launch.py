"""Launch studies on a running server or in Flower's simulation, and follow them until they end."""

import re
import secrets
import shlex
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from configs import usual_studies
from federation.approval.presets import names_of
from federation.approval.studies import is_listed, study_digest
from federation.protocol.first_weights import bring_encoder, bring_release
from federation.protocol.study_config import Study
from federation.protocol.study_packages import bring_packages
from federation.runs import reasons
from federation.runs.first_models import check_first_models
from federation.runs.run_folder import Ended, RunNote, find_run, read_history, read_note, read_study, write_note
from federation.runs.site_demand import beyond_defaults
from federation.runs.submission import (
    MARK,
    UNDER_WAY,
    require_reachable,
    simulation_server,
    state,
    stop,
    submit,
    wait,
)
from federation.runs.tracking import how_to_see
from federation.runs.training_length import trained_long
from federation.server.start import this_start
from federation.strategy.flower_strategies import strategy_of
from federation.superlink.control import read_server_config
from models.reasons import SETTINGS_KEY
from models.refusal import Refusal
from models.settings import load_settings

Say = Callable[[str], None]
LAST_LINES = 12  # lines of the server's own log that are shown after a failed run
_CODE = re.compile(r"E_[A-Z_]+\b")  # at the begin of what the server says before a run ends with a refusal
ENDS: dict[str, Ended] = {"finished:completed": "completed", "finished:stopped": "stopped"}


@dataclass(frozen=True)
class Finished:
    """A completed run: its name, its release's folder, how to open its experiment, and warnings about its training."""

    run: str
    release: str
    mlflow: str
    warnings: list[Refusal]

    def to_json(self) -> dict[str, Any]:
        warnings = [{"code": each.code, "says": each.says} for each in self.warnings]
        return {"run": self.run, "release": self.release, "mlflow": self.mlflow, "warnings": warnings}


def plan(files: Sequence[Path]) -> list[Study]:
    """Read study files and return one study for each seed. All are checked before the first one starts.

    Raises Refusal: those of `load_settings` and `strategy_of`, and E_SETTINGS_KEY for a duplicate seed.
    """
    studies = []
    for file in files:
        study = load_settings(file, Study)
        seeds = study.study.seeds or (study.study.seed,)
        if len(set(seeds)) < len(seeds):
            raise Refusal(SETTINGS_KEY, file=file.name, problems="study.seeds: a seed appears twice")
        try:
            strategy_of(study)
        except Refusal as refusal:
            raise Refusal(refusal.reason, private=f"[strategy] in {file}", **refusal.numbers) from refusal
        studies += [study.with_seed(seed) for seed in seeds]
    return studies


def server_of(server: Path, sites: Sequence[Path] | None) -> AbstractContextManager[object]:
    """Start a simulation in the folder `server` for the block; without `sites`, use the server that runs there.

    Each of `sites` is a site's folder or a folder of site folders.
    """
    return (
        simulation_server(server, [site for folder in sites for site in _sites_in(folder)]) if sites else nullcontext()
    )


def _sites_in(folder: Path) -> list[Path]:
    within = sorted(file.parent for file in folder.glob("*/site.toml"))
    return within if within and not (folder / "site.toml").exists() else [folder]


def launch_all(
    studies: Sequence[Study], server: Path, say: Say, *, group: str = "", began: Say = lambda name: None
) -> list[Finished]:
    """Run studies one after the other on the server that runs in `server`; stop at the first that fails.

    Several studies form a group, named `group` or else the first study's name with four digits. `began` is called
    with the name of each run.
    Says first if they ask more of a hospital than it allows by default. Raises Refusal: those of `launch`, and
    E_SEED_USED.
    """
    if not read_server_config(server).simulated_sites:
        check_first_models(studies, server)
        if warning := beyond_defaults(studies):
            say(f"{warning}. {warning.remedy}")
    if len(studies) > 1:
        group = group or f"{studies[0].study.name}-{secrets.token_hex(2)}"
        say(f"group {group}: {len(studies)} runs, one after the other")
    finished: list[Finished] = []
    for study in studies:
        try:
            finished.append(launch(study, server, say, group=group, began=began))
        except BaseException:
            if left := len(studies) - len(finished) - 1:
                say(f"not started of the group's {len(studies)} runs: {left}")
            raise
    return finished


def launch(study: Study, server: Path, say: Say, *, group: str = "", began: Say = lambda name: None) -> Finished:
    """Run a study on the running server in `server`; `say` gets the progress, line by line.

    Raises Refusal: those of `strategy_of` and `submit`; E_RUN_STOPPED, E_RUN_FAILED if the run does not complete;
    those of `bring_release` if the study starts from a release, of `bring_encoder` if it tunes an encoder, and of
    `bring_packages`.
    """
    strategy_of(study)
    config = read_server_config(server)
    require_reachable(server)  # first: without a server, nothing is written
    name = f"{study.study.name}-{secrets.token_hex(4)}"
    folder = server / "runs" / name
    bring_encoder(study, server, folder)
    bring_release(study, server, folder)
    bring_packages(study, folder)
    if not config.simulated_sites:
        for part in study.own_parts:
            if part.kind != "strategy":
                say(f"each hospital must have approved the package of the {part.kind} {part.name}")
    if study.study.begin_from and not config.simulated_sites:
        say(f"each hospital must have approved the release {study.study.begin_from[:12]} that the study starts from")
    folder.mkdir(parents=True, exist_ok=True)
    write_note(folder, RunNote(begun=datetime.now(UTC), group=group))
    (folder / "study.json").write_text(study.model_dump_json(indent=1))
    say(f"run {name}: {study.strategy.name}, seed {study.study.seed}")
    if not config.simulated_sites:
        for line in (_to_approve(study), _list_to_approve(study), _warning(study)):
            if line:
                say(line)
    return _submit(study, server, name, say, began)


def _to_approve(study: Study) -> str:
    """Return what each hospital must approve first; "" if the default site settings already approve it."""
    digest = study_digest(study.model_dump_json())
    names = names_of(digest)
    if is_listed(names, usual_studies()):
        return ""
    named = f"the study {names[0]!r}" if names else f"the study {digest[:12]} (`fedthorax node approve-study`)"
    return f"each hospital must have approved {named}"


def _list_to_approve(study: Study) -> str:
    """Return that each hospital must approve the list of hospitals, if the study sums over them; else ""."""
    if not study.sums_answers:
        return ""
    return "each hospital must have approved the list of hospitals (`fedthorax node peers`, `node approve-peers`)"


def _warning(study: Study) -> str:
    """Return that the server will see each hospital's update, if it need not; "" if it must, or uses what it sees."""
    if study.study.synthetic or not study.could_mask:
        return ""
    warning = Refusal(reasons.UPDATES_SEEN, strategy=study.strategy.name)
    return f"{warning}. {warning.remedy}"


def resume(name: str, server: Path, say: Say, *, began: Say = lambda name: None) -> Finished:
    """Resume a run from its last checkpoint.

    Raises Refusal: E_RUN_UNKNOWN, E_RUN_UNDER_WAY, E_RUN_COMPLETE, and those of `launch`.
    """
    folder = find_run(server, name)
    stands = state(server, folder)
    if stands in UNDER_WAY:
        raise Refusal(reasons.RUN_UNDER_WAY)
    if stands == "completed":
        raise Refusal(reasons.RUN_COMPLETE)
    return _submit(read_study(folder), server, name, say, began)


def follow(name: str, server: Path, say: Say, *, began: Say = lambda name: None) -> Finished:
    """Follow an active run from its first line to its end. For a run that has ended, return its outcome.

    Raises Refusal: E_RUN_UNKNOWN, E_RUN_STOPPED, E_RUN_FAILED if it is not complete, and those of `wait`.
    """
    folder = find_run(server, name)
    if state(server, folder) in UNDER_WAY:
        began(name)
        try:
            return _follow(server, name, say)
        except Refusal:
            if read_note(folder).ended is None:
                raise
            # A simulation's server ends with its last run, perhaps before it could be asked for the outcome.
    stands = state(server, folder)
    if stands == "stopped":
        raise Refusal(reasons.RUN_STOPPED, run=name)
    if stands != "completed":
        raise Refusal(reasons.RUN_FAILED, status=stands, run=name)
    return _finished(server, name)


def stop_run(name: str, server: Path) -> None:
    """Stop a run. Raises Refusal: E_RUN_UNKNOWN, E_RUN_ENDED if it is not active, and those of `stop`."""
    folder = find_run(server, name)
    stands = state(server, folder)
    if stands not in UNDER_WAY:
        raise Refusal(reasons.RUN_ENDED, state=stands)
    stop(server, read_note(folder).run_id)
    _note_end(folder, "stopped")


def _submit(study: Study, server: Path, name: str, say: Say, began: Say) -> Finished:
    folder = server / "runs" / name
    run_id = submit(server, {"study": study.model_dump_json(), "run": name})
    taken = {"run_id": run_id, "server_start": this_start(server), "ended": None}
    write_note(folder, read_note(folder).model_copy(update=taken))
    began(name)
    try:
        return _follow(server, name, say)
    except KeyboardInterrupt:
        again = f"`fedthorax study resume {name} --server {shlex.quote(str(server))}`"
        simulated = read_server_config(server).simulated_sites
        say(f"stopping {name}; {again} {'with the same --simulate ' if simulated else ''}goes on with it")
        stop(server, run_id)
        _note_end(folder, "stopped")
        raise


def _follow(server: Path, name: str, say: Say) -> Finished:
    rest: deque[str] = deque(maxlen=LAST_LINES)
    is_explained = False

    def pass_on(line: str) -> None:
        nonlocal is_explained
        _, mark, text = line.partition(MARK)
        if mark:
            say(text)
            is_explained = _CODE.match(text) is not None
        else:
            rest.append(line)

    folder = server / "runs" / name
    status = wait(server, read_note(folder).run_id, pass_on)
    _note_end(folder, ENDS.get(status, "failed"))
    if status != "finished:completed":
        if status == "finished:stopped":
            raise Refusal(reasons.RUN_STOPPED, run=name)
        # After a refusal, Flower's log has only the stack trace of what was just said in words.
        why = "" if is_explained else "\n".join(["", *rest])
        raise Refusal(reasons.RUN_FAILED, status=status, run=name, private=f"{server / 'logs'}{why}")
    return _finished(server, name)


def _note_end(folder: Path, ended: Ended) -> None:
    write_note(folder, read_note(folder).model_copy(update={"ended": ended}))


def _finished(server: Path, name: str) -> Finished:
    folder = server / "runs" / name
    return Finished(name, str(folder / "release"), how_to_see(server, folder), trained_long(read_history(folder)))

"""Launch a study: hand it to a running server, or to Flower's simulation, and follow it to its end."""

import secrets
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from federation import reasons
from federation.rounds.flower_strategies import build_strategy
from federation.rounds.tracking import tracking_uri
from federation.server.control import read_server_config
from federation.studies.runs import MARK, simulation_server, stop, submit, wait
from federation.study import Study
from models.refusal import Refusal

Say = Callable[[str], None]


@dataclass(frozen=True)
class Finished:
    """A completed run: its name, its release's folder, and how to open its experiment."""

    run: str
    release: str
    mlflow: str

    def to_json(self) -> dict[str, str]:
        return asdict(self)


def launch(study: Study, server: Path, say: Say) -> Finished:
    """Run a study on the running server in `server`; lines of progress go to `say`.

    Raises Refusal: what `build_strategy` and `submit` raise, and E_RUN_FAILED when the run is not completed.
    """
    build_strategy(study.strategy.name, study.strategy.options, sites=study.study.sites)
    read_server_config(server)  # before anything is written beside a server that is not there
    name = f"{study.study.name}-{secrets.token_hex(4)}"
    folder = server / "runs" / name
    folder.mkdir(parents=True)
    (folder / "study.json").write_text(study.model_dump_json(indent=1))
    say(f"run {name}")
    return _follow(study, server, name, say)


def resume(name: str, server: Path, say: Say) -> Finished:
    """Go on with a run from its last checkpoint. Raises Refusal: E_RUN_UNKNOWN, and what `launch` raises."""
    path = server / "runs" / name / "study.json"
    if not path.is_file():
        raise Refusal(reasons.RUN_UNKNOWN, private=str(path))
    return _follow(Study.model_validate_json(path.read_text()), server, name, say)


def simulate_study(study: Study, server: Path, sites: Sequence[Path], say: Say) -> Finished:
    """Run a study over site folders of this machine on Flower's simulation; results lie under `server`."""
    with simulation_server(server, sites):
        return launch(study, server, say)


def _follow(study: Study, server: Path, name: str, say: Say) -> Finished:
    def pass_on(line: str) -> None:
        _, mark, text = line.partition(MARK)
        if mark:
            say(text)

    run_id = submit(server, {"study": study.model_dump_json(), "run": name})
    try:
        status = wait(server, run_id, pass_on)
    except KeyboardInterrupt:
        say(f"stopping {name}; `fedthorax study resume {name}` goes on with it")
        stop(server, run_id)
        raise
    if status != "finished:completed":
        raise Refusal(reasons.RUN_FAILED, status=status, run=name, private=str(server / "logs"))
    release = server / "runs" / name / "release"
    mlflow = Path(sys.executable).with_name("mlflow")
    show = f"MLFLOW_DISABLE_TELEMETRY=true {mlflow} ui --backend-store-uri {tracking_uri(server.resolve())}"
    return Finished(name, str(release), show)

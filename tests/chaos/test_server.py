"""Faults of the study's server: killed, full, its certificate over, its databases damaged. docs/reliability.md."""

import json
import shutil
import sqlite3
import subprocess
from pathlib import Path

import pytest

from federation.server.start import SUPERLINK
from models.release import load_release
from tests.chaos.federation import Federation, finished, kill_member, run_name

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]


def release_of(here: Federation, run) -> bytes:
    """The weights that a run released, byte for byte."""
    folder = here.run_folder(run) / "release"
    load_release(folder)
    return (folder / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(federation_of_three: Federation) -> bytes:
    """The weights of a study of three rounds to which nothing happened."""
    federation_of_three.restore()
    run = federation_of_three.run_study(rounds=3, quorum=3)
    finished(run)
    return release_of(federation_of_three, run)


def test_f5_a_killed_server_app_loses_nothing(three: Federation, undisturbed: bytes):
    """Flower does not go on with such a run; `study resume` does, to the same weights bit for bit."""
    run = three.run_study(rounds=3, quorum=3)
    run.wait_for("round 1 of 3", seconds=240)
    kill_member(three.server, "flwr-serverapp")
    assert run.wait(seconds=120) == 1
    assert "E_RUN_FAILED" in run.text()
    again = three.resume(run)
    text = finished(again)
    assert "going on after round" in text
    assert [entry["round"] for entry in three.rounds(run)] == [1, 2, 3]
    assert release_of(three, run) == undisturbed


def test_f4_a_killed_superlink_costs_one_round_at_most(three: Federation, undisturbed: bytes):
    """The whole server ends with it and is started again, as systemd does; the nodes find it by themselves."""
    run = three.run_study(rounds=3, quorum=3)
    run.wait_for("round 1 of 3", seconds=240)
    kill_member(three.server, SUPERLINK)
    assert run.wait(seconds=120) == 1
    assert three.server.wait(seconds=60) != 0
    three.start_server()
    three.wait_online(seconds=120)
    again = three.resume(run)
    text = finished(again)
    assert "going on after round 1 of 3" in text or "going on after round 2 of 3" in text
    assert release_of(three, run) == undisturbed


def test_f8_a_full_disk_at_the_server_is_a_code_and_the_run_goes_on_when_there_is_room(three: Federation):
    runs = three.server_folder / "runs"
    runs.mkdir(exist_ok=True)
    aside = three.server_folder / "runs-before"
    shutil.move(runs, aside)
    runs.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", runs], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("only root can make a small disk")
    try:
        run = three.run_study(rounds=3)
        assert run.wait(seconds=400) == 1
        assert "E_CHECKPOINT_WRITE" in run.text() or "E_SERVER_DISK" in run.text()
        assert "Traceback" not in run.text()
        subprocess.run(["mount", "-o", "remount,size=256m", runs], check=True)
        finished(three.resume(run))
        assert [entry["round"] for entry in three.rounds(run)] == [1, 2, 3]
    finally:
        subprocess.run(["umount", "--lazy", runs], check=True)
        runs.rmdir()
        shutil.move(aside, runs)


def test_f17_a_certificate_that_ends_during_a_run_shuts_its_site_out(three: Federation):
    """As told by the server's registry; the run goes on with the others, and the node says why."""
    run = three.run_study(rounds=4)
    run.wait_for("round 1 of 4", seconds=240)
    registry = three.server_folder / "sites.sqlite"
    with sqlite3.connect(registry) as db:
        (ends,) = db.execute("SELECT max(ends) FROM certificates WHERE site = 'west'").fetchone()
        db.execute("UPDATE certificates SET ends = 1 WHERE site = 'west'")
    try:
        finished(run)
        assert three.rounds(run)[-1]["sites"] == ["north", "south"]
        three.nodes["west"].wait_for("E_CERTIFICATE", seconds=180)
    finally:
        with sqlite3.connect(registry) as db:
            db.execute("UPDATE certificates SET ends = ? WHERE site = 'west'", (ends,))
        three.nodes["west"].interrupt()
        three.start_node("west")


@pytest.mark.parametrize("database", ["state.db", "sites.sqlite"])
def test_f18_a_damaged_database_fails_closed_and_its_backup_is_enough(three: Federation, database: str, tmp_path: Path):
    three.server.interrupt()
    path = three.server_folder / database
    rest = [path.with_name(path.name + end) for end in ("-wal", "-shm")]
    shutil.copy(path, tmp_path / database)
    for each in rest:
        each.unlink(missing_ok=True)
    path.write_bytes(b"this is no database " * 1000)
    broken = three.start("server", "start", three.server_folder)
    assert broken.wait(seconds=120) == 1
    assert "E_" in broken.text()
    assert "Traceback" not in broken.text()
    for each in (path, *rest):
        each.unlink(missing_ok=True)
    shutil.copy(tmp_path / database, path)
    three.start_server()
    three.wait_online()
    finished(three.run_study(rounds=1))


def test_f19_without_mlflow_a_study_goes_on_and_its_figures_wait(three: Federation):
    """A tracking server that is not there: every figure waits in the run's folder, and the study completes."""
    three.server.interrupt()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        three.start_server()
    three.wait_online()
    run = three.run_study(rounds=2)
    text = finished(run)
    assert "MLflow is not responding" in text
    waiting = [json.loads(line) for line in (three.run_folder(run) / "tracking.jsonl").read_text().splitlines()]
    assert [each["step"] for each in waiting if each["what"] == "figures"] == [1, 2, 2]
    three.server.interrupt()
    three.start_server()  # with its own MLflow again
    three.wait_online()
    finished(three.run_study(rounds=1))
    assert not (three.run_folder(run) / "tracking.jsonl").exists()
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{three.server_folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("chaos")
    found = client.search_runs([experiment.experiment_id], f"tags.`mlflow.runName` = '{run_name(run)}'")
    assert found[0].info.status == "FINISHED"
    assert found[0].data.metrics["round_sites"] == 3

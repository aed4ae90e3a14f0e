"""Faults of the server: killed, full disk, expired certificate, damaged databases (see docs/reliability.md)."""

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
    """Return the bytes of the weights that a run released."""
    folder = here.run_folder(run) / "release"
    load_release(folder)
    return (folder / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(federation_of_three: Federation) -> bytes:
    """The weights of a study of three rounds without faults."""
    federation_of_three.restore()
    run = federation_of_three.run_study(rounds=3, quorum=3)
    finished(run)
    return release_of(federation_of_three, run)


def test_f5_run_resumes_with_same_weights_after_server_app_is_killed(three: Federation, undisturbed: bytes):
    """Flower cannot continue such a run. `study resume` can, and gives the same weights, bit for bit."""
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


def test_f4_killed_superlink_costs_at_most_one_round(three: Federation, undisturbed: bytes):
    """The whole server ends and is restarted, as by systemd. The nodes reconnect by themselves."""
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


def test_f8_full_disk_at_server_ends_the_run_which_resumes_with_space(three: Federation):
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


def test_f17_certificate_that_expires_during_a_run_excludes_its_site(three: Federation):
    """The registry sets the expiry in the past. The run continues with the other sites; the node reports the reason."""
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
def test_f18_damaged_database_prevents_start_until_restored_from_backup(
    three: Federation, database: str, tmp_path: Path
):
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


def test_f19_study_continues_without_mlflow_and_metrics_are_queued(three: Federation):
    """The tracking server is unreachable: metrics are queued in the run's folder, and the study completes."""
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
    three.start_server()  # restart with the default MLflow
    three.wait_online()
    finished(three.run_study(rounds=1))
    assert not (three.run_folder(run) / "tracking.jsonl").exists()
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{three.server_folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("chaos")
    found = client.search_runs([experiment.experiment_id], f"tags.`mlflow.runName` = '{run_name(run)}'")
    assert found[0].info.status == "FINISHED"
    assert found[0].data.metrics["round_sites"] == 3

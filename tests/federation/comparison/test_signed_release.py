"""From a run to a signed release: contents of the release, refused runs, and refused changes of the release."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import monai.bundle
import pytest
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from federation.comparison.signed_release import KEY, RELEASED, Released, describe, release_run
from federation.runs.listing import final_values
from federation.runs.results import RESULTS, Results
from federation.runs.tracking import Tracker, tracking_uri
from models.attacks import Attacks, Control
from models.network import build_network
from models.network_settings import NetworkSettings
from models.refusal import Refusal
from models.release import ATTACKS, CARD, DESCRIPTION, WEIGHTS, add_attacks, card, load_release, save_release
from models.signature import SIGNATURE, new_private_key
from pipeline.bundle import INFERENCE, METADATA, MODEL
from tests.helpers.descriptions import description
from tests.helpers.results_factory import make_results
from tests.helpers.summed_results import make_secure_results

pytestmark = pytest.mark.slow

RUN = "severe-covid-1"
SMALL = NetworkSettings(architecture="resnet10", widen_factor=0.125)
REASON = "one hospital's\n## protocol, | known"


def make_run(server: Path, **changes: Any) -> Results:
    """Create the folder of a finished run, as the server writes it, with a candidate with random weights."""
    folder = server / "runs" / RUN
    described = description(network=SMALL, study="severe-covid", run=RUN)
    candidate = save_release(folder / "release", build_network(SMALL, seed=3), described)
    attacks = Attacks(
        release=candidate.sha256,
        software="test",
        membership_control=Control(value=1, needed=0.9),
        membership={},
        inversion_control=Control(value=30, needed=20),
        inversion=[],
    )
    add_attacks(folder / "release", attacks)
    results = make_results(("north", "south", "east"), **{"run": RUN, "release": candidate.sha256, **changes})
    (folder / RESULTS).write_text(results.model_dump_json())
    (folder / "study.json").write_text(results.study.model_dump_json())
    return results


def release(server: Path, **options: Any) -> Released:
    return release_run(RUN, server, lambda _: None, **options)


def code(server: Path, **options: Any) -> str:
    with pytest.raises(Refusal) as caught:
        release(server, **options)
    assert str(server) not in str(caught.value)
    return caught.value.code


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server with a completed run that is registered in MLflow. Tests must not change it."""
    folder = tmp_path_factory.mktemp("server")
    results = make_run(folder)
    tracker = Tracker(folder, results.study, RUN, lambda _: None)
    tracker.begin({})
    assert tracker.register(folder / "runs" / RUN / "release", results.release) == "1"
    tracker.end(completed=True)
    return folder


@pytest.fixture(scope="module")
def released(server: Path) -> Released:
    """The release of this run, in spite of an audit flag. Tests must not change it."""
    return release(server, reason=REASON)


@pytest.fixture
def copy(released: Released, tmp_path: Path) -> Path:
    """A copy of the release that tests may change."""
    return shutil.copytree(released.folder, tmp_path / "copy")


# --- what is released -------------------------------------------------------------------------------------


def test_release_is_the_signed_candidate_with_thresholds(server: Path, released: Released) -> None:
    read = load_release(released.folder, [released.public_key])
    candidate = load_release(server / "runs" / RUN / "release")
    assert read.sha256 == released.sha256 != candidate.sha256
    assert read.signed_by == released.key_sha256
    assert read.description.weights_sha256 == candidate.description.weights_sha256
    assert read.description.calibration == candidate.description.calibration
    assert read.description.thresholds()["severe"] == {"rule_out": 0.18, "rule_in": 0.55}
    evidence = read.description.operating_points["severe"]["rule_out"].evidence
    assert evidence is not None and evidence.positives >= 20 and evidence.low >= 0.8
    files = {str(path.relative_to(released.folder)) for path in released.folder.rglob("*") if path.is_file()}
    assert files == {WEIGHTS, DESCRIPTION, CARD, ATTACKS, METADATA, INFERENCE, MODEL, SIGNATURE}


def test_release_contains_the_provenance_of_the_run(server: Path, released: Released) -> None:
    results = Results.model_validate_json((server / "runs" / RUN / RESULTS).read_bytes())
    told = load_release(released.folder).description.provenance
    assert told is not None
    assert told.candidate == results.release
    assert (told.rounds_planned, told.rounds_lost) == (12, 1)
    assert {site: record.rounds for site, record in told.sites.items()} == {"north": 11, "south": 12, "east": 10}
    assert told.sites["north"].dropouts == {"E_UPDATE_NORM": 1}
    assert told.sites["east"].dropouts == {"E_SITE_MISSING": 2}
    assert told.sites["north"].patients == results.sites["north"].patients
    federated, without = results.models[0].figures["north"], results.model("without north")
    assert without is not None
    for name in ("auroc_severe", "auroc_severe_low", "brier_severe", "sens_at_rule_out_severe", "auroc_severe@female"):
        assert told.sites["north"].figures[name] == federated[name]
    assert told.sites["north"].left_out["auroc_severe"] == without.figures["north"]["auroc_severe"]
    assert told.audit is not None and results.audit is not None and results.audit.probe is not None
    assert told.audit.probe_accuracy == results.audit.probe.accuracy
    assert told.despite_flags == REASON


def test_release_contains_no_patient_counts(released: Released) -> None:
    text = (released.folder / DESCRIPTION).read_text() + (released.folder / CARD).read_text()
    assert "num-examples" not in text and "count_severe" not in text


def test_card_is_complete_and_reproducible(released: Released) -> None:
    text = (released.folder / CARD).read_text(encoding="utf-8")
    d = load_release(released.folder).description
    assert d.provenance is not None
    north = d.provenance.sites["north"]
    auroc = (north.figures[f"auroc_severe{end}"] for end in ("", "_low", "_high"))
    for said in (
        "Research use only. Not a medical device.",
        "SYNTHETIC hospitals",
        released.sha256,
        d.provenance.candidate,
        f"| north | {north.patients} | yes | 11 | 1 × E_UPDATE_NORM |",
        "| {:.3f} ({:.3f}–{:.3f}) |".format(*auroc),
        "| severe | rule out below | 0.180 | sensitivity 0.93 (0.84–0.98) | 45 | 81 | 3 |",
        "| severe | rule in from | 0.550 | specificity 0.93 (0.84–0.98) | 45 | 81 | 3 |",
        "## Reasons to doubt this model\n- **W_SHORTCUT_TAGS**, north: ",
        "because: one hospital's ## protocol, | known\n",
        "rounds planned, lost | 12, 1",
        "its performance elsewhere is not known",
        "Attacks measured",
    ):
        assert said in text
    attacks = Attacks.model_validate_json((released.folder / ATTACKS).read_bytes())
    assert card(d, released.sha256, attacks) == text


def test_external_evaluation_removes_the_limit_on_external_performance() -> None:
    results = make_results(("north", "south", "east"))
    internal = describe(description(), results, reason="")
    results.models[0].trained_at.remove("east")
    external = describe(description(), results, reason="")
    assert len(internal.limits) == len(external.limits) + 1
    assert external.provenance is not None and not external.provenance.sites["east"].trained


def test_masked_release_has_the_figures_of_all_patients_and_no_hospitals_own(tmp_path: Path) -> None:
    made = make_secure_results(3, run=RUN, release=make_run(tmp_path).release)
    (tmp_path / "runs" / RUN / RESULTS).write_text(made.model_dump_json())
    (tmp_path / "runs" / RUN / "study.json").write_text(made.study.model_dump_json())
    tracker = Tracker(tmp_path, made.study, RUN, lambda _: None)
    tracker.begin({})
    tracker.log_final(final_values(made))
    tracker.register(tmp_path / "runs" / RUN / "release", made.release)
    tracker.end(completed=True)
    assert code(tmp_path) == "E_AUDIT_FLAGS", "an audit in part needs a reason"
    done = release(tmp_path, reason="each hospital scored patients of its own")
    d = load_release(done.folder).description
    assert d.provenance is not None and d.provenance.sums is not None
    assert all(not site.figures for site in d.provenance.sites.values())
    assert d.provenance.sums.sites == {"severe": 3, "pcr_positive": 3}
    assert not [name for name in d.provenance.sums.together if "positives" in name or "negatives" in name]
    assert d.why_no_number("severe") is None
    text = (done.folder / CARD).read_text()
    assert "## Performance over all hospitals' test patients together" in text
    assert "## Performance at each hospital" not in text
    assert "W_AUDIT_IN_PART" in text
    assert "mean over hospitals" in text
    assert card(d, done.sha256, Attacks.model_validate_json((done.folder / ATTACKS).read_bytes())) == text
    client = MlflowClient(tracking_uri(tmp_path), tracking_uri(tmp_path))
    metrics = client.get_run(client.get_model_version_by_alias("severe-covid", RELEASED).run_id).data.metrics
    assert metrics["final/together/auroc_severe"] == pytest.approx(d.provenance.sums.together["auroc_severe"])


def test_masked_label_of_two_hospitals_gets_no_number() -> None:
    described = describe(description(), make_secure_results(3, few="severe"), reason="a test")
    assert described.provenance is not None and described.provenance.sums is not None
    assert described.provenance.sums.sites == {"pcr_positive": 3}
    assert described.why_no_number("severe") is not None
    assert described.why_no_number("pcr_positive") is None


def test_mlflow_marks_the_released_version(server: Path, released: Released) -> None:
    client = MlflowClient(tracking_uri(server), tracking_uri(server))
    version = client.get_model_version_by_alias("severe-covid", RELEASED)
    assert str(version.version) == released.version == "1"
    assert version.tags["release_sha256"] == released.sha256
    kept = {file.path for file in client.list_artifacts(version.run_id, RELEASED)}
    assert f"{RELEASED}/{SIGNATURE}" in kept


def test_private_key_stays_on_the_server_and_is_reused(server: Path, released: Released, tmp_path: Path) -> None:
    assert (server / KEY).stat().st_mode & 0o777 == 0o600
    again = release(server, reason=REASON, out=tmp_path / "again")
    assert again.key_sha256 == released.key_sha256
    assert again.sha256 == released.sha256, "the release of the same run has the same hash"
    secret = (server / KEY).read_bytes().split(b"\n")[1]
    assert not any(secret in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    own = tmp_path / "own.key"
    own.write_bytes(new_private_key())
    other = release(server, reason=REASON, out=tmp_path / "other", key=own)
    assert other.key_sha256 != released.key_sha256
    with pytest.raises(Refusal, match="E_SIGNATURE"):
        load_release(other.folder, [released.public_key])


def test_monai_loads_the_release(released: Released) -> None:
    network = monai.bundle.load(
        released.folder.name,
        bundle_dir=released.folder.parent,
        workflow_type="inference",
        source="github",
        device="cpu",
    )
    ours = load_release(released.folder).network.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in network.state_dict().items())


# --- what the scorer refuses ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [WEIGHTS, DESCRIPTION, CARD, ATTACKS, METADATA, INFERENCE, MODEL])
def test_altered_or_missing_file_is_refused(released: Released, copy: Path, name: str) -> None:
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(Refusal, match="E_SIGNATURE"):
        load_release(copy, [released.public_key])
    (copy / name).unlink()
    with pytest.raises(Refusal, match=r"E_SIGNATURE|E_NO_MODEL"):
        load_release(copy, [released.public_key])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda folder: (folder / SIGNATURE).unlink(), "E_NOT_SIGNED"),
        (lambda folder: (folder / SIGNATURE).write_text("{}"), "E_SIGNATURE"),
        (lambda folder: (folder / "models" / "__init__.py").write_text("print()"), "E_SIGNATURE"),
    ],
    ids=["unsigned", "no signature", "code beside the weights"],
)
def test_missing_signature_or_added_code_is_refused(
    released: Released, copy: Path, change: Callable[[Path], object], expected: str
) -> None:
    assert load_release(copy, [released.public_key]).sha256 == released.sha256
    change(copy)
    with pytest.raises(Refusal, match=expected):
        load_release(copy, [released.public_key])


# --- what is not released ---------------------------------------------------------------------------------


def nothing_written(server: Path) -> bool:
    return not any((server / "releases").glob("*")) if (server / "releases").exists() else True


def test_run_without_results_or_with_another_candidate_is_refused(tmp_path: Path) -> None:
    assert code(tmp_path) == "E_NO_SERVER"
    make_run(tmp_path)
    (tmp_path / "runs" / RUN / RESULTS).rename(tmp_path / "results.json")
    assert code(tmp_path) == "E_RESULTS"
    make_run(tmp_path, release="0" * 64)
    assert code(tmp_path, reason=REASON) == "E_CANDIDATE_OTHER"
    assert nothing_written(tmp_path)


@pytest.mark.parametrize("reason", ["", "  \n"])
def test_flagged_model_is_not_released_without_a_reason(tmp_path: Path, reason: str) -> None:
    make_run(tmp_path)
    assert code(tmp_path, reason=reason) == "E_AUDIT_FLAGS"
    assert nothing_written(tmp_path) and not (tmp_path / KEY).exists()


def test_model_at_chance_is_not_released_without_a_reason(tmp_path: Path) -> None:
    sound = make_results(("north", "south", "east"), histograms=False)
    for figures in sound.models[0].figures.values():
        figures |= {"auroc_severe": 0.5, "auroc_severe_low": 0.4, "auroc_severe_high": 0.6}
    made = make_run(tmp_path, models=sound.models)
    assert made.audit is not None
    made.audit.flags.clear()
    (tmp_path / "runs" / RUN / RESULTS).write_text(made.model_dump_json())
    lines: list[str] = []
    with pytest.raises(Refusal) as refused:
        release_run(RUN, tmp_path, lines.append)
    assert refused.value.code == "E_AUDIT_FLAGS" and "W_AT_CHANCE" in refused.value.says
    assert any("severe may be no better than chance" in line for line in lines)
    assert nothing_written(tmp_path)
    described = describe(description(), made, reason="a test")
    assert described.provenance is not None
    assert [flag.code for flag in described.provenance.doubts] == ["W_AT_CHANCE"]
    assert "because: a test" in card(described, "0" * 64)


def test_altered_candidate_is_refused(tmp_path: Path) -> None:
    make_run(tmp_path)
    weights = tmp_path / "runs" / RUN / "release" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    assert code(tmp_path, reason=REASON) == "E_MODEL_ALTERED"


def test_release_is_never_overwritten(server: Path, released: Released) -> None:
    before = {path: path.stat().st_mtime_ns for path in released.folder.rglob("*")}
    assert code(server, reason=REASON) == "E_RELEASE_EXISTS"
    assert before == {path: path.stat().st_mtime_ns for path in released.folder.rglob("*")}


KILLED = """
import os, signal, sys
from pathlib import Path
from federation.comparison import signed_release

signed_release.sign = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
run, server, out, reason = sys.argv[1:]
signed_release.release_run(run, Path(server), print, out=Path(out), reason=reason)
"""


def test_next_release_removes_what_a_killed_one_left(server: Path, tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, RUN, server, tmp_path / "out", REASON], check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert list(left.rglob("model.safetensors"))
    release(server, out=tmp_path / "out", reason=REASON)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "out.pub"}


def test_invalid_signing_key_is_refused(tmp_path: Path) -> None:
    make_run(tmp_path)
    (tmp_path / "own.key").write_text("no key")
    assert code(tmp_path, reason=REASON, key=tmp_path / "own.key") == "E_SIGNING_KEY"
    assert nothing_written(tmp_path)


def test_mlflow_outage_leaves_no_partial_release(server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "folder" / "model"

    def outage(*_: object, **__: object) -> None:
        raise MlflowException("the connection was refused")

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", outage)
    assert code(server, reason=REASON, out=out) == "E_MLFLOW_SILENT"
    assert not any(out.parent.iterdir())


def test_unregistered_candidate_is_refused(server: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(server, tmp_path / "server", ignore=shutil.ignore_patterns("releases"))
    folder = moved / "runs" / RUN
    other = save_release(
        folder / "release", build_network(SMALL, seed=4), description(network=SMALL, study="severe-covid", run=RUN)
    )
    content = json.loads((folder / RESULTS).read_text()) | {"release": other.sha256}
    (folder / RESULTS).write_text(json.dumps(content))
    assert code(moved, reason=REASON) == "E_MLFLOW_SILENT"
    assert nothing_written(moved)

"""A round at a site in a private study: the budget is charged before training, and no training loss is reported."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

from federation.client import client_app
from federation.client.site_tasks import Trained, train_site
from federation.protocol.flat_weights import pack
from federation.protocol.half_precision import HALF, Precision, changes, rounded
from federation.protocol.metric_allowlist import FIGURES
from federation.protocol.reply_validation import Expected, encode, validate
from federation.protocol.study_config import Study, WireTable
from models.network import build_network
from models.refusal import Refusal
from pipeline.site.folder import Site
from pipeline.training import private_training
from pipeline.training.privacy_budget import spent_epsilon, step_costs
from tests.helpers.fake_grid import over_the_wire

pytestmark = pytest.mark.slow

DELTA = 1e-5
STUDY = Study.model_validate(
    {
        "study": {"name": "x", "rounds": 4, "local_epochs": 1, "sites": 1, "quorum": 1},
        "network": {"architecture": "resnet10", "widen_factor": 1 / 16, "norm": "group"},
        "training": {"learning_rate": 0.001},
        "privacy": {"noise_multiplier": 4.0, "sample_rate": 0.5, "delta": DELTA},
    }
)
ARRAYS, BUFFERS = pack(build_network(STUDY.network, seed=1))


@pytest.fixture
def site(small_site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """The small hospital with a separate privacy budget and a patient minimum that it reaches."""
    table = small_site.settings.site.model_copy(update={"min_patients": 2})
    settings = small_site.settings.model_copy(update={"site": table}, deep=True)
    (tmp_path / "cohort").symlink_to(small_site.cohort_folder)
    monkeypatch.setattr("pipeline.training.privacy_budget.subprocess.run", _cost)
    return replace(small_site, folder=tmp_path, settings=settings)


def _cost(command: list[str], **_: object) -> SimpleNamespace:
    """Run Opacus in this process, because a separate process takes seconds."""
    return SimpleNamespace(stdout=json.dumps(step_costs(float(command[-2]), float(command[-1])).tolist()))


def trained(site: Site, **options: object) -> Trained:
    return train_site(site, STUDY, ARRAYS, BUFFERS, round_number=1, **options)  # type: ignore[arg-type]


def test_private_round_reports_epsilon_but_no_loss(site: Site) -> None:
    first, second = trained(site, run="a"), trained(site, run="a")
    assert first.buffers == {}
    assert np.isfinite(first.arrays["weights"]).all()
    assert not np.array_equal(first.arrays["weights"], ARRAYS["weights"])
    assert not np.array_equal(first.arrays["weights"], second.arrays["weights"]), "each round draws new noise"
    assert "train_loss" not in first.metrics
    assert 0 < first.metrics["epsilon"] < second.metrics["epsilon"] < 100
    assert second.metrics["epsilon"] == spent_epsilon(site, delta=DELTA, run="a")
    assert set(first.metrics) <= set(FIGURES["train"])


def test_training_is_refused_beyond_the_privacy_budget(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.settings.privacy.max_epsilon = 0.01
    monkeypatch.setattr(private_training, "train_privately", lambda *_, **__: pytest.fail("it was trained"))
    with pytest.raises(Refusal) as caught:
        trained(site)
    assert caught.value.code == "E_PRIVACY_BUDGET"


def test_budget_is_charged_before_training(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(private_training, "train_privately", killed)
    with pytest.raises(KeyboardInterrupt):
        trained(site, run="a")
    assert spent_epsilon(site, delta=DELTA, run="a") > 0


def test_round_charged_by_the_gateway_is_not_charged_again(site: Site) -> None:
    assert "epsilon" not in trained(site, charged=True).metrics
    assert not (site.folder / "privacy").exists()


def test_study_without_privacy_is_not_charged_and_reports_loss(site: Site) -> None:
    plain = Study.model_validate(STUDY.model_dump(exclude={"privacy"}))
    found = train_site(site, plain, ARRAYS, BUFFERS, round_number=1)
    assert "epsilon" not in found.metrics and "train_loss" in found.metrics
    assert not (site.folder / "privacy").exists()


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_reply_of_a_network_without_buffers_is_valid_for_the_server(
    site: Site, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    monkeypatch.setattr(client_app, "site_folder", lambda _: site.folder)
    monkeypatch.setattr(client_app.Site, "open", lambda _: site)
    monkeypatch.delenv("FEDTHORAX_SITE_DIR", raising=False)  # so that the app does not open a log file
    monkeypatch.setattr(logging.getLogger("fedthorax.site"), "propagate", True)  # restored after the test
    study = STUDY.model_copy(update={"wire": WireTable(precision=precision)})
    sent = rounded(ARRAYS, precision)
    content = RecordDict({"arrays": encode(sent), "config": ConfigRecord({"server-round": 1})})
    message = over_the_wire(Message(content, dst_node_id=1, message_type="train"))
    run_config = {"study": study.model_dump_json(), "run": "a"}
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=run_config)
    reply = over_the_wire(client_app.train(message, context))
    assert not reply.has_error()
    expected = changes(ARRAYS, sent) if precision == HALF else ARRAYS
    assert validate(reply, Expected(expected, BUFFERS, FIGURES["train"], 100)) is None

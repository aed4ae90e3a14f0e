"""The gateway accepts the tasks and the replies of the study's own app, for each kind of task.

The tests use synthetic patients and a small network. App and gateway exchange only the message.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from federation.client.site_tasks import calibrate_site, embed_site
from federation.protocol.flat_weights import WEIGHTS, pack
from federation.protocol.half_precision import UPDATE
from federation.protocol.metric_allowlist import APPEARANCE_SIZE, Kind
from federation.protocol.study_config import Study, WireTable
from federation.protocol.summed_answers import SUMMED, reported
from models.network import build_network
from models.refusal import Refusal
from pipeline.site.folder import Site
from tests.federation.gateway.messages import KINDS
from tests.federation.gateway.own_app import CONFIGS, DEPLOYED, STUDY, ask, let_out, make_site

IN_STEPS = STUDY.model_copy(update={"study": STUDY.study.model_copy(update={"local_steps": 3})})
PRIVATE = Study.model_validate(
    {
        **STUDY.model_dump(exclude_none=True),
        "network": {**STUDY.network.model_dump(), "norm": "group"},
        "privacy": {"noise_multiplier": 1.0, "sample_rate": 0.5},
    }
)
MASKED = Study.model_validate(
    {
        **STUDY.model_dump(exclude_none=True),
        "study": {**STUDY.study.model_dump(), "sites": 3, "quorum": 3},
        "strategy": {"name": "FedAvg"},
        "aggregation": {"secure": True},
    }
)
HALF = STUDY.model_copy(update={"wire": WireTable(precision="float16")})


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Shared by all tests: do not modify it."""
    return make_site(tmp_path_factory.mktemp("sites") / "north")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_complete_reply_of_our_own_app_passes(site: Site, kind: Kind) -> None:
    asked = ask(site, STUDY, kind, CONFIGS.get(kind, {}))
    told = let_out(site, kind, asked)
    assert told == {**asked.reply.metrics, **asked.reply.configs}
    expected = {
        "query.handshake": {"patients"},
        "train": {"train_loss", "auroc_pcr_positive"},
        "train.head": {"num-examples"},
        "evaluate.calibrate": {"slope_severe", "variance_slope_severe", "variance_intercept_severe", "distance_sd"},
        "evaluate.test": {"auroc_severe", "brier_severe", "sens_at_rule_in_severe", "auroc_severe_age_sex"},
        "evaluate.embed": {"num-examples"},
        "evaluate.assign": {"assigned_00", "assigned_01"},
    }
    (record,) = told.values()
    assert expected[kind] <= set(record)


def test_appearance_statistics_are_not_sent_if_the_site_forbids_them(site: Site) -> None:
    """The app still sends the calibration. It does not send what the gateway would refuse."""
    closed = site.settings.gateway.model_copy(update={"embedding_statistics": False})
    shut = replace(site, settings=site.settings.model_copy(update={"gateway": closed}))
    model = pack(build_network(STUDY.network, seed=1))
    typical = dict.fromkeys(("mean", "variance"), np.ones(APPEARANCE_SIZE, np.float32))
    told = calibrate_site(shut, STUDY, *model, typical).metrics
    assert set(calibrate_site(site, STUDY, *model, typical).metrics) - set(told) == {"distance_mean", "distance_sd"}
    with pytest.raises(Refusal, match="E_EMBEDDINGS"):
        embed_site(shut, STUDY, *model)


def test_reply_of_a_round_with_local_steps_passes(site: Site) -> None:
    assert let_out(site, "train", ask(site, IN_STEPS, "train", {}))["metrics"]["num-examples"] > 3


@pytest.mark.slow
@pytest.mark.parametrize("compute", ['precision = "fp16"', "checkpointing = true\nprefetch = 2"])
def test_reply_passes_however_it_was_computed(site: Site, tmp_path: Path, compute: str) -> None:
    """The gateway compares batch norm's counts and statistics with those of a round of this length."""
    folder = tmp_path / "north"
    shutil.copytree(site.folder, folder)
    with (folder / "site.toml").open("a") as settings:
        settings.write(f'\n[compute]\ndevice = "cpu"\n{compute}\n')
    other = Site.open(folder)
    assert let_out(other, "train", ask(other, STUDY, "train", {}))["metrics"]["num-examples"] > 3


@pytest.mark.parametrize("kind", ["train", "train.head", "evaluate.test"])
def test_reply_in_half_precision_passes(site: Site, kind: Kind) -> None:
    asked = ask(site, HALF, kind, CONFIGS.get(kind, {}))
    assert set(let_out(site, kind, asked)["metrics"]) == set(asked.reply.metrics["metrics"])
    if kind != "evaluate.test":
        (head,), (came,) = asked.reply.arrays["arrays"].values(), asked.task.arrays["arrays"].values()
        assert set(asked.reply.arrays["arrays"]) == {UPDATE + WEIGHTS}
        assert head.dtype == came.dtype == "float16"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["query.handshake", "evaluate.calibrate", "evaluate.test", "evaluate.assign"])
def test_reply_of_a_private_study_passes(site: Site, kind: Kind) -> None:
    config = DEPLOYED if kind == "evaluate.test" else CONFIGS.get(kind, {})
    assert let_out(site, kind, ask(site, PRIVATE, kind, config), PRIVATE)


@pytest.mark.parametrize("kind", list(SUMMED))
def test_part_of_a_sum_passes_with_all_counts_and_without_what_needs_a_threshold(site: Site, kind: Kind) -> None:
    asked = ask(site, MASKED, kind, {"audit": True} if kind == "evaluate.test" else {})
    told = let_out(site, kind, asked)["metrics"]
    table = SUMMED[kind]
    assert set(table.counts) <= set(told) <= {*table.counts, *table.means, "num-examples"}
    assert set(asked.reply.metrics["metrics"]) <= {*table.counts, *reported(kind), "num-examples"}
    assert [told[name] for name in table.counts if name.startswith("sites_")] == [1, 1][: len(table.counts)]
    expected = {
        "evaluate.calibrate": set(table.means),
        "evaluate.test": {"auroc_severe_squared", "auroc_severe_age_sex", "auroc_severe_outside_low"},
    }
    assert expected.get(kind, set()) <= set(told)

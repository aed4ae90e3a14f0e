"""The gateway accepts the tasks and the replies of the study's own app, for each kind of task.

The tests use synthetic patients and a small network. App and gateway exchange only the message.
"""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_object_tree

from federation.client.site_tasks import calibrate_site, embed_site
from federation.coordinator.inprocess import InProcessGrid
from federation.gateway import task_checks
from federation.gateway.about import about_site
from federation.gateway.flower_objects import Arrays, Content, read_content
from federation.gateway.reasons import REPLY_DAMAGED, TASK_DAMAGED
from federation.gateway.reply_checks import Rules, check_reply
from federation.gateway.schema import Schema, work_out
from federation.protocol.flat_weights import WEIGHTS, pack
from federation.protocol.half_precision import UPDATE, rounded
from federation.protocol.metric_allowlist import APPEARANCE_SIZE, LABELS, MAX_PROBED, Kind
from federation.protocol.patient_counts import count_patients
from federation.protocol.study_config import Study, WireTable
from federation.protocol.summed_answers import SUMMED, reported
from models.network import build_network
from models.refusal import Refusal
from pipeline.phantom.anatomy import Grid
from pipeline.phantom.cohorts import synthetic_site, write_cohort
from pipeline.phantom.hospitals import HOSPITALS
from pipeline.site.folder import Site
from tests.federation.gateway.messages import KINDS, Objects, objects_of, record_of

STUDY = Study.model_validate(
    {
        "study": {"name": "trial", "rounds": 3, "local_epochs": 1, "sites": 1, "quorum": 1, "synthetic": True},
        "network": {"architecture": "resnet10", "widen_factor": 0.0625},
        "preprocessing": {"method": 1, "shape": (16, 16, 16), "working_spacing_mm": 8.0},
    }
)
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
DEPLOYED = {f"{what}_{label}": 0.5 for what in ("slope", "intercept", "rule_out", "rule_in") for label in LABELS}
CONFIGS: dict[Kind, dict[str, Any]] = {"evaluate.test": {**DEPLOYED, "audit": True}, "evaluate.assign": {"probed": 2}}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A site with a cohort that allows histograms. Shared by all tests: do not modify it."""
    tables = "[training]\nthreads = 1\n[gateway]\nhistograms = true\nmin_local_steps = 1"
    site = synthetic_site(tmp_path_factory.mktemp("sites") / "north", "north", seed=1, min_patients=3, tables=tables)
    at = replace(HOSPITALS[0], scanner=replace(HOSPITALS[0].scanner, grid=Grid((30, 48, 48), (9.6, 7.8, 7.8))))
    # Many positive and many severe patients, so that every figure has enough of both classes, also for each sex.
    at = replace(at, mix=replace(at.mix, pcr_prevalence=0.7, severe_intercept=-2.5))
    write_cohort(site, at, patients=160, seed=1, settings=STUDY.preprocessing, anatomy="template")
    return site


class Asked(NamedTuple):
    """A task and its reply, as the gateway reads them."""

    task: Content
    task_objects: Objects
    reply: Content
    reply_objects: Objects
    schema: Schema


def ask(site: Site, study: Study, kind: Kind, config: Mapping[str, Any]) -> Asked:
    """Check a task of this kind as the gateway does, then let the app answer it."""
    schema = work_out(study.model_dump_json().encode())
    arrays, buffers = pack(build_network(study.network, seed=study.study.seed))
    models: dict[str, dict[str, np.ndarray]] = {"arrays": rounded(arrays, study.wire.precision), "buffers": buffers}
    models["typical"] = dict.fromkeys(("mean", "variance"), np.ones(APPEARANCE_SIZE, np.float32))
    models["probe"] = {"discriminants": np.zeros(MAX_PROBED * (schema.features + 1), np.float32)}
    records: dict[str, Any] = {name: record_of(models[name]) for name, specs in schema.takes(kind).items() if specs}
    records["config"] = ConfigRecord({"server-round": 1, **config})
    grid = InProcessGrid(study, [site.folder], "trial-0123abcd")
    task = Message(RecordDict(records), dst_node_id=1, message_type=kind)
    task.metadata.__dict__["_message_id"] = task.object_id

    task_checks.check_bounds(kind, schema, site.settings, count_patients(site).of_split["train"])
    tree, objects = get_object_tree(task), objects_of(task)
    content = read_content(tree.object_id, objects, TASK_DAMAGED)
    task_checks.check_content(content, task_checks.tree_ids(tree), schema.takes(kind), kind)
    task_checks.check_config(content.configs["config"], task_checks.task_kind(kind))

    (reply,) = grid.send_and_receive([task])
    assert not reply.has_error(), reply.error.reason
    answered = objects_of(reply)
    return Asked(content, objects, read_content(reply.object_id, answered, REPLY_DAMAGED), answered, schema)


def let_out(site: Site, kind: Kind, asked: Asked, study: Study = STUDY) -> dict[str, Any]:
    """All values of the reply that the gateway passes, by record."""
    rules = Rules(
        kind=kind,
        schema=asked.schema,
        came_in=Arrays(asked.task.arrays, asked.task_objects.__getitem__),
        patients=count_patients(site),
        min_patients=site.settings.site.min_patients,
        max_update=site.settings.gateway.max_update,
        histograms=site.settings.gateway.histograms,
        embeddings=site.settings.gateway.embedding_statistics,
        about=about_site(site, study.model_dump_json()) if kind == "query.handshake" else {},
    )
    values = check_reply(asked.reply, asked.reply_objects.__getitem__, rules)
    return {name: dict(cast(Mapping[str, Any], record)) for name, record in values.items()}


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

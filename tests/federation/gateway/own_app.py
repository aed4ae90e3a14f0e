"""The study's own app behind the gateway's checks: app and gateway exchange only the message. Synthetic patients."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_object_tree

from federation.coordinator.inprocess import InProcessGrid
from federation.gateway import task_checks
from federation.gateway.about import about_site
from federation.gateway.flower_objects import Arrays, Content, read_content
from federation.gateway.reasons import REPLY_DAMAGED, TASK_DAMAGED
from federation.gateway.reply_checks import Rules, check_reply
from federation.gateway.schema import Schema, work_out
from federation.protocol.flat_weights import pack
from federation.protocol.half_precision import rounded
from federation.protocol.metric_allowlist import APPEARANCE_SIZE, LABELS, MAX_PROBED, Kind
from federation.protocol.patient_counts import count_patients
from federation.protocol.study_config import Study
from models.network import SeverityNetwork, build_network
from pipeline.phantom.anatomy import Grid
from pipeline.phantom.cohorts import synthetic_site, write_cohort
from pipeline.phantom.hospitals import HOSPITALS
from pipeline.site.folder import Site
from tests.federation.gateway.messages import Objects, objects_of, record_of

STUDY = Study.model_validate(
    {
        "study": {"name": "trial", "rounds": 3, "local_epochs": 1, "sites": 1, "quorum": 1, "synthetic": True},
        "network": {"architecture": "resnet10", "widen_factor": 0.0625},
        "preprocessing": {"method": 1, "shape": (16, 16, 16), "working_spacing_mm": 8.0},
    }
)
DEPLOYED = {f"{what}_{label}": 0.5 for what in ("slope", "intercept", "rule_out", "rule_in") for label in LABELS}
CONFIGS: dict[Kind, dict[str, Any]] = {"evaluate.test": {**DEPLOYED, "audit": True}, "evaluate.assign": {"probed": 2}}


def make_site(folder: Path) -> Site:
    """Make a site with a cohort, in STUDY's preprocessing, that allows histograms."""
    tables = "[training]\nthreads = 1\n[gateway]\nhistograms = true\nmin_local_steps = 1"
    site = synthetic_site(folder, "north", seed=1, min_patients=3, tables=tables)
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


def ask(
    site: Site,
    study: Study,
    kind: Kind,
    config: Mapping[str, Any],
    *,
    model: SeverityNetwork | None = None,
    round_number: int = 1,
) -> Asked:
    """Check a task of this kind as the gateway does, then let the app answer it. `model`: default the seed's."""
    schema = work_out(study.model_dump_json().encode())
    arrays, buffers = pack(model or build_network(study.network, seed=study.study.seed))
    models: dict[str, dict[str, np.ndarray]] = {"arrays": rounded(arrays, study.wire.precision), "buffers": buffers}
    models["typical"] = dict.fromkeys(("mean", "variance"), np.ones(APPEARANCE_SIZE, np.float32))
    models["probe"] = {"discriminants": np.zeros(MAX_PROBED * (schema.features + 1), np.float32)}
    records: dict[str, Any] = {name: record_of(models[name]) for name, specs in schema.takes(kind).items() if specs}
    records["config"] = ConfigRecord({"server-round": round_number, **config})
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

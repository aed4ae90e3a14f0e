"""Checks of a task: run configuration, schema of the study, message content, round settings and site limits."""

import functools
import hashlib
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.config import get_fused_config_from_fab
from flwr.common.serde import run_from_proto, user_config_to_proto
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.run_pb2 import Run
from flwr.supercore.inflatable.inflatable_object import get_object_tree

from federation.approval import fab
from federation.gateway import schema, spool, task_checks
from federation.gateway.flower_objects import object_id, read_content
from federation.gateway.reasons import TASK_DAMAGED
from federation.gateway.schema import ArraySpec, Schema, first_model_of, schema_of, work_out
from federation.gateway.spool import Spool
from federation.ledger.chain import EMPTY, Head
from federation.protocol.flat_weights import WEIGHTS, pack
from federation.protocol.half_precision import UPDATE
from federation.protocol.metric_allowlist import FIGURES, LABELS, MAX_PROBED, Kind
from federation.protocol.study_config import Study, WireTable
from models.network import build_network
from models.network_settings import CHANNELS
from models.refusal import Refusal
from pipeline.site.folder import SiteSettings
from pipeline.training.privacy_budget import PrivacySettings, PrivateRound
from tests.federation.gateway.messages import (
    KINDS,
    MEAN,
    message,
    model,
    moments,
    npy,
    objects_of,
    record_of,
    schema_for,
)
from tests.helpers.module_time import set_time
from tests.helpers.pages import settings_under

SCHEMA = schema_for(40, 4)
STUDY = Study.model_validate({"study": {"name": "trial", "rounds": 3, "sites": 2, "quorum": 2}})


def code_of(check: Callable[..., object], *arguments: Any) -> str:
    """The error code of the refusal, or "" if the check passes."""
    try:
        check(*arguments)
    except Refusal as refusal:
        return refusal.code
    return ""


# --- the run configuration --------------------------------------------------------------------------------


def run_with(**config: Any) -> Run:
    return Run(run_id=7, fab_hash="a" * 64, override_config=user_config_to_proto(config))


def test_study_and_name_of_a_run_are_read_as_flower_reads_them() -> None:
    own = fab.build(fab.APP)
    assert task_checks.run_config(own, run_with(study="{}", run="trial-0123abcd")) == ("{}", "trial-0123abcd")


@pytest.mark.parametrize(
    "config",
    [{"study": "{}", "run": "../x"}, {"study": "{}"}, {"study": 1, "run": "a"}, {"study": "{}", "run": "a", "more": 1}],
)
def test_invalid_run_configuration_is_refused(config: dict[str, Any]) -> None:
    assert code_of(task_checks.run_config, fab.build(fab.APP), run_with(**config)) == "E_RUN_CONFIG"


@pytest.mark.parametrize(
    "table",
    [
        'study = ""\nrun = ""',
        'study = "{}"\nrun = "trial"',
        'run = "trial"',
        'study = ""\nrun = ""\nmore = 1',
        'study = ""\nrun = ""\n[tool.flwr.app.config.more]\nx = 1',
        'study = ""\n[tool.flwr.app.config.run]\nx = "trial"',
        'study = ""\nrun = ["trial"]',
        "",
    ],
)
@pytest.mark.parametrize("config", [{}, {"study": "{}", "run": "trial"}, {"run": "a"}, {"study": "{}", "more": 2}])
def test_accepted_run_configuration_equals_the_one_flower_reads(table: str, config: dict[str, Any]) -> None:
    text = (fab.APP / fab.CONFIG).read_text()
    begin, header, _ = text.partition("[tool.flwr.app.config]\n")
    app, run = fab.pack({fab.CONFIG: f"{begin}{header}{table}\n".encode()}), run_with(**config)
    try:
        flowers = get_fused_config_from_fab(app, run_from_proto(run))
    except ValueError:
        flowers = {}
    if set(flowers) == {"study", "run"} and flowers["run"]:
        assert task_checks.run_config(app, run) == (flowers["study"], flowers["run"])
    else:
        assert code_of(task_checks.run_config, app, run) == "E_RUN_CONFIG"


def test_app_that_is_not_an_archive_is_refused() -> None:
    assert code_of(task_checks.run_config, b"PK no archive", run_with(study="{}", run="a")) == "E_RUN_CONFIG"


# --- the schema of a study --------------------------------------------------------------------------------


def test_schema_of_a_study_matches_its_network() -> None:
    private = STUDY.model_copy(
        update={
            "network": STUDY.network.model_copy(update={"norm": "group"}),
            "privacy": PrivacySettings(noise_multiplier=1.0, sample_rate=0.1),
        }
    )
    for study in (STUDY, private):
        found = work_out(study.model_dump_json().encode())
        arrays, buffers = pack(build_network(study.network, seed=1))
        for specs, packed in ((found.arrays, arrays), (found.buffers, buffers)):
            assert {name: (spec.dtype, spec.length) for name, spec in specs.items()} == {
                name: (str(array.dtype), array.size) for name, array in packed.items()
            }
        assert (found.rounds, found.local_epochs, found.local_steps, found.batch_size) == (3, 2, 0, 8)
        assert found.private_round == study.private_round
        assert Schema.from_json(found.to_json()) == found
        assert bool(found.reaches) == (study.privacy is None)  # with noise, filters move further
    assert private.private_round is not None


def test_half_precision_tasks_carry_weights_and_replies_carry_updates() -> None:
    study = STUDY.model_copy(update={"wire": WireTable(precision="float16")})
    whole, half = (work_out(each.model_dump_json().encode()) for each in (STUDY, study))
    spec = ArraySpec("float16", whole.arrays[WEIGHTS].length)
    assert Schema.from_json(half.to_json()) == half
    for kind in KINDS:
        took, gave = half.takes(kind), half.gives(kind)
        assert took == ({**whole.takes(kind), "arrays": {WEIGHTS: spec}} if took else {})
        assert gave == {**whole.gives(kind), **({"arrays": {UPDATE + WEIGHTS: spec}} if "arrays" in gave else {})}
    assert half.reply_bytes("train") < 0.51 * whole.reply_bytes("train")


def test_task_in_another_precision_than_the_study_is_refused() -> None:
    half = schema_for(40, 4, precision="float16")
    tree, objects = task(lambda records: records.update(arrays=record_of({WEIGHTS: np.zeros(40, np.float16)})))
    content, ids = read_content(tree.object_id, objects, TASK_DAMAGED), task_checks.tree_ids(tree)
    assert code_of(task_checks.check_content, content, ids, half.takes("train"), "train") == ""
    assert code_of(task_checks.check_content, content, ids, SCHEMA.takes("train"), "train") == "E_TASK_RECORDS"
    tree, objects = task()
    content, ids = read_content(tree.object_id, objects, TASK_DAMAGED), task_checks.tree_ids(tree)
    assert code_of(task_checks.check_content, content, ids, half.takes("train"), "train") == "E_TASK_RECORDS"


def test_round_with_local_steps_counts_as_one_epoch() -> None:
    study = STUDY.model_copy(update={"study": STUDY.study.model_copy(update={"local_steps": 30})})
    found = work_out(study.model_dump_json().encode())
    assert (found.local_epochs, found.local_steps) == (1, 30)


def test_head_is_the_last_part_of_the_weights_and_its_input_has_all_features() -> None:
    found = work_out(STUDY.model_dump_json().encode())
    network = build_network(STUDY.network, seed=1)
    arrays, _ = pack(network)
    head = np.concatenate([weight.detach().numpy().ravel() for weight in network.head.parameters()])
    assert np.array_equal(arrays[WEIGHTS][found.head_from :], head)
    scans = torch.zeros(2, CHANNELS, *STUDY.preprocessing.shape)
    assert network.eval().backbone(scans).shape == (2, found.features)


@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_size_and_header_of_an_array_match_numpy(dtype: str) -> None:
    for length in (1, 7, 99_999, 10**6):
        spec, written = ArraySpec(dtype, length), npy(np.zeros(length, dtype))
        assert (spec.size, written[: len(spec.header)]) == (len(written), spec.header)
        assert sum(spec.chunk_bytes()) == len(written)


@pytest.mark.slow
def test_schema_and_first_model_of_a_study_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = STUDY.model_dump_json()
    found = schema_of(text, tmp_path, tmp_path)
    assert found == work_out(text.encode())
    monkeypatch.setattr(schema.subprocess, "run", lambda *_, **__: pytest.fail("it was asked again"))
    assert schema_of(text, tmp_path, tmp_path) == found
    first = first_model_of(text, tmp_path, tmp_path)
    assert all(
        object_id(first.read(chunk)) == chunk for head in first.heads["arrays"].values() for chunk in head.chunks
    )
    assert code_of(schema_of, "x" * 70_000, tmp_path, tmp_path) == "E_RUN_CONFIG"


@pytest.mark.slow
def test_invalid_study_is_refused(tmp_path: Path) -> None:
    assert code_of(schema_of, '{"study": {"name": "/etc/passwd"}}', tmp_path, tmp_path) == "E_RUN_CONFIG"
    assert not list(tmp_path.iterdir())


# --- the message ------------------------------------------------------------------------------------------


def task(
    change: Callable[[dict[str, Any]], object] = lambda records: None, kind: Kind = "train"
) -> tuple[ObjectTree, dict[str, bytes]]:
    records: dict[str, Any] = {
        name: record_of(arrays) for name, arrays in model(SCHEMA, np.random.default_rng(1)).items()
    }
    if kind == "query.handshake":
        records.clear()
    if kind == "evaluate.calibrate":
        records["typical"] = record_of(moments(SCHEMA, np.random.default_rng(1))["looks"])
    if kind == "evaluate.assign":
        records["probe"] = record_of({"discriminants": np.zeros(MAX_PROBED * (SCHEMA.features + 1), np.float32)})
    records["config"] = ConfigRecord({"server-round": 1})
    change(records)
    made = message(RecordDict(records), message_type=kind)
    return get_object_tree(made), objects_of(made)


def look(tree: ObjectTree, objects: dict[str, bytes], kind: Kind = "train") -> None:
    small = task_checks.small_objects(tree, TASK_DAMAGED, most=task_checks.max_objects(SCHEMA.takes(kind)))
    content = read_content(tree.object_id, {id: objects[id] for id in small}, TASK_DAMAGED)
    task_checks.check_content(content, task_checks.tree_ids(tree), SCHEMA.takes(kind), kind)
    task_checks.expected_chunks(content, SCHEMA.takes(kind))


@pytest.mark.parametrize(
    ("config", "calibrations"),
    [({"rule_out_severe": 0.25}, False), ({"slope_severe": 1.0, "intercept_severe": 0.0}, False), ({}, True)],
)
def test_masked_study_asks_for_no_figures_at_thresholds(config: dict[str, float], calibrations: bool) -> None:
    """Each threshold of its own choice would tell a hostile server which patients are at or above it."""

    def add(records: dict[str, Any]) -> None:
        records["config"] = ConfigRecord({"server-round": 1, "audit": True, **config})
        if calibrations:
            records["calibrations"] = ConfigRecord({"slope_severe": [1.0]})

    tree, objects = task(add, "evaluate.test")
    content = read_content(tree.object_id, objects, TASK_DAMAGED)
    masked = replace(SCHEMA, secure=True)
    assert code_of(task_checks.check_without_thresholds, content, masked) == "E_SECAGG_THRESHOLDS"
    assert code_of(task_checks.check_without_thresholds, content, SCHEMA) == ""
    tree, objects = task(kind="evaluate.test")
    plain = read_content(tree.object_id, objects, TASK_DAMAGED)
    assert code_of(task_checks.check_without_thresholds, plain, masked) == ""


@pytest.mark.parametrize("kind", KINDS)
def test_valid_content_of_each_kind_is_accepted(kind: Kind) -> None:
    tree, objects = task(kind=kind)
    look(tree, objects, kind)
    content = read_content(tree.object_id, objects, TASK_DAMAGED)
    chunks = task_checks.expected_chunks(content, SCHEMA.takes(kind))
    assert set(chunks) == {id for id, part in objects.items() if part.startswith(b"ArrayChunk")}
    assert sorted(length for length, _ in chunks.values()) == sorted(
        spec.size for specs in SCHEMA.takes(kind).values() for spec in specs.values()
    )


@pytest.mark.parametrize("other", KINDS)
@pytest.mark.parametrize("kind", KINDS)
def test_content_of_another_kind_is_refused(kind: Kind, other: Kind) -> None:
    is_same = SCHEMA.takes(kind) == SCHEMA.takes(other)
    assert code_of(look, *task(kind=kind), other) == ("" if is_same else "E_TASK_RECORDS")


def test_every_kind_but_the_handshake_takes_a_model() -> None:
    own = {"evaluate.assign": {"probe"}, "evaluate.calibrate": {"typical"}}
    assert [set(SCHEMA.takes(kind)) for kind in KINDS] == [
        {"arrays", "buffers"} | own.get(kind, set()) if kind != "query.handshake" else set() for kind in KINDS
    ]


@pytest.mark.parametrize(
    "change",
    [
        lambda records: records.pop("probe"),
        lambda records: records.update(probe=record_of({"discriminants": np.zeros(7, np.float32)})),
        lambda records: records.update(probe=record_of({"discriminants": np.zeros(MAX_PROBED * 7)})),
        lambda records: records.update(probe=record_of({"other": np.zeros(MAX_PROBED * 7, np.float32)})),
        lambda records: records["probe"].update({"more": records["probe"]["discriminants"]}),
        lambda records: records.update(probe=ConfigRecord({"discriminants": 1.0})),
    ],
)
def test_invalid_probe_is_refused(change: Callable[[dict[str, Any]], object]) -> None:
    assert code_of(look, *task(change, "evaluate.assign"), "evaluate.assign") == "E_TASK_RECORDS"


@pytest.mark.parametrize(
    "change",
    [
        lambda records: records.pop("buffers"),
        lambda records: records.pop("config"),
        lambda records: records.update(more=MetricRecord({"x": 1})),
        lambda records: records.update(more=ConfigRecord({"x": 1})),
        lambda records: records.update(more=ArrayRecord()),
        lambda records: records["arrays"].update({"x": records["arrays"][WEIGHTS]}),
        lambda records: records["buffers"].pop(MEAN),
        lambda records: records.update(arrays=record_of({WEIGHTS: np.zeros(41, np.float32)})),
        lambda records: records.update(arrays=record_of({WEIGHTS: np.zeros(40, np.float64)})),
    ],
)
def test_missing_or_extra_content_is_refused(change: Callable[[dict[str, Any]], object]) -> None:
    assert code_of(look, *task(change)) == "E_TASK_RECORDS"


@pytest.mark.parametrize("depth", [0, 1, 2, 3, 4])
def test_unreferenced_object_in_the_tree_is_refused(depth: int) -> None:
    tree, objects = task()
    stray = hashlib.sha256(b"stray").hexdigest()
    place = tree
    for _ in range(depth):
        place = place.children[0]
    place.children.append(ObjectTree(object_id=stray))
    assert code_of(look, tree, {**objects, stray: b"ConfigRecord  0\x00"}) == "E_TASK_DAMAGED"


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "A" * 64, "a" * 63])
def test_object_id_that_is_not_a_sha256_is_refused(name: str) -> None:
    tree, objects = task()
    tree.children[0].object_id = name
    assert code_of(look, tree, objects) == "E_TASK_DAMAGED"


def test_tree_with_too_many_objects_is_refused() -> None:
    tree = ObjectTree(object_id="a" * 64)
    tree.children.extend([ObjectTree(object_id="b" * 64)] * 5000)
    assert code_of(functools.partial(task_checks.small_objects, most=99), tree, TASK_DAMAGED) == "E_TASK_DAMAGED"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"server-round": 3}, (3, EMPTY)),
        ({"server-round": 0, "ledger-head": "", "ledger-lines": 0}, (0, EMPTY)),
        ({"server-round": 3, "ledger-head": "a" * 64, "ledger-lines": 9, "proximal-mu": 0.1}, (3, Head(9, "a" * 64))),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_valid_round_settings_are_accepted(config: dict[str, Any], expected: tuple[int, Head], kind: Kind) -> None:
    own = {"probed": 2} if kind == "evaluate.assign" else {}
    assert task_checks.check_config({**config, **own}, kind) == expected


@pytest.mark.parametrize(
    "change",
    [
        {"server-round": None},
        {"server-round": True},
        {"server-round": 1.0},
        {"server-round": 10**9},
        {"server-round": [1]},
        {"command": "rm"},
        {"proximal-mu": float("nan")},
        {"proximal-mu": -1.0},
        {"proximal-mu": "0"},
        {"ledger-head": "a" * 64},
        {"ledger-lines": 3},
        {"ledger-head": b"a" * 64, "ledger-lines": 3},
        {"ledger-head": "A" * 64, "ledger-lines": 3},
        {"ledger-head": "a" * 64, "ledger-lines": -3},
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_invalid_round_settings_are_refused(change: dict[str, Any], kind: Kind) -> None:
    own = {"probed": 2} if kind == "evaluate.assign" else {}
    assert code_of(task_checks.check_config, {"server-round": 1, **own, **change}, kind) == "E_TASK_RECORDS"


DEPLOYED = {f"{what}_{label}": 0.5 for what in ("slope", "intercept", "rule_out", "rule_in") for label in LABELS}


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("evaluate.test", {}),
        ("evaluate.test", DEPLOYED),
        ("evaluate.test", {**DEPLOYED, "audit": True}),
        ("evaluate.test", {"slope_severe": -3.0, "rule_in_pcr_positive": 1e6}),
        ("evaluate.assign", {"probed": 2}),
        ("evaluate.assign", {"probed": MAX_PROBED}),
    ],
)
def test_settings_of_one_kind_are_refused_for_other_kinds(kind: Kind, config: dict[str, Any]) -> None:
    assert task_checks.check_config({"server-round": 0, **config}, kind) == (0, EMPTY)
    others = [other for other in KINDS if other not in (kind, "evaluate.assign")]
    expected = "E_TASK_RECORDS" if config else ""
    assert {code_of(task_checks.check_config, {"server-round": 0, **config}, other) for other in others} == {expected}


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("evaluate.test", {"slope_severe": float("nan")}),
        ("evaluate.test", {"rule_in_severe": float("inf")}),
        ("evaluate.test", {"slope_severe": 1}),
        ("evaluate.test", {"slope_severe": True}),
        ("evaluate.test", {"slope_severe": "1.0"}),
        ("evaluate.test", {"slope_severe": [1.0]}),
        ("evaluate.test", {"slope_age": 1.0}),
        ("evaluate.test", {"threshold": 1.0}),
        ("evaluate.test", {"audit": 1}),
        ("evaluate.test", {"audit": "yes"}),
        ("evaluate.assign", {}),
        ("evaluate.assign", {"probed": 1}),
        ("evaluate.assign", {"probed": MAX_PROBED + 1}),
        ("evaluate.assign", {"probed": 2.0}),
        ("evaluate.assign", {"probed": True}),
        ("evaluate.assign", {"probed": [2]}),
        ("evaluate.assign", {"probed": 2, "slope_severe": 1.0}),
        ("train.head", {"epochs": 3}),
    ],
)
def test_settings_with_wrong_type_or_range_are_refused(kind: Kind, config: dict[str, Any]) -> None:
    assert code_of(task_checks.check_config, {"server-round": 0, **config}, kind) == "E_TASK_RECORDS"


# --- the limits of the site -------------------------------------------------------------------------------


SITE = SiteSettings.model_validate(
    {
        "site": {"name": "north"},
        "labels": {"file": "labels.csv"},
        "gateway": {"max_local_epochs": 3, "min_local_steps": 1},
    }
)


@pytest.mark.parametrize(
    ("steps", "patients", "code"),
    [
        (24, 60, ""),  # 8 steps of 8 patients are one epoch of 60 patients; 3 epochs are allowed
        (25, 60, "E_SITE_LIMIT"),
        (3, 1, ""),  # an epoch has at least one step
        (4, 1, "E_SITE_LIMIT"),
        (3, 0, ""),
        (4, 0, "E_SITE_LIMIT"),
        (0, 60, ""),
    ],
)
def test_local_steps_are_limited_like_local_epochs(steps: int, patients: int, code: str) -> None:
    schema = schema_for(40, 4, epochs=1, steps=steps)
    assert code_of(task_checks.check_bounds, "train", schema, SITE, patients) == code


@pytest.mark.parametrize(
    ("change", "patients", "code"),
    [
        ({}, 25, ""),
        ({}, 24, ""),  # two epochs of three steps
        ({}, 8, "E_SITE_LEAST"),  # two epochs of one step
        ({"local_epochs": 1}, 25, "E_SITE_LEAST"),  # a last step of one patient is merged with the step before
        ({"local_epochs": 1, "batch_size": 4}, 25, ""),
        ({"batch_size": 3}, 60, "E_SITE_LEAST"),
        ({"batch_size": 64}, 40, "E_SITE_LEAST"),  # each step uses all patients
        ({"local_steps": 2}, 60, "E_SITE_LEAST"),
        ({"augment": False}, 60, "E_AUGMENTATION"),
    ],
)
def test_round_with_too_few_patients_or_steps_is_refused(change: dict[str, Any], patients: int, code: str) -> None:
    site = SiteSettings.model_validate({**SITE.model_dump(), "gateway": {}})
    schema = replace(schema_for(40, 4, epochs=2), **change)
    assert code_of(task_checks.check_bounds, "train", schema, site, patients) == code
    # In a private study the noise also protects few patients and steps.
    private = replace(schema, private_round=PrivateRound(1.0, 0.1, 10, 1e-5))
    assert code_of(task_checks.check_bounds, "train", private, site, patients) == ""


@pytest.mark.parametrize("patients", [16, 60, 64, 65, 70, 5000])
def test_study_of_a_head_that_equals_the_pooled_one_is_within_the_usual_limits(patients: int) -> None:
    """The settings of docs/encoders.md; without augmentation, as every study with an encoder."""
    found = tomllib.loads(settings_under("A head that equals the pooled one", page="encoders.md"))
    found["training"]["augment"] = False
    wanted = Study.model_validate({**found, "study": found["study"] | {"name": "heads", "sites": 3, "quorum": 3}})
    schema = replace(
        schema_for(40, 4, epochs=wanted.study.local_epochs, steps=wanted.study.local_steps),
        batch_size=wanted.training.batch_size,
        augment=False,
    )
    site = SiteSettings.model_validate({**SITE.model_dump(), "gateway": {"require_augmentation": False}})
    assert code_of(task_checks.check_bounds, "train", schema, site, patients) == ""


def test_local_epochs_and_batch_size_are_limited() -> None:
    assert code_of(task_checks.check_bounds, "train", schema_for(40, 4, epochs=3), SITE, 60) == ""
    assert code_of(task_checks.check_bounds, "train", schema_for(40, 4, epochs=4), SITE, 60) == "E_SITE_LIMIT"
    large = replace(SCHEMA, batch_size=SITE.gateway.max_batch_size + 1)
    assert code_of(task_checks.check_bounds, "query.handshake", large, SITE, 60) == "E_SITE_LIMIT"


@pytest.mark.parametrize("kind", KINDS)
def test_private_study_may_not_send_tasks_outside_the_privacy_budget(kind: Kind) -> None:
    private = replace(SCHEMA, private_round=PrivateRound(1.0, 0.1, 10, 1e-5))
    unpaid = kind in ("train.head", "evaluate.embed")
    assert code_of(task_checks.check_bounds, kind, private, SITE, 60) == ("E_PRIVACY_KIND" if unpaid else "")
    assert code_of(task_checks.check_bounds, kind, SCHEMA, SITE, 60) == ""


@pytest.mark.parametrize("kind", KINDS)
def test_embedding_task_is_refused_if_the_site_forbids_it(kind: Kind) -> None:
    site = SITE.model_copy(update={"gateway": SITE.gateway.model_copy(update={"embedding_statistics": False})})
    code = "E_EMBEDDINGS" if kind == "evaluate.embed" else ""
    assert code_of(task_checks.check_bounds, kind, SCHEMA, site, 60) == code


@pytest.mark.parametrize("kind", ["evaluate", "query", "train.other", "query.partition", "TRAIN", "", "train.head "])
def test_unknown_kind_is_refused(kind: str) -> None:
    assert code_of(task_checks.task_kind, kind) == "E_TASK_KIND"
    assert [task_checks.task_kind(known) for known in KINDS] == list(KINDS)


# --- the spool --------------------------------------------------------------------------------------------


def test_rounds_of_the_last_day_are_counted_across_restarts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_800_000_000.0
    set_time(monkeypatch, spool, time=lambda: now)
    for _ in range(3):
        Spool(tmp_path / "gateway").count_round(3, 7)
    assert code_of(Spool(tmp_path / "gateway").count_round, 3, 7) == "E_ROUNDS_A_DAY"
    now += 24 * 3600 + 1
    assert code_of(Spool(tmp_path / "gateway").count_round, 3, 7) == ""


def test_rounds_of_the_last_month_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_800_000_000.0
    set_time(monkeypatch, spool, time=lambda: now)
    for _ in range(4):
        Spool(tmp_path / "gateway").count_round(3, 4)
        now += 24 * 3600 + 1
    assert code_of(Spool(tmp_path / "gateway").count_round, 3, 4) == "E_ROUNDS_A_MONTH"
    now += 30 * 24 * 3600
    assert code_of(Spool(tmp_path / "gateway").count_round, 3, 4) == ""


def test_restart_deletes_received_objects_and_keeps_the_unanswered_task(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "gateway")
    spool.came_in.put("a" * 64, b"weights")
    spool.remember(b"task")
    assert (spool.came_in.get("a" * 64), spool.came_in.size) == (b"weights", 7)
    again = Spool(tmp_path / "gateway")
    assert again.unanswered == b"task"
    assert not list((tmp_path / "gateway" / "in").iterdir())
    with pytest.raises(KeyError):
        again.came_in.get("a" * 64)
    again.forget()
    assert Spool(tmp_path / "gateway").unanswered is None


@pytest.mark.parametrize("kind", FIGURES)
def test_site_without_labels_takes_no_task_of_a_study_that_learns_from_labels(kind: Kind) -> None:
    """Also not the handshake, which reports a band of the number of patients."""
    tables = {"site": {"name": "ward", "unlabelled_patients": True}}
    site = SiteSettings.model_validate(tables)
    for of_study in (SCHEMA, replace(SCHEMA, secure=True), replace(SCHEMA, batch_size=1000)):
        assert code_of(task_checks.check_bounds, kind, of_study, site, 60) == "E_SITE_UNLABELLED"


def test_site_without_labels_takes_a_pretraining_that_it_allows_and_its_rounds_alone() -> None:
    tables = {"site": {"name": "ward", "unlabelled_patients": True}}
    site = SiteSettings.model_validate({**tables, "gateway": {"max_pretraining_rounds_a_month": SCHEMA.rounds}})
    pretraining = replace(SCHEMA, pretrains=True)
    task_checks.check_bounds("train", pretraining, site, 60)
    assert code_of(task_checks.check_bounds, "evaluate.test", pretraining, site, 60) == "E_TASK_KIND"
    assert code_of(task_checks.check_bounds, "train", pretraining, SiteSettings.model_validate(tables), 60) == (
        "E_SITE_LIMIT"
    )

"""What a task must be: the study's own configuration, its model, the round's settings, and no object more."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.config import get_fused_config_from_fab
from flwr.common.serde import run_from_proto, user_config_to_proto
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.run_pb2 import Run
from flwr.supercore.inflatable.inflatable_object import get_object_tree

from federation.approval import fab
from federation.gateway import inbound, schema
from federation.gateway.objects import read_content
from federation.gateway.schema import ArraySpec, Schema, schema_of, work_out
from federation.gateway.spool import Spool
from federation.ledger.chain import EMPTY, Head
from federation.reasons import TASK_DAMAGED
from federation.rounds.packing import WEIGHTS, pack
from federation.study import Study
from models.network import build_network
from models.refusal import Refusal
from pipeline.privacy_budget import PrivacySettings
from tests.federation.gateway.messages import MEAN, message, model, npy, objects_of, record_of, schema_for

SCHEMA = schema_for(40, 4)
STUDY = Study.model_validate({"study": {"name": "trial", "rounds": 3, "sites": 2, "quorum": 2}})


def code_of(check: Callable[..., object], *arguments: Any) -> str:
    """The code for which it is refused; "" if it passes."""
    try:
        check(*arguments)
    except Refusal as refusal:
        return refusal.code
    return ""


# --- the run's configuration ------------------------------------------------------------------------------


def run_with(**config: Any) -> Run:
    return Run(run_id=7, fab_hash="a" * 64, override_config=user_config_to_proto(config))


def test_the_runs_study_and_name_are_read_as_flower_reads_them() -> None:
    own = fab.build(fab.APP)
    assert inbound.run_config(own, run_with(study="{}", run="trial-0123abcd")) == ("{}", "trial-0123abcd")


@pytest.mark.parametrize(
    "config",
    [{"study": "{}", "run": "../x"}, {"study": "{}"}, {"study": 1, "run": "a"}, {"study": "{}", "run": "a", "more": 1}],
)
def test_any_other_configuration_is_refused(config: dict[str, Any]) -> None:
    assert code_of(inbound.run_config, fab.build(fab.APP), run_with(**config)) == "E_RUN_CONFIG"


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
def test_what_passes_is_what_flower_makes_of_it(table: str, config: dict[str, Any]) -> None:
    text = (fab.APP / fab.CONFIG).read_text()
    begin, header, _ = text.partition("[tool.flwr.app.config]\n")
    app, run = fab.pack({fab.CONFIG: f"{begin}{header}{table}\n".encode()}), run_with(**config)
    try:
        flowers = get_fused_config_from_fab(app, run_from_proto(run))
    except ValueError:
        flowers = {}
    if set(flowers) == {"study", "run"} and flowers["run"]:
        assert inbound.run_config(app, run) == (flowers["study"], flowers["run"])
    else:
        assert code_of(inbound.run_config, app, run) == "E_RUN_CONFIG"


def test_an_app_that_is_no_archive_has_no_configuration() -> None:
    assert code_of(inbound.run_config, b"PK no archive", run_with(study="{}", run="a")) == "E_RUN_CONFIG"


# --- the study's schema -----------------------------------------------------------------------------------


def test_a_studys_schema_is_that_of_its_network() -> None:
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
        assert (found.rounds, found.local_epochs, found.batch_size) == (3, 2, 8)
        assert found.private_round == study.private_round
        assert Schema.from_json(found.to_json()) == found
    assert private.private_round is not None


@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_an_arrays_bytes_are_numpys(dtype: str) -> None:
    for length in (1, 7, 99_999, 10**6):
        spec, written = ArraySpec(dtype, length), npy(np.zeros(length, dtype))
        assert (spec.size, written[: len(spec.header)]) == (len(written), spec.header)
        assert sum(spec.chunk_bytes()) == len(written)


def test_the_process_that_reads_studies_answers_once_for_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = STUDY.model_dump_json()
    found = schema_of(text, tmp_path)
    assert found == work_out(text.encode())
    monkeypatch.setattr(schema.subprocess, "run", lambda *_, **__: pytest.fail("it was asked again"))
    assert schema_of(text, tmp_path) == found
    assert code_of(schema_of, "x" * 70_000, tmp_path) == "E_RUN_CONFIG"


def test_what_is_no_study_is_refused(tmp_path: Path) -> None:
    assert code_of(schema_of, '{"study": {"name": "/etc/passwd"}}', tmp_path) == "E_RUN_CONFIG"
    assert not list(tmp_path.iterdir())


# --- the message ------------------------------------------------------------------------------------------


def task(change: Callable[[dict[str, Any]], object] = lambda records: None) -> tuple[ObjectTree, dict[str, bytes]]:
    records: dict[str, Any] = {
        name: record_of(arrays) for name, arrays in model(SCHEMA, np.random.default_rng(1)).items()
    }
    records["config"] = ConfigRecord({"server-round": 1})
    change(records)
    made = message(RecordDict(records))
    return get_object_tree(made), objects_of(made)


def look(tree: ObjectTree, objects: dict[str, bytes]) -> None:
    small = inbound.small_objects(tree, TASK_DAMAGED)
    content = read_content(tree.object_id, {id: objects[id] for id in small}, TASK_DAMAGED)
    inbound.check_content(content, inbound.tree_ids(tree), SCHEMA)
    inbound.expected_chunks(content, SCHEMA)


def test_the_studys_model_is_let_in() -> None:
    tree, objects = task()
    look(tree, objects)
    content = read_content(tree.object_id, objects, TASK_DAMAGED)
    chunks = inbound.expected_chunks(content, SCHEMA)
    assert set(chunks) == {id for id, part in objects.items() if part.startswith(b"ArrayChunk")}
    assert sorted(length for length, _ in chunks.values()) == sorted(
        spec.size for specs in SCHEMA.records.values() for spec in specs.values()
    )


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
def test_any_other_content_is_refused(change: Callable[[dict[str, Any]], object]) -> None:
    assert code_of(look, *task(change)) == "E_TASK_RECORDS"


@pytest.mark.parametrize("depth", [0, 1, 2, 3, 4])
def test_objects_that_belong_to_nothing_are_refused(depth: int) -> None:
    tree, objects = task()
    stray = hashlib.sha256(b"stray").hexdigest()
    place = tree
    for _ in range(depth):
        place = place.children[0]
    place.children.append(ObjectTree(object_id=stray))
    assert code_of(look, tree, {**objects, stray: b"ConfigRecord  0\x00"}) == "E_TASK_DAMAGED"


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "A" * 64, "a" * 63])
def test_an_object_is_named_by_a_sha256_alone(name: str) -> None:
    tree, objects = task()
    tree.children[0].object_id = name
    assert code_of(look, tree, objects) == "E_TASK_DAMAGED"


def test_a_tree_without_end_is_refused() -> None:
    tree = ObjectTree(object_id="a" * 64)
    tree.children.extend([ObjectTree(object_id="b" * 64)] * 5000)
    assert code_of(inbound.small_objects, tree, TASK_DAMAGED) == "E_TASK_DAMAGED"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"server-round": 3}, (3, EMPTY)),
        ({"server-round": 0, "ledger-head": "", "ledger-lines": 0}, (0, EMPTY)),
        ({"server-round": 3, "ledger-head": "a" * 64, "ledger-lines": 9, "proximal-mu": 0.1}, (3, Head(9, "a" * 64))),
    ],
)
def test_the_rounds_settings(config: dict[str, Any], expected: tuple[int, Head]) -> None:
    assert inbound.check_config(config) == expected


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
def test_other_settings_are_refused(change: dict[str, Any]) -> None:
    assert code_of(inbound.check_config, {"server-round": 1, **change}) == "E_TASK_RECORDS"


# --- the spool --------------------------------------------------------------------------------------------


def test_rounds_of_the_last_day_are_counted_over_restarts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_800_000_000.0
    monkeypatch.setattr("federation.gateway.spool.time.time", lambda: now)
    for _ in range(3):
        Spool(tmp_path / "gateway").count_round(3)
    assert code_of(Spool(tmp_path / "gateway").count_round, 3) == "E_ROUNDS_A_DAY"
    now += 24 * 3600 + 1
    assert code_of(Spool(tmp_path / "gateway").count_round, 3) == ""


def test_what_was_on_its_way_is_deleted_and_the_task_remembered(tmp_path: Path) -> None:
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

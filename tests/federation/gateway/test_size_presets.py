"""A study of each size passes the gateway with a new site's own limits: bounds, schema, and the weights of round 1.

The networks have their full size, which the size of the scans does not change. Nothing is trained.
"""

import copy
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_object_tree

from configs import SIZES
from federation.approval.presets import presets, sized
from federation.gateway import task_checks
from federation.gateway.flower_objects import Arrays, read_content
from federation.gateway.lineage import Lineage
from federation.gateway.reasons import TASK_DAMAGED
from federation.gateway.schema import Schema, work_out
from federation.gateway.upstream import MAX_BODY_BYTES
from federation.protocol.flat_weights import WEIGHTS, pack
from federation.protocol.study_config import Study
from models.network import build_network
from models.refusal import Refusal
from pipeline.site.folder import Site, init_site, site_settings
from tests.federation.gateway.messages import Objects, arrays_of, message, objects_of, record_of

SMALL_SITE = 25  # training patients
FEW = 8
NETWORKS = ["resnet18", "densenet121", "seresnet50", "efficientnet_b0_slices", "convnext"]
Weights = dict[str, dict[str, np.ndarray]]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A hospital with the site.toml of the template."""
    return init_site(tmp_path / "site", site_settings(None, name="north"))


def with_network(study: Study, architecture: str) -> Study:
    return study.model_copy(update={"network": study.network.model_copy(update={"architecture": architecture})})


def first_weights(study: Study) -> Weights:
    arrays, buffers = pack(build_network(study.network, seed=study.study.seed))
    return {"arrays": arrays, "buffers": buffers}


def check_round_one(study: Study, schema: Schema, weights: Weights, site: Site, patients: int) -> Objects:
    """Check the task of round 1 as the gateway does; return its objects."""
    task_checks.check_bounds("train", schema, site.settings, patients)
    records = {name: record_of(arrays) for name, arrays in weights.items()}
    task = message(RecordDict({**records, "config": ConfigRecord({"server-round": 1})}))
    tree, objects = get_object_tree(task), objects_of(task)
    most = task_checks.max_objects(schema.takes("train"))
    assert task_checks.small_objects(tree, TASK_DAMAGED, most=most)
    content = read_content(tree.object_id, objects, TASK_DAMAGED)
    task_checks.check_content(content, task_checks.tree_ids(tree), schema.takes("train"), "train")
    lengths = task_checks.expected_chunks(content, schema.takes("train"))
    assert all(length < MAX_BODY_BYTES for length, _ in lengths.values())
    lineage = Lineage(
        site.folder / "models",
        "trial-0123abcd",
        schema,
        read_first=lambda: arrays_of(first_weights(study)),
        max_missed=site.settings.gateway.max_missed_rounds,
    )
    lineage.check("train", 1, Arrays(content.arrays, objects.__getitem__))
    return objects


@pytest.mark.parametrize("size", SIZES)
def test_study_of_a_size_passes_the_limits_of_a_new_site(site: Site, size: str) -> None:
    study = presets()[size]
    schema = work_out(study.model_dump_json().encode())
    assert Schema.from_json(schema.to_json()) == schema
    assert check_round_one(study, schema, first_weights(study), site, SMALL_SITE)
    with pytest.raises(Refusal, match="E_SITE_LEAST"):
        task_checks.check_bounds("train", schema, site.settings, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", NETWORKS)
def test_each_network_of_the_sizes_passes(site: Site, architecture: str) -> None:
    study = with_network(presets()["large-gpu"], architecture)
    schema = work_out(study.model_dump_json().encode())
    assert check_round_one(study, schema, first_weights(study), site, SMALL_SITE)


@pytest.mark.parametrize("name", ["masked+standard-gpu", "masked-groups+large-gpu", "private+large-gpu"])
def test_purpose_at_a_size_passes(site: Site, name: str) -> None:
    study = sized()[name]
    schema = work_out(study.model_dump_json().encode())
    assert check_round_one(study, schema, first_weights(study), site, SMALL_SITE)
    assert schema.secure == study.aggregation.secure and schema.private_round == study.private_round


def test_other_first_weights_than_those_of_the_seed_are_refused(site: Site) -> None:
    study = presets()["large-gpu"]
    schema = work_out(study.model_dump_json().encode())
    changed = copy.deepcopy(first_weights(study))
    changed["arrays"][WEIGHTS][1000] += 1e-6
    with pytest.raises(Refusal, match="E_MODEL_FIRST"):
        check_round_one(study, schema, changed, site, SMALL_SITE)

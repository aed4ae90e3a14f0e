"""A damaged file of the cohort ends a site's task with a code that the server may learn, in each way to read scans."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from federation.client.site_tasks import calibrate_site, judge_site, train_site
from federation.protocol.error_codes import OF_APPS
from federation.protocol.flat_weights import pack
from federation.protocol.study_config import Study
from models.network import build_network
from models.refusal import Refusal
from pipeline.evaluation.figures import Deployed
from pipeline.site.folder import Site

STUDY = Study.model_validate(
    {
        "study": {"name": "x", "rounds": 4, "local_epochs": 1, "sites": 1, "quorum": 1},
        "network": {"architecture": "resnet10", "widen_factor": 1 / 16},
    }
)
MODEL = pack(build_network(STUDY.network, seed=1))
TASKS = {
    "training": lambda site: train_site(site, STUDY, *MODEL, round_number=1),
    "calibration": lambda site: calibrate_site(site, STUDY, *MODEL, {}),
    "test": lambda site: judge_site(site, STUDY, *MODEL, Deployed({}, {}), audit=False),
}


@pytest.mark.parametrize("task", TASKS)
def test_damaged_scan_ends_a_task_with_a_code(small_site: Site, tmp_path: Path, task: str) -> None:
    folder = shutil.copytree(small_site.folder, tmp_path / "north")
    table = small_site.settings.site.model_copy(update={"min_patients": 1})
    site = replace(Site.open(folder), settings=small_site.settings.model_copy(update={"site": table}, deep=True))
    tensors = list((site.cohort_folder / "tensors").iterdir())
    for tensor in tensors:
        tensor.write_bytes(tensor.read_bytes()[:-2])
    with pytest.raises(Refusal) as caught:
        TASKS[task](site)
    assert caught.value.code == "E_COHORT_FILE"
    assert caught.value.code in OF_APPS, "the gateway lets it pass"
    assert caught.value.private.startswith(tuple(tensor.name for tensor in tensors)), "the site's log names the file"
    assert not any(tensor.name in str(caught.value) for tensor in tensors)

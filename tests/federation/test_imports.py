"""What is not used is not imported: each question is put to a Python of its own, where nothing is imported yet."""

import json
import subprocess
import sys

import pytest

# What MONAI and scikit-learn would bring along, and what judges or fits a model.
BROUGHT_ALONG = ("IPython", "itk", "matplotlib", "mlflow", "pandas", "torchvision")
JUDGES = ("scipy.optimize", "scipy.stats", "sklearn")


def imported(code: str, *names: str) -> list[str]:
    """Which of these modules are there after the code."""
    look = f"{code}\nimport json, sys\nprint(json.dumps([name for name in {names!r} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "not_needed"),
    [
        ("federation.cli.main", ("flwr", "torch", "pydantic", "numpy", "rich.table")),
        ("federation.node.start", ("flwr", "torch", "numpy", "pydicom", "aiohttp")),
        ("federation.cli.doctor_screen", ("torch", "scipy")),  # of node ingest, with the next one
        ("pipeline.cohort.ingest", ("torch", "scipy")),
        ("pipeline.preprocessing.measures", ("torch", "scipy")),  # with which a cohort's scans are read
        ("pipeline.cohort.store", ("torch", "numpy", "pydicom")),  # which a node's start imports when it comes to it
        ("federation.server.start", ("flwr", "torch", "numpy", "sqlalchemy", "mlflow")),
        ("federation.gateway.__main__", ("torch", "scipy", "pydicom")),
        ("federation.protocol.study_config", ("flwr", "torch", "scipy", "pydicom")),  # of each command about a study
        ("federation.approval.presets", ("flwr", "torch", "numpy")),
        ("federation.runs.launch", ("torch", "scipy", "mlflow")),
        ("federation.cli.scoring", ("flwr", "monai", "nibabel", *JUDGES, *BROUGHT_ALONG)),
    ],
)
def test_what_a_command_does_not_need_is_not_imported(module: str, not_needed: tuple[str, ...]) -> None:
    assert imported(f"import {module}", *not_needed) == []


@pytest.mark.slow
def test_a_message_imports_a_network_alone_and_nothing_that_monai_would_bring_along() -> None:
    app = "import federation.client.client_app"
    network = (
        "from models.network import build_network\n"
        "from models.network_settings import NetworkSettings\n"
        "build_network(NetworkSettings(), seed=1)"
    )
    asked = (
        f"import sys; early = [name for name in {(*JUDGES, 'monai')!r} if name in sys.modules]; assert not early, early"
    )
    assert imported(f"{app}\n{asked}\n{network}", "monai", *BROUGHT_ALONG) == ["monai"]


def test_process_that_forks_clientapps_imports_monai_and_scikit_learn_but_not_pandas() -> None:
    forks = "from federation.node.clientapp_forks import imported; imported()"
    assert imported(forks, "monai", "sklearn.metrics", "pandas", "mlflow") == ["monai", "sklearn.metrics"]

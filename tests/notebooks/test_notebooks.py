"""The notebooks run, show what their text promises, import only the public API and are stored without output."""

import ast
from dataclasses import replace
from pathlib import Path

import nbclient
import nbformat
import pytest

from pipeline.cohort.store import Cohort, PatientRow
from pipeline.phantom import cohorts
from pipeline.phantom.anatomy import Grid
from pipeline.phantom.cohorts import synthetic_site, write_cohort
from pipeline.phantom.hospitals import HOSPITALS
from pipeline.preprocessing.preprocess_settings import Preprocessing
from tests.helpers.drawn_once import draw_once

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# `make test` runs one that launches, compares and reports; the others take a minute each.
RUN = [
    pytest.param(path, id=path.stem, marks=[] if path.stem.startswith("3") else pytest.mark.further)
    for path in NOTEBOOKS
]
# Runs before the first cell. The hospitals of the first three notebooks have the same patients, some of them more.
DRAW_ONCE = """
import sys
from pathlib import Path

sys.path.insert(0, {root!r})
from tests.helpers.drawn_once import draw_once

draw_once(Path({kept!r}))
"""

# What each notebook's text promises, as code that runs after its last cell and sees its names.
PROMISES = {
    "1-explore-a-federation": """
assert set(results.sites) == {"north", "south", "west"}
for figures in results.model("federated").figures.values():
    assert 0.3 < figures["prevalence_pcr_positive"] < 0.9
    assert figures["auroc_pcr_positive_lesion_load_low"] <= figures["auroc_pcr_positive_lesion_load"]
""",
    "2-launch-and-compare": """
assert len(curves) == 6 and all(len(curve) == 4 for curve in curves.values())
assert all(len(set(curve)) > 1 for curve in curves.values()), "a flat curve shows nothing"
assert all(curve[0] < 0.9 for curve in curves.values()), "the untrained model cannot know"
assert sum(curve[-1] - curve[0] for curve in curves.values()) / 6 > 0.05, "training helps"
assert [len(line.get_xdata()) for axis in axes for line in axis.get_lines()] == [4] * 12
(difference,) = comparison.differences()
assert difference.seeds == (1, 2, 3)
over_all = difference.figures["auroc_pcr_positive"]["all sites, equally"]
assert None not in (over_all.patients, over_all.seeds, over_all.sites_and_seeds)
""",
    "3-report-and-threshold": """
assert {"federated", "pooled", "north alone", "south alone", "west alone"} == {m.name for m in results.models}
for model in results.models:
    assert all("auroc_pcr_positive_low" in figures for figures in model.figures.values())
assert all(set(told) == {"rule_out", "rule_in"} for told in results.missing_points.values()), "the text says so"
assert set(results.missing_points) == {"pcr_positive", "severe"} and not any(results.operating_points.values())
for panel in axes:
    lines = {line.get_label(): line for line in panel.get_lines()}
    assert {"the model", "treat all", "treat none"} <= set(lines), "the text asks to compare with both"
    f = federated.figures[panel.get_title()]
    at_20 = f["prevalence_pcr_positive"] - (1 - f["prevalence_pcr_positive"]) / 4
    assert abs(lines["treat all"].get_ydata()[1] - at_20) < 1e-9
assert pooled is not None and pooled.share > 0.5 and 0.5 < pooled.possible[0] < pooled.possible[1] <= 1
""",
    "4-bring-stoic2021": """
told = results.model("federated").figures
assert set(told) == set(made.sites), "every site has a result"
assert all("auroc_pcr_positive_low" in figures for figures in told.values())
assert not [entry for entry in results.history if entry.get("refused")]
""",
}


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the notebooks keep the synthetic patients that they have drawn."""
    return tmp_path_factory.mktemp("patients")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("path", RUN)
def test_notebook_runs(path: Path, patients: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("STOIC2021", raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "0")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    before = DRAW_ONCE.format(root=str(ROOT), kept=str(patients))
    notebook.cells.insert(0, nbformat.v4.new_code_cell(before))
    notebook.cells.append(nbformat.v4.new_code_cell(PROMISES[path.stem]))
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = [output for output in outputs if output.output_type == "stream"]
    assert any(output.name == "stdout" for output in printed)
    errors = "".join(output.text for output in printed if output.name == "stderr")
    assert errors == "", "no log, warning or refusal is in a cell"


def test_patients_that_are_kept_fill_the_same_cohort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The notebooks that take their patients from another one train with what they would have drawn."""
    at = replace(HOSPITALS[0], scanner=replace(HOSPITALS[0].scanner, grid=Grid((30, 48, 48), (9.6, 7.8, 7.8))))
    small = Preprocessing(method="threshold", shape=(24, 32, 32))

    def cohort(name: str, patients: int) -> tuple[list[PatientRow], dict[str, bytes]]:
        site = synthetic_site(tmp_path / name, "north", seed=1)
        write_cohort(site, at, patients=patients, seed=1, settings=small, anatomy="template")
        with Cohort(site) as filled:
            return filled.patients(), {file.name: file.read_bytes() for file in filled.tensors.iterdir()}

    usual = cohort("usual", 3)
    monkeypatch.setattr(cohorts, "write_patient", cohorts.write_patient)  # so that the test leaves it as it was
    (tmp_path / "kept").mkdir()
    draw_once(tmp_path / "kept")
    cohort("first", 2)
    assert cohort("second", 3) == usual
    monkeypatch.setattr(cohorts, "make_body", None)
    assert cohort("third", 3) == usual, "no patient is drawn again"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_notebook_is_stored_without_output(path: Path) -> None:
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_notebook_imports_only_the_public_api(path: Path) -> None:
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    nodes = [node for cell in cells for node in ast.walk(ast.parse(cell))]
    modules = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    roots = {module.partition(".")[0] for module in modules}
    assert "fedthorax" in roots
    assert not roots & {"configs", "federation", "models", "pipeline"}


def test_four_notebooks_exist_and_each_keeps_promises() -> None:
    assert [path.stem for path in NOTEBOOKS] == sorted(PROMISES)
    assert len(NOTEBOOKS) == 4

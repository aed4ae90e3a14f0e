"""The notebooks run, show what their text promises, import only the public API and are stored without output."""

import ast
from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))

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


@pytest.mark.e2e
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("STOIC2021", raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "0")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    notebook.cells.append(nbformat.v4.new_code_cell(PROMISES[path.stem]))
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = [output for output in outputs if output.output_type == "stream"]
    assert any(output.name == "stdout" for output in printed)
    errors = "".join(output.text for output in printed if output.name == "stderr")
    assert errors == "", "no log, warning or refusal is in a cell"


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

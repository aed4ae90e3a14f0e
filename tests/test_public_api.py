"""The public API: `fedthorax` exports exactly the listed names, documents them and imports them lazily."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fedthorax
from tests import docstrings

ROOT = Path(__file__).parents[1]
# The import block for type checkers states which module defines each name.
(BLOCK,) = (node for node in ast.parse(Path(fedthorax.__file__).read_text()).body if isinstance(node, ast.If))
DEFINED_IN = {
    alias.name: str(node.module) for node in BLOCK.body if isinstance(node, ast.ImportFrom) for alias in node.names
}
HEAVY = ("flwr", "monai", "numpy", "pydantic", "scipy", "torch")


def in_a_fresh_process(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
def test_exported_names_equal_the_sorted_list() -> None:
    constants_classes_functions = sorted(fedthorax.__all__, key=lambda n: (not n.isupper(), n.islower(), n))
    assert fedthorax.__all__ == constants_classes_functions
    assert dir(fedthorax) == sorted(fedthorax.__all__)
    imported = set(in_a_fresh_process("from fedthorax import *; print(*dir())").split())
    assert {name for name in imported if not name.startswith("__")} == set(fedthorax.__all__)


@pytest.mark.parametrize("name", fedthorax.__all__)
def test_exported_name_resolves_to_its_definition(name: str) -> None:
    value = getattr(fedthorax, name)
    assert value is getattr(sys.modules[DEFINED_IN[name]], name)
    if name not in docstrings.CONSTANTS:
        assert value.__module__ == DEFINED_IN[name]


def test_unknown_name_raises_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'unknown'"):
        _ = fedthorax.unknown


def test_docstrings_follow_numpydoc() -> None:
    assert docstrings.faults() == []


def test_import_does_not_import_heavy_libraries() -> None:
    loaded = in_a_fresh_process(f"import sys, fedthorax; print(*[m for m in {HEAVY} if m in sys.modules])")
    assert loaded.split() == []


def test_type_checkers_see_every_exported_name() -> None:
    """`make lint` checks the import block with mypy. This test checks that it lists every export and nothing else."""
    assert ast.unparse(BLOCK.test) == "TYPE_CHECKING"
    assert set(DEFINED_IN) == set(fedthorax.__all__)


@pytest.mark.parametrize("package", ["fedthorax", "federation", "models", "pipeline"])
def test_package_ships_py_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()

"""The public API: `fedthorax` exports exactly what it lists, documents it, and costs nothing until it is used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fedthorax
from tests import docstrings

ROOT = Path(__file__).parents[1]
# The imports that type checkers read name the module that defines each name.
(BLOCK,) = (node for node in ast.parse(Path(fedthorax.__file__).read_text()).body if isinstance(node, ast.If))
DEFINED_IN = {
    alias.name: str(node.module) for node in BLOCK.body if isinstance(node, ast.ImportFrom) for alias in node.names
}
HEAVY = ("flwr", "monai", "numpy", "pydantic", "scipy", "torch")


def in_a_fresh_process(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
def test_exported_names_are_those_listed_in_order() -> None:
    constants_classes_functions = sorted(fedthorax.__all__, key=lambda n: (not n.isupper(), n.islower(), n))
    assert fedthorax.__all__ == constants_classes_functions
    assert dir(fedthorax) == sorted(fedthorax.__all__)
    imported = set(in_a_fresh_process("from fedthorax import *; print(*dir())").split())
    assert {name for name in imported if not name.startswith("__")} == set(fedthorax.__all__)


@pytest.mark.parametrize("name", fedthorax.__all__)
def test_it_resolves_to_what_its_module_defines(name: str) -> None:
    value = getattr(fedthorax, name)
    assert value is getattr(sys.modules[DEFINED_IN[name]], name)
    if name not in docstrings.CONSTANTS:
        assert value.__module__ == DEFINED_IN[name]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'unknown'"):
        _ = fedthorax.unknown


def test_docstrings_are_numpydoc() -> None:
    assert docstrings.faults() == []


def test_importing_it_imports_nothing_heavy() -> None:
    loaded = in_a_fresh_process(f"import sys, fedthorax; print(*[m for m in {HEAVY} if m in sys.modules])")
    assert loaded.split() == []


def test_type_checkers_know_every_name() -> None:
    """mypy checks the block of imports in `make lint`; here, that it names every export, and nothing else."""
    assert ast.unparse(BLOCK.test) == "TYPE_CHECKING"
    assert set(DEFINED_IN) == set(fedthorax.__all__)


@pytest.mark.parametrize("package", ["fedthorax", "federation", "models", "pipeline"])
def test_its_types_are_shipped(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()

"""Tests use only public names of the product: private names may change although the behaviour stays the same."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PRODUCT = ("pipeline", "federation", "models", "fedthorax")
BY_STRING = {"setattr", "delattr", "getattr", "hasattr", "patch", "object"}  # calls that take a name as a string
PRIVATE = re.compile(r"\b_[A-Za-z]\w*")
DEFINED = re.compile(r"^\s*(?:async def |def |class )?(_[A-Za-z]\w*)|\b(?:self|cls)\.(_[A-Za-z]\w*)", re.M)


def private_names(source: str) -> set[str]:
    """Return the private names that a module or its classes define."""
    return {name for names in DEFINED.findall(source) for name in names if name}


def private_uses(source: str, of_product: set[str]) -> Iterator[tuple[int, str]]:
    """Yield the lines that use a private name of the product. Names that the file itself defines do not count."""
    if not of_product.intersection(PRIVATE.findall(source)):
        return  # fast path: parsing every file takes too long
    tree = ast.parse(source)
    others = of_product - private_names(source)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and is_product(node.module or "")]
    imported = {alias.asname or alias.name for node in imports for alias in node.names}

    def is_others(owner: ast.expr, name: str) -> bool:
        return name in (of_product if isinstance(owner, ast.Name) and owner.id in imported else others)

    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(names=names) if node in imports:
                yield from ((node.lineno, alias.name) for alias in names if alias.name in of_product)
            case ast.Attribute(value=owner, attr=name) if is_others(owner, name):
                yield node.lineno, name
            case ast.Call(func=ast.Name(id=called) | ast.Attribute(attr=called), args=args) if called in BY_STRING:
                match args:
                    case [ast.Constant(value=str(path)), *_] if is_product(path) and PRIVATE.search(path):
                        yield node.lineno, path
                    case [owner, ast.Constant(value=str(name)), *_] if is_others(owner, name):
                        yield node.lineno, name


def is_product(path: str) -> bool:
    return path.partition(".")[0] in PRODUCT


def test_tests_use_no_private_names_of_the_product() -> None:
    of_product = {
        name for room in PRODUCT for path in (ROOT / room).rglob("*.py") for name in private_names(path.read_text())
    }
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for line, name in private_uses(path.read_text(), of_product)
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "from federation.room.module import _hidden",
        "module._hidden()",
        "Maker()._hidden = 1",
        "from federation.room import module\n_hidden = module._hidden",
        'monkeypatch.setattr(module, "_hidden", 1)',
        'monkeypatch.setattr("federation.room.module._hidden", 1)',
        'monkeypatch.setattr("federation.room.module.Maker._hidden", 1)',
        'mock.patch("pipeline.room.module._hidden")',
        'mock.patch.object(module, "_hidden")',
        'getattr(module, "_hidden")',
    ],
)
def test_use_of_private_name_is_found(source: str) -> None:
    assert len(list(private_uses(source, {"_hidden"}))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "from federation.room.module import public as _public",
        "from flwr.module import _theirs",
        "module._theirs()",
        'monkeypatch.setattr(module, "_theirs", 1)',
        'monkeypatch.setattr("federation.room.module.public", 1)',
        "def _hidden(): ...\n_hidden()\nmodule._hidden",
        "class Own:\n    def __init__(self): self._hidden = 1\nOwn()._hidden",
        'module.__name__, getattr(module, "__file__")',
    ],
)
def test_public_own_and_library_names_are_allowed(source: str) -> None:
    assert list(private_uses(source, {"_hidden"})) == []

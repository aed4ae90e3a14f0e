"""Private names of Flower are used in one room, `federation.flower`. All other uses are listed here with a reason."""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
ROOM = ROOT / "federation" / "flower"
PRODUCT = ("fedthorax", "federation", "pipeline", "models", "notebooks")
PEERS = ("tests", "benchmarks")  # they also play Flower's own part: the SuperLink and the SuperNode
# What Flower's API reference lists of its current API. Everything else may change with any release.
PUBLIC = {"flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.serverapp.strategy"}

# Texts that name parts of Flower, by file, with the reason why they are not in the room.
TEXTS = {
    "federation/approval/fab.py": "keys of an app's pyproject.toml, which Flower documents; libraries that no app may "
    "replace",
    "federation/approval/reasons.py": "the command that builds an app",
    "federation/cli/environment_report.py": "the package's name",
    "federation/coordinator/rehearsal.py": "the logger's name, which Flower documents",
    "federation/coordinator/server_app.py": "the logger's name",
    "federation/gateway/metadata.py": "keys of an app's pyproject.toml",
    "federation/gateway/task_checks.py": "keys of an app's pyproject.toml",
    "federation/node/clientapp_forks.py": "the program that Flower's SuperExec starts; its arguments are not read",
    "federation/node/sandbox.py": "environment variables and a program of Flower; its command line",
    "federation/server/start.py": "a program of Flower; its command line",
    "federation/strategy/aggregation.py": "the logger's name",
    "federation/system/process.py": "environment variables of Flower",
    "models/own_packages.py": "the package's name",
    "pipeline/doctor/environment.py": "the package's name",
}
# Other private names that tests and benchmarks use, by module, with the reason.
PLAYED = {
    "flwr.app.message": "the SuperLink stores a message without its content",
    "flwr.app.message.array": "to cut arrays into small chunks",
    "flwr.app.message.arrayrecord": "to cut arrays into small chunks",
    "flwr.app.metadata": "to make messages as the SuperLink does",
    "flwr.cli.install": "to compare our archive of the app with Flower's",
    "flwr.common.config": "to compare our reading of an app's settings with Flower's",
    "flwr.common.serde": "to play the SuperLink",
    "flwr.proto": "the modules of messages, to play the SuperLink",
    "flwr.proto.control_pb2": "answers of the Control API, to play the SuperLink",
    "flwr.proto.error_pb2": "hostile replies",
    "flwr.proto.node_pb2": "answers of the Control API, to play the SuperLink",
    "flwr.proto.run_pb2": "answers of the Control API, to play the SuperLink",
    "flwr.server.superlink.linkstate": "a database that our server refuses",
    "flwr.supercore": "to see that no process asks for updates",
    "flwr.supercore.inflatable": "to see how often a missing part is fetched",
    "flwr.supercore.inflatable.inflatable_object": "to play both ends of the transfer of objects",
    "flwr.supercore.inflatable.inflatable_utils": "to play both ends of the transfer of objects",
    "flwr.supercore.primitives.asymmetric": "to compare our keys with Flower's",
    "flwr.supercore.run": "an error of a client",
    "flwr.superlink.config_loader": "to run the SuperLink's application without its program",
    "flwr.supernode.fleet_http_client": "to play a node",
    "flwr.supernode.fleet_http_connection": "to play a node",
    "flwr.supernode.node_auth_http_interceptor": "to play a node",
}


def sources(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return [path for path in found if ROOM not in path.parents and path != Path(__file__)]


def private_imports(source: str) -> Iterator[tuple[str, str]]:
    """Yield what a source imports from Flower and is not public, as module and name; "" for a whole module."""
    if "flwr" not in source:
        return  # fast path: parsing every file takes too long
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.ImportFrom(module=str(module), names=names) if module.partition(".")[0] == "flwr":
                yield from ((module, alias.name) for alias in names if not is_public(module, alias.name))
            case ast.Import(names=names):
                whole = [alias.name for alias in names if alias.name.partition(".")[0] == "flwr"]
                yield from ((name, "") for name in whole if name not in PUBLIC)
            case ast.Call(func=ast.Name(id=called) | ast.Attribute(attr=called), args=[ast.Constant(value=str(name))]):
                if called in ("import_module", "import_lean", "__import__") and name.partition(".")[0] == "flwr":
                    yield name, ""


def is_public(module: str, name: str) -> bool:
    return module in PUBLIC and name in importlib.import_module(module).__all__


def private_attributes(source: str) -> Iterator[str]:
    """Yield underscore attributes that a source takes from objects of others. Names that it defines do not count."""
    if "flwr" not in source:
        return
    tree = ast.parse(source)
    own = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and _is_self(node.value)}
    own |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    taken = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and not _is_self(node.value))
    for node in taken:
        if node.attr.startswith("_") and not node.attr.endswith("__") and node.attr not in own:
            yield node.attr


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def flower_texts(source: str) -> Iterator[str]:
    """Yield the texts of a source that name a part of Flower; docstrings, which only explain, do not count."""
    if not any(word in source for word in ("flwr", "FLWR", "flower-", "/v1/fleet")):
        return
    tree = ast.parse(source)
    explains = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    texts = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    for node in texts:
        if id(node) not in explains and any(word in node.value.lower() for word in ("flwr", "flower-", "/v1/fleet")):
            yield node.value


def room_names() -> set[tuple[str, str]]:
    """Return the private names of the room, as module and name."""
    return {each for path in ROOM.glob("*.py") for each in private_imports(path.read_text())}


def test_product_takes_private_names_of_flower_only_from_the_room() -> None:
    found = {path.relative_to(ROOT).as_posix(): list(private_imports(path.read_text())) for path in sources(*PRODUCT)}
    assert {path: names for path, names in found.items() if names} == {}


def test_product_takes_no_underscore_name_from_an_object_of_flower() -> None:
    found = {
        path.relative_to(ROOT).as_posix(): list(private_attributes(path.read_text())) for path in sources(*PRODUCT)
    }
    assert {path: names for path, names in found.items() if names} == {}


def test_texts_that_name_parts_of_flower_are_listed() -> None:
    found = {path.relative_to(ROOT).as_posix() for path in sources(*PRODUCT) if list(flower_texts(path.read_text()))}
    assert found == TEXTS.keys()


def test_tests_use_private_names_of_the_room_or_listed_ones() -> None:
    room = {(module, name) for module, name in room_names()}
    used = {each for path in sources(*PEERS) for each in private_imports(path.read_text())}
    assert {module for module, _ in used - room} == PLAYED.keys()


def test_room_holds_nothing_that_nobody_uses() -> None:
    taken = {
        (node.module, alias.name)
        for source in sources(*PRODUCT)
        if "federation.flower" in (text := source.read_text())
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    modules = [importlib.import_module(f"federation.flower.{path.stem}") for path in ROOM.glob("[!_]*.py")]
    assert {(each.__name__, name) for each in modules for name in getattr(each, "__all__", ())} - taken == set()


@pytest.mark.parametrize(
    "source",
    [
        "from flwr.supercore.date import now",
        "from flwr.app import message",
        "from flwr import supercore",
        "import flwr.common.constant",
        "import flwr.proto.run_pb2 as runs",
        "def later():\n    from flwr.serverapp.strategy.krum import Krum",
        'importlib.import_module("flwr.common")',
    ],
)
def test_private_import_is_found(source: str) -> None:
    assert len(list(private_imports(source))) == 1


@pytest.mark.parametrize(
    "source",
    ["from flwr.app import Message", "import flwr.serverapp.strategy as flower", "from federation.flower import krum"],
)
def test_public_import_is_allowed(source: str) -> None:
    assert list(private_imports(source)) == []


def test_underscore_attribute_and_text_are_found() -> None:
    assert list(private_attributes("from flwr.app import Message\nMessage._inner")) == ["_inner"]
    assert list(private_attributes("import flwr.app\nself._own\nother._own")) == []
    assert list(flower_texts('"""Of flwr."""\nprint("FLWR_HOME")')) == ["FLWR_HOME"]

"""Packages of one's own: networks, losses, transforms and strategies, as entry points of a Python package.

A package's Python files are read as text into one document, whose SHA-256 names exactly this code. `models.own_code`
imports modules from that document, never from the files on disk. So code that changed since it was hashed does not run,
and neither does a file that nobody reviewed. Nothing here runs a package's code. Imports no torch.
"""

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from importlib.metadata import Distribution, EntryPoint, distributions, packages_distributions
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    StringConstraints,
    ValidationError,
    model_serializer,
    model_validator,
)

from models.reasons import NETWORK_PACKAGE
from models.refusal import Refusal

Kind = Literal["network", "loss", "transform", "strategy"]
GROUPS: dict[Kind, str] = {  # of entry points
    "network": "fedthorax.networks",
    "loss": "fedthorax.losses",
    "transform": "fedthorax.transforms",
    "strategy": "fedthorax.strategies",
}
MAX_FILES, MAX_BYTES = 100, 2**20
_PACKAGE = r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?"
_PART = r"[a-z][a-z0-9_]{0,39}"
NAME = rf"^{_PACKAGE}:{_PART}$"  # of a part in a study
CODE = r"^([0-9a-f]{64})?$"
OPTION = rf"^{_PART}$"  # of a setting of a part
_WORD = r"[A-Za-z_][A-Za-z0-9_]{0,99}"
# Modules that our code imports; a package must not answer for them. Those of other distributions: see `installed`.
_OURS = {"configs", "federation", "fedthorax", "models", "pipeline"}
_LIBRARIES = {"flwr", "monai", "numpy", "opacus", "pydantic", "safetensors", "scipy", "sklearn", "torch"}
_AT_START = {"sitecustomize", "usercustomize"}
# The release's own parts, without "_", in lower case. A reviewer would take a package's part of this name for ours.
BUILT_IN: dict[Kind, frozenset[str]] = {
    "loss": frozenset({"crossentropy", "crossentropybypatient", "maskedbce"}),
    "transform": frozenset({"augment", "augmentation", "varyappearance"}),
    "strategy": frozenset(
        {
            *("fedavg", "fedavgm", "fedprox", "fedadam", "fedyogi", "fedadagrad"),
            *("fedmedian", "fedtrimmedavg", "krum", "multikrum", "bulyan", "centeredclip"),
        }
    ),
}

_Part = Annotated[str, StringConstraints(pattern=rf"^{_PART}$")]
_Function = Annotated[str, StringConstraints(pattern=rf"^{_WORD}(\.{_WORD}){{0,9}}:{_WORD}$")]


class Named(NamedTuple):
    """A part of a package that a study names: "package:name", and the SHA-256 of the package's files."""

    kind: Kind
    name: str
    code: str


class Package(BaseModel):
    """A package's code. `networks` and the other parts: by name, "module:function"; `files`: their text, by path."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    name: Annotated[str, StringConstraints(pattern=rf"^{_PACKAGE}$")]
    networks: dict[_Part, _Function] = {}
    files: dict[Annotated[str, StringConstraints(pattern=rf"^{_WORD}(/{_WORD}){{0,9}}\.py$")], str]
    losses: dict[_Part, _Function] = {}
    transforms: dict[_Part, _Function] = {}
    strategies: dict[_Part, _Function] = {}

    @model_serializer(mode="wrap")
    def other_parts_are_written_only_if_there_are_any(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out empty lists of other parts, so that the hash of a package of networks stays as it was."""
        content: dict[str, Any] = write(self)
        return {key: value for key, value in content.items() if value or key in ("networks", "files")}

    def parts(self, kind: Kind) -> Mapping[str, str]:
        """Return the parts of a kind: "module:function" by name."""
        return {
            "network": self.networks,
            "loss": self.losses,
            "transform": self.transforms,
            "strategy": self.strategies,
        }[kind]

    @property
    def functions(self) -> list[str]:
        """All parts' "module:function"."""
        return [function for kind in GROUPS for function in self.parts(kind).values()]

    @property
    def root(self) -> str:
        """The only top-level module of the package."""
        return self.functions[0].partition(":")[0].partition(".")[0]

    @property
    def content(self) -> bytes:
        """The document in its only form."""
        return self.model_dump_json().encode()

    @property
    def sha256(self) -> str:
        return sha256(self.content).hexdigest()

    @model_validator(mode="after")
    def has_one_root_that_is_nobody_elses(self) -> Self:
        if not self.functions or not self.files:
            raise ValueError("it has no network, loss, transform or strategy, or no file")
        for kind, names in BUILT_IN.items():
            if taken := [name for name in self.parts(kind) if name.replace("_", "") in names]:
                raise ValueError(f"its {kind} {taken[0]} has the name of the release's own: rename it")
        if len(self.files) > MAX_FILES or sum(map(len, self.files.values())) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_FILES} files or {MAX_BYTES >> 20} MB")
        for path in self.files:
            if path.removesuffix(".py").partition("/")[0] != self.root:
                raise ValueError("its files and parts are not below one module")
        if len({path.casefold() for path in self.files}) < len(self.files):
            raise ValueError("two of its files have names that some systems take for one")
        if self.root.casefold() in {name.casefold() for name in _taken()}:
            raise ValueError(f"its module {self.root} has the name of a module that others import")
        return self


def _taken() -> set[str]:
    return _OURS | _LIBRARIES | _AT_START | sys.stdlib_module_names


def read_package(content: bytes) -> Package:
    """Read a package's document. Raises Refusal E_NETWORK_PACKAGE if it is none, or not in its only form."""
    try:
        package = Package.model_validate_json(content)
    except ValidationError as error:
        raise unusable(_first(error)) from None
    if package.content != content:
        raise unusable("its document is not in the usual form")
    return package


def installed(name: str, folders: Sequence[Path] = ()) -> Package:
    """Read an installed package without importing it. `folders`: where to look, instead of Python's path.

    `name`: of the distribution, as PyPI normalises it. Raises Refusal E_NETWORK_PACKAGE.
    """
    places = [str(folder) for folder in folders] or sys.path
    found = [each for each in distributions(path=places) if _normal(each.metadata["Name"]) == name]
    if not found:
        raise unusable("it is not installed", name=name)
    entries = {kind: found[0].entry_points.select(group=group) for kind, group in GROUPS.items()}
    roots = {entry.module.partition(".")[0] for group in entries.values() for entry in group}
    if len(roots) != 1:
        known = ", ".join(GROUPS.values())
        raise unusable(f"it has none of the entry points {known}, or those of several modules", name=name)
    (root,) = roots
    others = {_normal(each) for each in packages_distributions().get(root, ())} - {name}
    if others:
        raise unusable(f"its module {root} belongs to another package", name=name)
    parts = {kind: _functions(group) for kind, group in entries.items()}
    files = dict(sorted(_files(found[0], root, name).items()))
    try:
        return Package(
            name=name,
            networks=parts["network"],
            files=files,
            losses=parts["loss"],
            transforms=parts["transform"],
            strategies=parts["strategy"],
        )
    except ValidationError as error:
        raise unusable(_first(error), name=name) from None


def _functions(entries: Iterable[EntryPoint]) -> dict[str, str]:
    """Return "module:function" by name, in alphabetical order."""
    return dict(sorted((entry.name, entry.value.replace(" ", "")) for entry in entries))


def _files(distribution: Distribution, root: str, name: str) -> dict[str, str]:
    """Return the text of each file of the package's module, by path."""
    base = Path(str(distribution.locate_file("")))
    top = base / root
    paths = sorted(top.rglob("*")) if top.is_dir() and not top.is_symlink() else [base / f"{root}.py"]
    files: dict[str, str] = {}
    for path in paths:
        if "__pycache__" in path.parts or (path.is_dir() and not path.is_symlink()):
            continue
        if path.is_symlink() or path.suffix != ".py" or len(files) >= MAX_FILES:
            raise unusable(f"{path.name} is not Python source, is a link, or is one file too many", name=name)
        try:
            files[path.relative_to(base).as_posix()] = path.read_bytes()[: MAX_BYTES + 1].decode("utf-8")
        except (OSError, UnicodeDecodeError):
            raise unusable(f"{path.name} cannot be read as UTF-8", name=name) from None
    return files


def _normal(name: str | None) -> str:
    """Normalise the name of a distribution (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name or "").lower()


def _first(error: ValidationError) -> str:
    return error.errors(include_url=False, include_input=False)[0]["msg"].removeprefix("Value error, ")


def unusable(problem: str, *, name: str = "that the study names") -> Refusal:
    return Refusal(NETWORK_PACKAGE, name=name, problem=problem)

"""`fedthorax study network`: the lines of a study that name a part of an installed package."""

from typing import TYPE_CHECKING, Annotated

import typer

from federation.cli.node_networks import From
from models.refusal import Refusal

if TYPE_CHECKING:
    from models.own_packages import Kind

# Where a study names a part: table, key, key of the code.
_LINES: "dict[Kind, tuple[str, str, str]]" = {
    "network": ("network", "architecture", "code"),
    "loss": ("training", "loss", "loss_code"),
    "transform": ("training", "transform", "transform_code"),
    "strategy": ("strategy", "name", "code"),
}


def network(
    name: Annotated[str, typer.Argument(metavar="PACKAGE:NAME", help="The package and one of its entry points.")],
    folders: From = None,
) -> None:
    """Print the lines of a study that name a network, loss, transform or strategy of a package. Runs no code of it."""
    from models.own_packages import GROUPS, installed
    from models.reasons import NETWORK_PACKAGE

    package_name, _, part_name = name.partition(":")
    package = installed(package_name, folders or [])
    kinds = [kind for kind in GROUPS if part_name in package.parts(kind)]
    if not kinds:
        known = ", ".join(f"{each} ({kind})" for kind in GROUPS for each in package.parts(kind))
        raise Refusal(NETWORK_PACKAGE, name=package.name, problem=f"it has {known}")
    for kind in kinds:
        table, key, code_key = _LINES[kind]
        typer.echo(f'# in [{table}]\n{key} = "{package.name}:{part_name}"\n{code_key} = "{package.sha256}"')

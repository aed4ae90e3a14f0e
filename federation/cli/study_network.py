"""`fedthorax study network`: the lines of a study that name a network of an installed package."""

from typing import Annotated

import typer

from federation.cli.node_networks import From
from models.refusal import Refusal


def network(
    name: Annotated[str, typer.Argument(metavar="PACKAGE:NAME", help="The package and its network's entry point.")],
    folders: From = None,
) -> None:
    """Print the lines for [network] of a study that name a network of an installed package. Runs no code of it."""
    from models.own_networks import installed
    from models.reasons import NETWORK_PACKAGE

    package_name, _, network_name = name.partition(":")
    package = installed(package_name, folders or [])
    if network_name not in package.networks:
        known = ", ".join(package.networks)
        raise Refusal(NETWORK_PACKAGE, name=package.name, problem=f"its networks are {known}")
    typer.echo(f'architecture = "{package.name}:{network_name}"\ncode = "{package.sha256}"')

"""Work out the tensors of a package's networks in a sandbox, before a person approves the package.

The sandbox is the one of a study's code without the site: no network, no patient, no file of the hospital.

    python -I -m federation.node.network_plans     inside: reads the package's document, writes the plans as JSON
"""

import resource
import shutil
import subprocess
import sys
import tempfile
from typing import IO

from pydantic import ValidationError

from federation.node import reasons, sandbox
from federation.protocol.network_files import plans_as_json, plans_of
from models.network_plan import Plan
from models.own_networks import Package, read_package
from models.refusal import Refusal
from pipeline.site.folder import Site

_SECONDS = 300.0
_MAX_BYTES = 8 * 2**20


def plans_of_package(site: Site, package: Package) -> dict[str, Plan]:
    """Return the plans of a package's networks, by name; what the sandbox says is checked as untrusted input.

    A site whose sandbox is "none" works them out without walls, as it runs studies. One whose sandbox is "systemd"
    needs bubblewrap for this.

    Raises Refusal: E_SANDBOX_MISSING, E_NETWORK_TRIAL.
    """
    command = [sys.executable, "-I", "-m", "federation.node.network_plans"]
    if site.settings.sandbox.kind != "none":
        if shutil.which("bwrap") is None:
            raise Refusal(reasons.SANDBOX_MISSING)
        command = sandbox.confined(site, *command, shows_site=False)
    with tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as said:
        try:
            subprocess.run(
                command,
                input=package.content,
                stdout=answer,
                stderr=said,
                timeout=_SECONDS,
                check=True,
                env=sandbox.environment(site) | {"OMP_NUM_THREADS": "1"},
                preexec_fn=_limit_files,
            )
            plans = plans_of(_all_of(answer))
        except (subprocess.SubprocessError, ValidationError) as error:
            text = f"{_all_of(said).decode(errors='replace')[-2000:]} {str(error)[:500]}"
            raise Refusal(reasons.NETWORK_TRIAL, private=text) from None
    if plans.keys() != package.networks.keys():
        raise Refusal(reasons.NETWORK_TRIAL, private="plans of other networks than the package has")
    return plans


def _limit_files() -> None:
    """Let the process write no larger file, so that what it says fits into memory."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (_MAX_BYTES, _MAX_BYTES))


def _all_of(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read(_MAX_BYTES)


def main() -> int:
    """Build and try each network of the package on standard input."""
    from models import own_networks
    from models.import_lean import import_lean
    from models.network_layers import try_layers

    import_lean("monai")
    package = read_package(sys.stdin.buffer.read())
    own_networks.allow(package)
    plans = {}
    stdout, sys.stdout = sys.stdout, sys.stderr  # what the package prints is not part of the answer
    for name in package.networks:
        layers, plans[name] = own_networks.build(f"{package.name}:{name}", package.sha256)
        try_layers(layers, plans[name])
    stdout.buffer.write(plans_as_json(plans))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Refusal as refusal:
        sys.stderr.write(f"{refusal} {refusal.private}")
        sys.exit(1)

"""Try a package in a sandbox, and work out the tensors of its networks, before a person approves it.

The sandbox is the one of a study's code without the site: no network, no patient, no file of the hospital.

    python -I -m federation.node.package_trial     inside: reads the package's document, writes the plans as JSON
"""

import resource
import shutil
import subprocess
import sys
import tempfile
from typing import IO

from pydantic import ValidationError

from federation.node import reasons, sandbox
from federation.protocol.package_files import plans_as_json, plans_of
from models.network_plan import Plan
from models.own_packages import Named, Package, read_package
from models.refusal import Refusal
from pipeline.site.folder import Site

_SECONDS = 300.0
_MAX_BYTES = 8 * 2**20


def try_package(site: Site, package: Package) -> dict[str, Plan]:
    """Try a package's networks, losses and transforms; return the plans of its networks, by name.

    What the sandbox says is checked as untrusted input. A strategy runs on the server alone and is not tried here.
    A site whose sandbox is "none" tries the package without walls, as it runs studies. One whose sandbox is "systemd"
    needs bubblewrap for this.

    Raises Refusal: E_SANDBOX_MISSING, E_NETWORK_TRIAL.
    """
    command = [sys.executable, "-I", "-m", "federation.node.package_trial"]
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
    """Try each network, loss and transform of the package on standard input."""
    from models import own_code
    from models.import_lean import import_lean
    from models.network_layers import try_layers
    from pipeline.training.own_parts import try_loss, try_transform

    import_lean("monai")
    package = read_package(sys.stdin.buffer.read())
    own_code.allow(package)
    plans = {}
    stdout, sys.stdout = sys.stdout, sys.stderr  # what the package prints is not part of the answer
    for name in package.networks:
        layers, plans[name] = own_code.build(f"{package.name}:{name}", package.sha256)
        try_layers(layers, plans[name])
    for name in package.losses:
        try_loss(Named("loss", f"{package.name}:{name}", package.sha256))
    for name in package.transforms:
        try_transform(Named("transform", f"{package.name}:{name}", package.sha256))
    stdout.buffer.write(plans_as_json(plans))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Refusal as refusal:
        sys.stderr.write(f"{refusal} {refusal.private}")
        sys.exit(1)

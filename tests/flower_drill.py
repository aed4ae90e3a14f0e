"""Try another version of Flower: what of this package breaks with it?

    python -m tests.flower_drill VERSION [TEST...]

Makes build/flower-VERSION, an environment with that version and what it needs, beside this environment's libraries.
Then it imports each module of `federation.flower`, and runs the tests that meet Flower's runtime, or those named. What
is missing or fails is printed, and written to build/flower-VERSION.txt. Exit code: 0 if nothing is.
"""

import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from tests.helpers.other_version import ROOT, make_environment

ROOM = ROOT / "federation" / "flower"
TESTS = (
    *("tests/federation/flower", "tests/federation/superlink", "tests/federation/gateway", "tests/federation/strategy"),
    *("tests/federation/approval", "tests/federation/client", "tests/federation/runs/test_submission.py"),
    *("tests/e2e/test_federation.py", "tests/e2e/test_binding.py", "tests/e2e/test_secure_aggregation.py"),
    *("tests/e2e/test_clientapp_forks.py", "tests/e2e/test_simulation.py"),
)
_LOOK = """
import ast, importlib, sys
for path in sys.argv[1:]:
    for node in ast.parse(open(path).read()).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "flwr":
            for alias in node.names:
                try:
                    module = importlib.import_module(node.module)
                    getattr(module, alias.name, None) or importlib.import_module(f"{node.module}.{alias.name}")
                except Exception as error:
                    print(f"{node.module}.{alias.name}: {type(error).__name__}: {error}")
"""


def install(flower: str, folder: Path) -> Path:
    """Make the environment; return its Python."""
    shutil.rmtree(folder, ignore_errors=True)
    libraries = folder / "libraries"
    libraries.mkdir(parents=True)
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    kept = folder / "constraints.txt"
    kept.write_text("\n".join(line for line in pins if not line.startswith("flwr==")) + "\n")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(libraries)]
    wanted = f"flwr[simulation]=={flower}"
    if subprocess.run([*command, "--constraint", str(kept), wanted], check=False).returncode:
        sys.stdout.write("It needs other versions of libraries than constraints.txt has.\n")
        subprocess.run([*command, "--upgrade", wanted], check=True)
    return make_environment(folder / "environment", ROOT, version("fedthorax"), libraries=[libraries])


def missing_names(python: Path) -> list[str]:
    """Return the private names of the room that this version of Flower does not have."""
    files = [str(path) for path in sorted(ROOM.glob("*.py"))]
    done = subprocess.run([str(python), "-I", "-c", _LOOK, *files], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def failed_tests(python: Path, tests: list[str]) -> list[str]:
    """Run tests in that environment; return the lines of those that failed."""
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rfE", "--tb=line", *tests]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    last = done.stdout.strip().rpartition("\n")[2]
    sys.stdout.write(f"{last}\n")
    failed = re.findall(r"^(?:FAILED|ERROR) .*", done.stdout, re.M)
    return failed or ([] if done.returncode == 0 else [last or done.stderr[-500:]])


def main(flower: str, tests: list[str]) -> int:
    folder = ROOT / "build" / f"flower-{flower}"
    python = install(flower, folder)
    missing = missing_names(python)
    sys.stdout.write(f"Flower {flower}: {len(missing)} private names are missing.\n")
    lines = [*missing, *failed_tests(python, tests or list(TESTS))]
    (ROOT / "build" / f"flower-{flower}.txt").write_text("\n".join(lines) + "\n")
    sys.stdout.write("\n".join(lines) + "\n")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))

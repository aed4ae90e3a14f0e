"""Build the leaking app from the released one. `python -m tests.canary.submit APP STUDY SERVER` runs a study with it.

The command works as `fedthorax study run`.
"""

import shutil
import sys
from pathlib import Path

from federation.approval.fab import APP
from tests.canary import leaks


def leaking_app(folder: Path) -> Path:
    """Write the leaking app: the released files with another name and another ClientApp."""
    shutil.copytree(APP, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (package,) = (path for path in folder.iterdir() if path.is_dir())
    shutil.copy(leaks.__file__, package / "client_app.py")
    config = folder / "pyproject.toml"
    config.write_text(config.read_text().replace('name = "fedthorax-app"', 'name = "leaking-app"'))
    return folder


def submit(app: Path, study: Path, server: Path) -> None:
    """Run a study with this app to its end."""
    from federation.cli.console import say
    from federation.protocol.study_config import Study
    from federation.runs import submission
    from federation.runs.launch import launch
    from models.settings import load_settings

    submission.APP = app
    say(f"Run {launch(load_settings(study, Study), server, say).run} is complete.")


if __name__ == "__main__":
    submit(*map(Path, sys.argv[1:]))

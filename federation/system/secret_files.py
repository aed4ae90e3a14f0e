"""Start a program with secrets that it reads from its environment, from files.

    python -I -m federation.system.secret_files NAME=FILE [NAME=FILE ...] -- PROGRAM [ARGUMENT...]

MLflow reads passwords only from variables. Compose files and Kubernetes keep them in files, so that no list of
containers shows them. The variable NAME becomes the first line of FILE. Other users of the machine cannot read it.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path


def read_secrets(pairs: Sequence[str]) -> dict[str, str]:
    """Return the variables that pairs such as NAME=FILE describe. Raises ValueError for another form or an empty file.

    Raises OSError if a file cannot be read.
    """
    found = {}
    for pair in pairs:
        name, separator, file = pair.partition("=")
        if not (name and separator and file):
            raise ValueError(f"not NAME=FILE: {pair}")
        found[name] = Path(file).read_text(encoding="utf-8").partition("\n")[0].strip()
        if not found[name]:
            raise ValueError(f"the file for {name} is empty")
    return found


def main(arguments: Sequence[str]) -> None:
    """Execute the program. Returns only if that is not possible, after printing the reason."""
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    pairs, command = arguments[:end], list(arguments[end + 1 :])
    try:
        if not command:
            raise ValueError("no program after --")
        os.execvpe(command[0], command, {**os.environ, **read_secrets(pairs)})  # noqa: S606
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
    sys.exit(1)

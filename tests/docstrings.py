"""Check the docstrings of the public API with numpydoc: `python -m tests.docstrings`, a part of `make lint`.

`numpydoc lint` checks whole files and has no list of names; the functions inside the packages have shorter docstrings.
The checks are those of [tool.numpydoc_validation] in pyproject.toml.
"""

import sys
from pathlib import Path

from numpydoc.hooks.validate_docstrings import parse_config
from numpydoc.validate import validate

import fedthorax

ROOT = Path(__file__).parents[1]
CONSTANTS = {"FIGURES", "HOSPITALS"}  # a constant has no docstring; fedthorax.__all__ holds no others


def faults() -> list[str]:
    """Return one line per fault: the name, the code of the check and the description."""
    checks = parse_config(ROOT)["checks"]
    found = []
    for name in sorted(set(fedthorax.__all__) - CONSTANTS):
        errors = validate(f"fedthorax.{name}")["errors"]
        found += [f"{name}: {code} {text}" for code, text in errors if code in checks]
    return found


if __name__ == "__main__":
    sys.exit("\n".join(faults()) or None)

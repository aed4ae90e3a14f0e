"""The public keys whose releases this hospital trusts."""

import os
from collections.abc import Sequence
from pathlib import Path

from models.reasons import TRUSTED_KEY
from models.refusal import Refusal

KEYS_VARIABLE = "FEDTHORAX_RELEASE_KEYS"  # a folder of .pub files


def trusted_keys(named: Sequence[Path]) -> list[Path]:
    """Return the named public keys, or else those in the folder that FEDTHORAX_RELEASE_KEYS names.

    Raises Refusal E_TRUSTED_KEY if that folder holds no key: an empty folder must not mean trust in every release.
    """
    folder = os.environ.get(KEYS_VARIABLE)
    if named or not folder:
        return list(named)
    keys = sorted(Path(folder).glob("*.pub"))
    if not keys:
        raise Refusal(TRUSTED_KEY, private=f"{KEYS_VARIABLE}={folder}")
    return keys

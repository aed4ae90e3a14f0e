"""Reasons why no synthetic hospitals are written."""

from models.refusal import Reason

PHANTOM_FOLDER = Reason(
    "E_PHANTOM_FOLDER",
    "the folder for the synthetic hospitals is not empty, or is no folder",
    "Give a folder that does not exist yet, or an empty one. A folder of synthetic hospitals may be deleted first.",
)

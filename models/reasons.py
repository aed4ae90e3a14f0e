"""The table of reasons of the package `models`: settings files and releases."""

from models.refusal import Reason

SETTINGS_FILE = Reason(
    "E_SETTINGS_FILE", "{file} cannot be read", "Give the path of an existing file, or write one with `init`."
)
SETTINGS_SYNTAX = Reason(
    "E_SETTINGS_SYNTAX", "{file} is not valid TOML: {problem}", "Correct the file at the place that is named."
)
SETTINGS_KEY = Reason(
    "E_SETTINGS_KEY",
    "{file} holds wrong settings: {problems}",
    "Correct the keys that are named; the templates under configs/ explain each of them.",
)

NO_MODEL = Reason(
    "E_NO_MODEL",
    "there is no released model to score with",
    "Give --model with the folder of a release, set FEDTHORAX_MODEL, or run `make demo` to make one.",
)
MODEL_ALTERED = Reason(
    "E_MODEL_ALTERED",
    "the model's files do not match their hashes",
    "Do not use this copy: fetch the release again.",
)
MODEL_FORMAT = Reason(
    "E_MODEL_FORMAT",
    "the model's description cannot be read by this version",
    "Use the version of fedthorax that the release's card names.",
)
SYSTEM = Reason(
    "E_SYSTEM",
    "the operating system refused: {problem}",
    "Check permissions and free space of the folder, then run the command again; what was done is kept.",
)

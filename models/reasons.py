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
MODEL_SIGNED = Reason(
    "E_MODEL_SIGNED",
    "the release is signed, and its files may not change",
    "Measure attacks on the run's candidate, then release it: `study release` takes them along.",
)
NOT_SIGNED = Reason(
    "E_NOT_SIGNED",
    "the release is not signed, and a trusted key was named",
    "Fetch the signed folder from the study's server; only a model of your own may be scored without a key.",
)
SIGNATURE_WRONG = Reason(
    "E_SIGNATURE",
    "no trusted key signed these files as they are",
    "Do not use this copy: fetch the release again, and compare the key's SHA-256 with its sender by another way.",
)
TRUSTED_KEY = Reason(
    "E_TRUSTED_KEY",
    "a trusted key cannot be read",
    "Name the .pub file (PEM, elliptic curve) that the study's server handed out, or a folder that holds some.",
)
SIGNING_KEY = Reason(
    "E_SIGNING_KEY",
    "the key to sign with cannot be used",
    "Give a private key on P-256, P-384 or P-521 as PEM without password, or leave --key out.",
)
SYSTEM = Reason(
    "E_SYSTEM",
    "the operating system refused: {problem}",
    "Check permissions and free space of the folder, then run the command again; what was done is kept.",
)

"""Reasons why settings files and releases are refused."""

from models.refusal import Reason

SETTINGS_FILE = Reason(
    "E_SETTINGS_FILE", "{file} cannot be read", "Give the path of an existing file, or write one with `init`."
)
SETTINGS_SYNTAX = Reason(
    "E_SETTINGS_SYNTAX", "{file} is not valid TOML: {problem}", "Correct the file at the stated position."
)
SETTINGS_KEY = Reason(
    "E_SETTINGS_KEY",
    "{file} contains invalid settings: {problems}",
    "Correct the listed keys. The templates in configs/ explain each of them.",
)

NO_MODEL = Reason(
    "E_NO_MODEL",
    "there is no released model for scoring",
    "Give --model with the folder of a release, set FEDTHORAX_MODEL, or run `make demo` to make one.",
)
MODEL_ALTERED = Reason(
    "E_MODEL_ALTERED",
    "the model's files do not match their hashes",
    "Do not use this copy. Fetch the release again.",
)
SEGMENTER_ALTERED = Reason(
    "E_SEGMENTER_ALTERED",
    "the weights of the lung segmenter are missing or altered",
    "Install this version of fedthorax again.",
)
MODEL_FORMAT = Reason(
    "E_MODEL_FORMAT",
    "this version cannot read the model's description",
    "Use the version of fedthorax that is named in the release's card.",
)
MODEL_SIGNED = Reason(
    "E_MODEL_SIGNED",
    "the release is signed, so its files must not change",
    "Measure attacks on the run's candidate, then release it: `study release` includes the results.",
)
NOT_SIGNED = Reason(
    "E_NOT_SIGNED",
    "the release is not signed, but a trusted key was given",
    "Fetch the signed folder from the study's server. Score without a key only with your own model.",
)
SIGNATURE_WRONG = Reason(
    "E_SIGNATURE",
    "no trusted key signed exactly these files",
    "Do not use this copy. Fetch the release again, and compare the key's SHA-256 with its sender by another channel.",
)
TRUSTED_KEY = Reason(
    "E_TRUSTED_KEY",
    "a trusted key cannot be read",
    "Give the .pub file (PEM, elliptic curve) from the study's server, or a folder with such files.",
)
SIGNING_KEY = Reason(
    "E_SIGNING_KEY",
    "the signing key cannot be used",
    "Give a private key on P-256, P-384 or P-521 as PEM without password, or omit --key.",
)
SYSTEM = Reason(
    "E_SYSTEM",
    "the operating system reported an error: {problem}",
    "Check permissions and free space of the folder, then run the command again. Finished work is kept.",
)

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
    "Correct the listed keys. `fedthorax explain site.toml` and `fedthorax explain study.toml` describe each of them.",
)
SETTINGS_FORM = Reason(
    "E_SETTINGS_FORM",
    "the settings file writes {key} in [{table}] in a form in which it cannot be set",
    "Write the table's name in brackets on a line of its own, and below it the key and its value on one line. Then "
    "repeat the command.",
)

NO_MODEL = Reason(
    "E_NO_MODEL",
    "there is no released model for scoring",
    "Give --model with the folder of a release, set FEDTHORAX_MODEL, or run `make demo` to make one. A pretrained "
    "start cannot score: a study begins from it.",
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
    "a trusted key does not exist or cannot be read",
    "Give the .pub file (PEM, elliptic curve) from the study's server, or a folder with such files.",
)
SIGNING_KEY = Reason(
    "E_SIGNING_KEY",
    "the signing key cannot be used",
    "Give a private key on P-256, P-384 or P-521 as PEM without password, or omit --key.",
)
ENCODER_FILES = Reason(
    "E_ENCODER_FILES",
    "the folder is not an encoder that this version can read",
    "Give a folder with encoder.json and encoder.safetensors, as `fedthorax study make-encoder` writes it.",
)
ENCODER_ALTERED = Reason(
    "E_ENCODER_ALTERED",
    "the encoder's weights do not match their hash",
    "Do not use this copy. Fetch the encoder again.",
)
ENCODER_WEIGHTS = Reason(
    "E_ENCODER_WEIGHTS",
    "the weights cannot be used as an encoder: {problem}",
    "Give the file of the pretrained weights, and the options of exactly the network that they belong to.",
)
ENCODER_FOLDER = Reason(
    "E_ENCODER_FOLDER",
    "the folder for the encoder is not empty, or is no folder",
    "Give a folder that does not exist yet, or an empty one.",
)
ENCODER_CLOSED = Reason(
    "E_ENCODER_CLOSED",
    "the encoder of this model is not there",
    "Use the signed release, which brings its encoder. `fedthorax study release` takes its folder with --encoder; a "
    "study with tuned_stages needs it in SERVER_DIR/encoders before it starts. The SHA-256 of its encoder.json is "
    "`encoder` in study.toml.",
)
ADAPTED = Reason(
    "W_ADAPTED",
    "adapted at this hospital: thresholds and operating points not backed by evidence after adaptation; all figures, "
    "the calibration and its bands are those of the parent release",
    "Compare it with the parent in shadow. The way back is to make the parent the live model again.",
)
NOT_RELEASED = Reason(
    "W_NOT_RELEASED",
    "it is not known whether there are reasons to doubt this model: it is the candidate of a run, or of an early "
    "version, and did not pass the release gate",
    "Run `fedthorax study release`, which looks for reasons, and score with the release.",
)
ADAPT_NETWORK = Reason(
    "E_ADAPT_NETWORK",
    "the release's network has no batch norm whose statistics could be estimated again",
    "Use the release as it is. Networks with group norm, and heads on a frozen encoder, cannot be adapted.",
)
DERIVED_ALTERED = Reason(
    "E_DERIVED_ALTERED",
    "the derived release is not its parent with other batch-norm statistics",
    "Do not use this copy. Run `fedthorax adapt` again with the parent.",
)
DERIVED_UNSIGNED = Reason(
    "E_DERIVED_UNSIGNED",
    "a release that a hospital adapted is accepted only with the hospital's key",
    "Add it with --signed-by and the .pub file that `fedthorax adapt` wrote beside it.",
)
DERIVED_PARENT = Reason(
    "E_DERIVED_PARENT",
    "the release from which this one was derived is not a signed model of this clinic",
    "Add the parent first, with --signed-by and the study's public key.",
)
COMPUTE_DEVICE = Reason(
    "E_COMPUTE_DEVICE",
    "the processor {device} of [compute] is not there or does not work",
    "Set device in [compute] to auto or cpu, or install NVIDIA's driver and a PyTorch with CUDA. `fedthorax node "
    "check` shows what is found. With systemd's sandbox, its service must show the GPU: see docs/operations.md.",
)
COMPUTE_PRECISION = Reason(
    "E_COMPUTE_PRECISION",
    "{device} does not compute reliably in {precision}",
    "Set precision in [compute] to auto or fp32.",
)
COMPUTE_MEMORY = Reason(
    "E_COMPUTE_MEMORY",
    "the memory of {device} is too small for the study's network and batch",
    "End other programs that use this memory. Otherwise set checkpointing = true or a smaller micro_batch in "
    "[compute], or device to cpu.",
)
COMPUTE_FAILED = Reason(
    "E_COMPUTE_FAILED",
    "{device} reported an error while it computed",
    "Start the node or the command again. If the error returns, restart the driver, or set device in [compute] to cpu.",
)
COMPUTE_MICRO_BATCH = Reason(
    "E_COMPUTE_MICRO_BATCH",
    "micro_batch in [compute] would divide a batch of {batch_size} patients, over which the network's batch norm "
    "computes its statistics",
    "Set micro_batch to 0; checkpointing = true saves memory too. A study whose network has group norm allows it.",
)
COMPUTE_SCALE = Reason(
    "E_COMPUTE_SCALE",
    "the gradients do not fit into fp16, even with the smallest scale",
    "Set precision in [compute] to auto, fp32 or bf16.",
)
NETWORK_CLOSED = Reason(
    "E_NETWORK_CLOSED",
    "the study or the model uses code of a package, and this program runs no code of packages",
    "Run it where that is intended: in a study, or with `fedthorax score --run-package`.",
)
NETWORK_PACKAGE = Reason(
    "E_NETWORK_PACKAGE",
    "the package {name} cannot be used: {problem}",
    "See docs/own-networks.md. Install it in the usual form (pip install, not --editable) where this command runs.",
)
NETWORK_UNLIKE = Reason(
    "E_NETWORK_UNLIKE",
    "the installed package {name} has other files than the study or the release names",
    "Install exactly the version that the study names. For a new version, `fedthorax study network` prints its code.",
)
PACKAGE_PART = Reason(
    "E_PACKAGE_PART",
    "the {kind} {name} of a package cannot be used: {problem}",
    "Change the package, or its settings in the study. docs/own-networks.md states what a loss, a transform and a "
    "strategy may do; the log of the program that ran it has the error.",
)
NETWORK_PLAN = Reason(
    "E_NETWORK_PLAN",
    "the tensors of the package's network cannot be used: {problem}",
    "Change the network. docs/own-networks.md states what it may consist of.",
)
SYSTEM = Reason(
    "E_SYSTEM",
    "the operating system reported an error: {problem}",
    "Check permissions and free space of the folder, then run the command again. Finished work is kept.",
)

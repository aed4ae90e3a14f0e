"""Reasons why a command is refused."""

from models.refusal import Reason

ADDRESS_MISSING = Reason(
    "E_ADDRESS_MISSING",
    "an address to listen on is not an address of this machine",
    "Correct the address in the settings. The processes of fedthorax also need 127.0.0.1: `ip address show lo` must "
    "list it, also on a machine with IPv6.",
)
DATABASE = Reason(
    "E_DATABASE",
    "a database (.sqlite or .db) of this folder cannot be used: {problem}",
    "Check free space and permissions. Keep a damaged file, and take the database from the last backup.",
)
LIBRARY = Reason(
    "E_LIBRARY",
    "a library of this installation cannot be loaded: {problem}",
    "Install fedthorax again, from a bundle or wheels that fit this machine: its processor, its glibc, its Python.",
)
OUTPUT = Reason(
    "E_OUTPUT",
    "the output of this command cannot be written: {problem}",
    "Free space where it goes, or write it elsewhere, and run the command again. The command's work is kept.",
)
DEMO_PATIENTS = Reason(
    "E_DEMO_PATIENTS",
    "the demo's model would give no number with {patients} patients at each hospital: too few to calibrate it and "
    "to test it; the least number is {least}",
    "Give that number or a larger one as --patients, or leave it out.",
)
PATH = Reason(
    "E_PATH",
    "a file or folder of this command cannot be used: {problem}",
    "Check the paths and their order, as --help shows them. A file cannot be where a folder is needed: give another "
    "path, or move the file away.",
)
SCORE_DEVICE = Reason(
    "E_SCORE_DEVICE",
    "the processor {device} of --device is not there or does not work",
    "Leave out --device to compute on the CPU, or give --device auto. To use a GPU, install NVIDIA's driver and a "
    "PyTorch with CUDA.",
)
STUDY_EXISTS = Reason(
    "E_STUDY_EXISTS",
    "{file} exists already",
    "Choose another name or move the file away first: keep the file of a study that was run, with its results.",
)
FEW_HOSPITALS = Reason(
    "E_FEW_HOSPITALS",
    "no protection works with fewer than three hospitals: of two, each can compute the other's update, and nobody can "
    "tell which of them is hostile",
    "Find a third hospital. For a test with synthetic hospitals name a preset, such as `--preset quick`.",
)
STUDY_SITES = Reason(
    "E_STUDY_SITES",
    "{what} is not possible with {sites} hospitals: {problems}",
    "Choose another number with --sites, or another preset with --preset. docs/choosing-protection.md says which fits.",
)
APP_UNKNOWN = Reason(
    "E_APP_UNKNOWN",
    "no app with this hash is known here, and no file or folder has this name",
    "List the apps with `fedthorax node apps SITE_DIR`. Give a hash (8 digits or more), a .fab file or an app folder.",
)
APP_AMBIGUOUS = Reason(
    "E_APP_AMBIGUOUS",
    "{count} apps have hashes that begin with these digits",
    "Give more digits of the hash.",
)
RELEASE_UNKNOWN = Reason(
    "E_RELEASE_UNKNOWN",
    "no release with this name is known at this site",
    "List the releases with a decision, by their SHA-256, with `fedthorax node releases`.",
)
ENCODER_UNKNOWN = Reason(
    "E_ENCODER_UNKNOWN",
    "no encoder with this name is known at this site",
    "List the encoders with a decision, by the SHA-256 of encoder.json, with `fedthorax node encoders`.",
)
NETWORK_UNKNOWN = Reason(
    "E_NETWORK_UNKNOWN",
    "no package with this code is known at this site",
    "List the packages with a decision, by the SHA-256 of their files, with `fedthorax node networks`.",
)
STUDY_UNKNOWN = Reason(
    "E_STUDY_UNKNOWN",
    "no study with this name or digest is known at this site",
    "List the requested studies with `fedthorax node studies`, or give a study file.",
)
STUDY_AMBIGUOUS = Reason(
    "E_STUDY_AMBIGUOUS",
    "{count} studies have digests that begin with these digits",
    "Give more digits of the digest.",
)
APP_DIGITS = Reason(
    "E_APP_DIGITS",
    "with --yes, an app's hash needs all of its 64 digits, because a server can send another app that begins with the "
    "same ones",
    "Copy the hash that `fedthorax node apps SITE_DIR --show APP` prints, or leave out --yes.",
)
STUDY_DIGITS = Reason(
    "E_STUDY_DIGITS",
    "with --yes, a study's digest needs all of its 64 digits, because a server can send another study that begins with "
    "the same ones",
    "Copy the digest that `fedthorax node studies SITE_DIR --show STUDY` prints, or leave out --yes.",
)
WITHDRAW_FILE = Reason(
    "E_WITHDRAW_FILE",
    "the file with the identifiers of patients is not a text in UTF-8",
    "Save it as a text in UTF-8, one identifier a line, and run the command again. No patient was removed yet.",
)

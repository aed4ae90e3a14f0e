"""Reasons why a site's folder or its settings cannot be used."""

from models.refusal import Reason

PACS_FILE = Reason(
    "E_PACS_FILE",
    "a file that [pacs] of site.toml, or clinic.toml, names cannot be used",
    "It must be there, not be empty, and where it holds a secret be readable by the node's user alone (chmod 600).",
)
NO_PATIENT_ID = Reason(
    "E_NO_PATIENT_ID",
    "the series has no PatientID",
    "Export it with its PatientID; without one nobody knows whose laboratory results belong to it.",
)
ISSUER = Reason(
    "E_ISSUER",
    "another authority than the site's issued the patient identifier",
    "Correct [site] issuer in site.toml, or export the site's own patients: the same number may mean two people.",
)
ISSUERS = Reason(
    "E_ISSUERS",
    "{issuers} authorities issued the patient identifiers of the scans, and the same number may mean two people",
    "Name the one whose numbers the laboratory uses as [site] issuer in site.toml.",
)
CT_DATE = Reason(
    "E_CT_DATE", "the series does not say when it was acquired", "Export the series with its acquisition date."
)
SITE_EXISTS = Reason("E_SITE_EXISTS", "the folder is a site already", "Edit its site.toml, or choose another folder.")
SITE_KEY = Reason(
    "E_SITE_KEY",
    "the site's key for pseudonyms is missing or damaged",
    "Restore keys/pseudonym.key from a backup; with a new key every patient would get a new pseudonym and split.",
)
NO_SITE = Reason("E_NO_SITE", "the folder is not a site: it has no site.toml", "Make one with `fedthorax node init`.")
CT_FOLDER = Reason("E_CT_FOLDER", "the folder of CT series does not exist", "Correct [ct] folder in site.toml.")
NOTHING_PULLED = Reason(
    "E_NOTHING_PULLED",
    "nothing has been fetched from the PACS yet",
    "Run `fedthorax node pull`, or `fedthorax node ingest`, which pulls first.",
)

"""Reasons why a site's folder or its settings cannot be used."""

from models.refusal import Reason

PACS_FILE = Reason(
    "E_PACS_FILE",
    "a certificate, key, password or token file that site.toml or clinic.toml names cannot be used",
    "The file must exist and not be empty. If it holds a secret, only the node's user may read it (chmod 600).",
)
NO_PATIENT_ID = Reason(
    "E_NO_PATIENT_ID",
    "the series has no PatientID",
    "Export it with its PatientID. Without it, laboratory results cannot be assigned to the series.",
)
PATIENT_ID_UNDECODED = Reason(
    "E_PATIENT_ID_UNDECODED",
    "the patient identifier, or its issuer, has bytes that do not fit the character set that the header names",
    "Correct SpecificCharacterSet where the header is made, and export the series again. Otherwise the identifiers of "
    "two patients could be taken for one.",
)
ISSUER = Reason(
    "E_ISSUER",
    "another authority than the site's issued the patient identifier",
    "Correct [site] issuer in site.toml, or export only the site's patients: one number may identify two people.",
)
ISSUERS = Reason(
    "E_ISSUERS",
    "{issuers} authorities issued the patient identifiers of the scans, so one number may identify two people",
    "Set [site] issuer in site.toml to the authority whose numbers the laboratory uses.",
)
SCAN_OFFSET = Reason(
    "W_SCAN_OFFSET",
    "the time of the scan has an offset from UTC, and the time zone of the site is not set: it counts as written",
    "Set time_zone in [site] of site.toml. If the PACS keeps times in UTC, labels may else follow the wrong day.",
)
CT_DATE = Reason("E_CT_DATE", "the series has no acquisition date", "Export the series with its acquisition date.")
SITE_EXISTS = Reason("E_SITE_EXISTS", "the folder is already a site", "Edit its site.toml, or choose another folder.")
SITE_NOT_MADE = Reason(
    "E_SITE_NOT_MADE",
    "the folder has a site.toml and no keys: it holds a hospital's files, and no site was made from it yet",
    "Make the site in another folder: fedthorax node init SITE_DIR --from THIS_FOLDER.",
)
SITE_KEY = Reason(
    "E_SITE_KEY",
    "the site's key for pseudonyms is missing or damaged",
    "Restore keys/pseudonym.key from a backup. With a new key every patient would get a new pseudonym and split.",
)
SERVER_PROXY = Reason(
    "E_SERVER_PROXY",
    "the proxy does not connect this node to the study's server: {cause}",
    "Allow CONNECT to the server's host and port in the proxy. Name the proxy as http://HOST:PORT in [server] of "
    "site.toml; if it requires a login, remove that line and set HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT for this "
    "command or service. Or exclude the server's host with NO_PROXY.",
)
NO_SITE = Reason("E_NO_SITE", "the folder is not a site: it has no site.toml", "Make one with `fedthorax node init`.")
CT_FOLDER = Reason("E_CT_FOLDER", "the folder with the CT series does not exist", "Correct [ct] folder in site.toml.")
NOTHING_PULLED = Reason(
    "E_NOTHING_PULLED",
    "nothing has been fetched from the PACS yet",
    "Run `fedthorax node pull`, or `fedthorax node ingest`, which pulls first.",
)
NOTHING_FETCHED = Reason(
    "E_NOTHING_FETCHED",
    "no records have been fetched from the FHIR server or the OMOP database yet",
    "Run `fedthorax node pull`, or `fedthorax node ingest`, which fetches first.",
)
MASK_FOLDER = Reason(
    "E_MASK_FOLDER",
    "the folder with the lung masks does not exist, or leads into the folder of the scans",
    "Correct [ct] lung_masks in site.toml, or remove the line.",
)
WITHDRAWN = Reason(
    "E_WITHDRAWN",
    "the patient has withdrawn, so the series was not used",
    "No action is needed here. If the hospital's rules require it, delete the patient's files from the export too.",
)

"""Reasons why laboratory results, outcomes or labels are refused or flagged."""

from models.refusal import Reason

TABLE_FILE = Reason(
    "E_TABLE_FILE",
    "the {table} file could not be opened",
    "Check `file` in this table of site.toml, and that the node's user may read it.",
)
ENCODING = Reason(
    "E_ENCODING",
    "the {table} file holds bytes that its declared encoding does not know",
    "Declare the encoding in which the file was exported (utf-8-sig, latin-1, cp1252), or export it again.",
)
SCHEMA = Reason(
    "E_SCHEMA",
    "the {table} file is not laid out as declared: {fault}",
    "Compare the file's first row with the column names and the separator in site.toml; export it again.",
)
ROW = Reason(
    "E_ROW",
    "a row does not have as many cells as the first row",
    "Quote cells that hold the separator; the row was left out.",
)
ROWS = Reason(
    "E_ROWS",
    "{percent} % of the {table} file's rows do not have as many cells as its first row",
    "Check the declared separator, and quote cells that hold it.",
)
NO_IDENTIFIER = Reason(
    "E_NO_IDENTIFIER",
    "the patient identifier is missing, or is another authority's",
    "Export the identifier that the scans carry in PatientID.",
)
IDENTIFIER_AMBIGUOUS = Reason(
    "E_IDENTIFIER_AMBIGUOUS",
    "a laboratory result names several patient identifiers, and none is marked as the site's",
    "Name the authority of the scans' identifiers as `issuer` in [site] or [laboratory] of site.toml.",
)
IDENTIFIERS = Reason(
    "E_IDENTIFIERS",
    "{percent} % of the {table} file's rows name no patient, or none that can be told from others",
    "Export the identifier that the scans carry; for HL7 and FHIR set `issuer`; export FHIR's Patients as well.",
)
LABORATORY_ISSUERS = Reason(
    "E_LABORATORY_ISSUERS",
    "{issuers} authorities issued the patient identifiers of the laboratory, and one number may mean two people",
    "Name the one whose numbers the scans carry as `issuer` in [site] or [laboratory] of site.toml.",
)
DATE = Reason(
    "E_DATE",
    "a date is missing or not written in the declared format",
    "Correct it at its source, or `date_format` in site.toml; HL7 and FHIR must give the day of collection.",
)
DATES = Reason(
    "E_DATES",
    "{percent} % of the {table} file's rows lack a date in the declared format",
    "Correct `date_format` in site.toml (day and month may be swapped); export the time of collection.",
)
TIME_ZONE = Reason(
    "E_TIME_ZONE",
    "the laboratory gives times with a time zone, and it is not said in which zone the site lies",
    'Set `time_zone` in [site] of site.toml, for instance to "Europe/Paris".',
)
HL7 = Reason(
    "E_HL7",
    "a message is not well-formed HL7 v2",
    "Export it again; segments end with a carriage return, and no line breaks stand inside them.",
)
HL7_FILES = Reason(
    "E_HL7_FILES",
    "{percent} % of the {table} file's messages are not well-formed HL7 v2",
    "Check `file`, `format` and `encoding` in [laboratory] of site.toml; export ORU^R01 messages.",
)
HL7_CHARSET = Reason(
    "W_HL7_CHARSET",
    "messages name another character set (MSH-18) than site.toml; they were read as site.toml says",
    "Check `encoding` in [laboratory]; a word that was read wrongly is in no word list.",
)
OTHER_MESSAGE = Reason(
    "W_OTHER_MESSAGE",
    "messages that are no production ORU^R01 were left aside",
    "Nothing to do, unless results are missing.",
)
FHIR = Reason(
    "E_FHIR",
    "a resource is not valid FHIR R4 JSON",
    "Export it again as R4 JSON; files of lines must end in .ndjson.",
)
FHIR_FILES = Reason(
    "E_FHIR_FILES",
    "{percent} % of the {table} file's resources are not valid FHIR R4 JSON",
    "Check `file` and `format` in [laboratory] of site.toml; export R4 as JSON (32 MB each) or NDJSON.",
)
NO_PCR_TEST = Reason(
    "E_NO_PCR_TEST",
    "none of the laboratory's {results} results is that of a SARS-CoV-2 PCR",
    "Add the laboratory's own codes of the overall PCR result to `tests` in [laboratory] of site.toml.",
)
OTHER_TEST = Reason(
    "W_OTHER_TEST",
    "results of another test were left aside",
    "Nothing to do, unless it is the SARS-CoV-2 PCR: then add its code to `tests` in [laboratory] of site.toml.",
)
PCR_GENES_ONLY = Reason(
    "W_PCR_GENES_ONLY",
    "a specimen has results for single genes and no overall result",
    "Export the laboratory's overall result; what single genes mean is for the laboratory to say.",
)
PCR_PRELIMINARY = Reason(
    "W_PCR_PRELIMINARY",
    "a result is not final; it was left out",
    "Export it again once the laboratory has released it; check that the export tells the status.",
)
PCR_WITHDRAWN = Reason(
    "W_PCR_WITHDRAWN",
    "the laboratory has withdrawn a result, or could not obtain it",
    "Nothing to do.",
)
PCR_DATE = Reason(
    "E_PCR_DATE",
    "a specimen was collected in the future",
    "Correct the collection time at its source, or the clock of this machine; the row was left out.",
)
PCR_UNMAPPED_FLAGGED = Reason(
    "W_PCR_UNMAPPED",
    "a result is in none of the laboratory's word lists",
    "Let the laboratory say what it means and add it to site.toml; the row was left out.",
)
PCR_UNMAPPED = Reason(
    "E_PCR_UNMAPPED",
    "{percent} % of the {table} file's rows hold a result that is in none of the laboratory's word lists",
    "Complete the word lists with the laboratory; check the encoding; export final results only.",
)
OUTCOME_DATE = Reason(
    "E_OUTCOME_DATE",
    "an outcome or the end of follow-up lies in the future",
    "Export days that have been observed, with no placeholder dates; the patient has no outcome.",
)
OUTCOME_ORDER = Reason(
    "E_OUTCOME_ORDER",
    "a patient is said to have died before being intubated or taken into intensive care",
    "Correct the dates at their source; the patient has no outcome.",
)
OUTCOME_CONFLICT = Reason(
    "E_OUTCOME_CONFLICT",
    "two rows give one patient different outcomes",
    "Export one row for each patient; the patient has no outcome.",
)
LABEL = Reason(
    "E_LABEL",
    "a label is neither 0 nor 1 nor empty",
    "Correct the row at its source; the patient has no labels.",
)
LABELS = Reason(
    "E_LABELS",
    "{percent} % of the {table} file's rows hold a label that is neither 0 nor 1 nor empty",
    "Check the names of the columns in [labels] of site.toml; write yes as 1, no as 0.",
)
LABEL_CONFLICT = Reason(
    "E_LABEL_CONFLICT",
    "two rows give one patient different labels",
    "Keep one row for each patient; the patient has no labels.",
)
PCR_INCOMPLETE = Reason(
    "E_PCR_INCOMPLETE",
    "a negative patient has a laboratory row that was left out, which may have been positive",
    "Mend that row at its source or in the word lists; it has a finding of its own.",
)
NO_LABEL = Reason("E_NO_LABEL", "the labels file says nothing about the scan", "Check that both name it alike.")
NO_PCR = Reason(
    "E_NO_PCR",
    "the patient has no PCR result",
    "Check that laboratory and scanner use the same patient identifier, leading zeros included.",
)
PCR_WINDOW = Reason(
    "E_PCR_WINDOW",
    "no PCR result close enough to the CT decides whether it shows Covid-19",
    "Nothing to do if the patient was not tested around the CT; the windows are in [join] of site.toml.",
)
PCR_CONFLICT = Reason(
    "E_PCR_CONFLICT",
    "one specimen is both positive and negative",
    "Export one overall result for each specimen, not one for each gene; ask the laboratory which holds.",
)
PCR_INDETERMINATE = Reason(
    "E_PCR_INDETERMINATE",
    "the PCR results around the CT are indeterminate",
    "Nothing to do, unless the laboratory has repeated the test.",
)
NO_OUTCOME = Reason(
    "W_NO_OUTCOME",
    "it is not known what became of the patient",
    "Complete the outcome file: one row for each patient with a CT, with the last day on which the patient was seen.",
)
EVENT_BEFORE_CT = Reason(
    "W_EVENT_BEFORE_CT",
    "the patient was intubated, in intensive care or dead before the day of the CT",
    "Nothing to do if the dates are right: such a scan foretells nothing.",
)
FOLLOWED_TOO_SHORT = Reason(
    "W_FOLLOWED_TOO_SHORT",
    "the patient was followed without event for less than the horizon",
    "Export later follow-up, if there is any; `horizon_days` is in [join] of site.toml.",
)

"""Reasons why laboratory results, outcomes or labels are refused or flagged; of outcomes, see `outcome_reasons` too."""

from models.refusal import Reason

TABLE_FILE = Reason(
    "E_TABLE_FILE",
    "the {table} file could not be opened",
    "Check `file` in this table of site.toml, and that the node's user may read it.",
)
ENCODING = Reason(
    "E_ENCODING",
    "the {table} file contains bytes that are not valid in its declared encoding",
    "Declare the encoding in which the file was exported (utf-8-sig, latin-1, cp1252), or export it again.",
)
SCHEMA = Reason(
    "E_SCHEMA",
    "the {table} file does not have the declared layout: {fault}",
    "Compare the file's first row with the column names and the separator in site.toml, or export the file again.",
)
FILE_CUT = Reason(
    "E_FILE_CUT",
    "the {table} file is not whole: {fault}",
    "Copy or export it again, and check that the disk was not full. Nothing was imported: the cohort is as before. In "
    "HL7 v2, a file or batch with FHS or BHS must end with FTS or BTS; if these have counts, they must be right.",
)
ROW = Reason(
    "E_ROW",
    "a row has more or fewer cells than the first row, or a quotation mark joins it with others",
    "Quote cells that contain the separator, and double the quotation marks in cells. The row was skipped. If the "
    "finding names a patient, that patient gets no negative PCR label, or no outcome. If not, nobody knows whose row "
    "it was, and a label may lack it.",
)
UNREAD_RECORD = Reason(
    "W_UNREAD_RECORD",
    "a row, message or resource that cannot be read may be this patient's",
    "Correct it at its source. It has a finding of its own. Until then the patient gets no negative PCR label, or no "
    "outcome.",
)
ROWS = Reason(
    "E_ROWS",
    "{percent} % of the {table} file's rows have more or fewer cells than its first row, or are joined by quotation "
    "marks",
    "Check the declared separator, quote cells that contain it, and double the quotation marks in cells.",
)
NO_IDENTIFIER = Reason(
    "E_NO_IDENTIFIER",
    "the patient identifier is missing, or another authority issued it",
    "Export the identifier that the scans have in PatientID.",
)
IDENTIFIER_AMBIGUOUS = Reason(
    "E_IDENTIFIER_AMBIGUOUS",
    "a laboratory result has several patient identifiers, and none is marked as the site's",
    "Set `issuer` in [site] or [laboratory] of site.toml to the authority that issued the identifiers in the scans.",
)
IDENTIFIERS = Reason(
    "E_IDENTIFIERS",
    "{percent} % of the {table} file's rows have no patient identifier, or an ambiguous one",
    "Export the identifier that the scans have. For HL7 and FHIR set `issuer`; for FHIR export the Patients too.",
)
LABORATORY_ISSUERS = Reason(
    "E_LABORATORY_ISSUERS",
    "{issuers} authorities issued the patient identifiers of the laboratory, so one number may identify two people",
    "Set `issuer` in [site] or [laboratory] of site.toml to the authority that issued the identifiers in the scans.",
)
DATE = Reason(
    "E_DATE",
    "a date is missing or not written in the declared format",
    "Correct the date at its source, or `date_format` in site.toml. HL7 and FHIR must state the day of collection.",
)
DATES = Reason(
    "E_DATES",
    "{percent} % of the {table} file's rows have no date in the declared format",
    "Correct `date_format` in site.toml (day and month may be swapped), and export the time of collection.",
)
EARLY_DAYS = Reason(
    "E_EARLY_DAYS",
    "none of the {days} different dates in the {table} file is later in its month than the 12th: day and month may be "
    "swapped",
    "Compare some dates with their source. Correct `date_format` in this table of site.toml, or, if it is right, set "
    "`may_lack_late_days = true` there.",
)
TIME_ZONE = Reason(
    "E_TIME_ZONE",
    "times of the laboratory or the outcomes have a time zone, but the time zone of the site is not set",
    'Set `time_zone` in [site] of site.toml, for example to "Europe/Paris".',
)
HL7 = Reason(
    "E_HL7",
    "a message is not well-formed HL7 v2",
    "Export it again. Segments must end with a carriage return and contain no line breaks. A patient whom the finding "
    "names gets no negative PCR label. Without one, nobody knows whose result it was, and a label may lack it.",
)
HL7_FILES = Reason(
    "E_HL7_FILES",
    "{percent} % of the {table} file's messages are not well-formed HL7 v2",
    "Check `file`, `format` and `encoding` in [laboratory] of site.toml. Export ORU^R01 messages.",
)
HL7_CHARSET = Reason(
    "W_HL7_CHARSET",
    "messages state another character set (MSH-18) than site.toml; the one in site.toml was used",
    "Check `encoding` in [laboratory]. Words read with the wrong encoding are not found in the word lists.",
)
OTHER_MESSAGE = Reason(
    "W_OTHER_MESSAGE",
    "messages that are not production ORU^R01 messages were skipped",
    "No action is needed, unless results are missing.",
)
FHIR = Reason(
    "E_FHIR",
    "a resource is not valid FHIR R4 JSON",
    "Export it again as R4 JSON. Files with one resource in each line must have the suffix .ndjson. A patient whom the "
    "finding names gets no negative PCR label, or no outcome. Without one, nobody knows whose it was, and a label may "
    "lack it.",
)
FHIR_FILES = Reason(
    "E_FHIR_FILES",
    "{percent} % of the {table} file's resources are not valid FHIR R4 JSON",
    "Check `file` and `format` in [laboratory] of site.toml. Export R4 as JSON (at most 32 MB a file) or NDJSON.",
)
NO_PCR_TEST = Reason(
    "E_NO_PCR_TEST",
    "no result of the laboratory ({results} in all) is a SARS-CoV-2 PCR result",
    "Add the laboratory's own codes for the overall PCR result to `tests` in [laboratory] of site.toml.",
)
OTHER_TEST = Reason(
    "W_OTHER_TEST",
    "results of another test were skipped",
    "No action is needed, unless it is the SARS-CoV-2 PCR: then add its code to `tests` in [laboratory] of site.toml.",
)
PCR_GENES_ONLY = Reason(
    "W_PCR_GENES_ONLY",
    "a specimen has results for single genes and no overall result",
    "Export the laboratory's overall result. Only the laboratory can interpret single genes.",
)
PCR_PRELIMINARY = Reason(
    "W_PCR_PRELIMINARY",
    "a result is not final; it was skipped",
    "Export it again when the laboratory has released it. Check that the export contains the status.",
)
PCR_WITHDRAWN = Reason(
    "W_PCR_WITHDRAWN",
    "the laboratory has withdrawn a result, or could not obtain it",
    "No action is needed. Of a CSV file, all results of the specimen are skipped: it does not tell which one is meant.",
)
PCR_DATE = Reason(
    "E_PCR_DATE",
    "a collection time is in the future",
    "Correct the collection time at its source, or the clock of this machine. The row was skipped.",
)
PCR_UNMAPPED_FLAGGED = Reason(
    "W_PCR_UNMAPPED",
    "a result is in none of the laboratory's word lists",
    "Ask the laboratory what it means, and add it to a word list in site.toml. The row was skipped.",
)
PCR_UNMAPPED = Reason(
    "E_PCR_UNMAPPED",
    "{percent} % of the {table} file's rows have a result that is in none of the laboratory's word lists",
    "Complete the word lists with the laboratory, check the encoding, and export only final results.",
)
LABEL = Reason(
    "E_LABEL",
    "a label is not 0, 1 or empty",
    "Correct the row at its source. The patient has no labels.",
)
LABELS = Reason(
    "E_LABELS",
    "{percent} % of the {table} file's rows have a label that is not 0, 1 or empty",
    "Check the names of the columns in [labels] of site.toml. Write yes as 1 and no as 0.",
)
LABEL_CONFLICT = Reason(
    "E_LABEL_CONFLICT",
    "two rows state different labels for one patient",
    "Keep one row for each patient. The patient has no labels.",
)
PCR_INCOMPLETE = Reason(
    "E_PCR_INCOMPLETE",
    "a negative patient also has a skipped laboratory row, which may have been positive",
    "Correct that row at its source or in the word lists. It has a finding of its own.",
)
NO_LABEL = Reason(
    "E_NO_LABEL",
    "the labels file has no labels for the scan",
    "Check that the labels file and the scan use the same identifier.",
)
NO_PCR = Reason(
    "E_NO_PCR",
    "the patient has no PCR result",
    "Check that laboratory and scanner use the same patient identifier, including leading zeros.",
)
PCR_WINDOW = Reason(
    "E_PCR_WINDOW",
    "no PCR result is close enough to the CT to decide whether the patient has Covid-19",
    "No action is needed if the patient was not tested around the CT. The windows are in [join] of site.toml.",
)
PCR_CONFLICT = Reason(
    "E_PCR_CONFLICT",
    "one specimen is both positive and negative",
    "Export one overall result for each specimen, not one for each gene. Ask the laboratory which result is valid.",
)
PCR_INDETERMINATE = Reason(
    "E_PCR_INDETERMINATE",
    "the PCR results around the CT are indeterminate",
    "No action is needed, unless the laboratory has repeated the test.",
)
NO_OUTCOME = Reason(
    "W_NO_OUTCOME",
    "the patient's outcome is not known",
    "Complete the outcome file: one row for each patient with a CT, with the last day on which the patient was seen.",
)
EVENT_BEFORE_CT = Reason(
    "W_EVENT_BEFORE_CT",
    "the patient was intubated, in intensive care or dead before the day of the CT",
    "No action is needed if the dates are right: such a scan cannot predict the event.",
)
FOLLOWED_TOO_SHORT = Reason(
    "W_FOLLOWED_TOO_SHORT",
    "the follow-up without event is shorter than the horizon",
    "Export later follow-up, if there is any. `horizon_days` is in [join] of site.toml.",
)

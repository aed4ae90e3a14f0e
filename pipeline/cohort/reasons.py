"""Reasons why a patient is not in the cohort, and why the cohort cannot be used."""

from models.refusal import Reason

DUPLICATE_SCAN = Reason(
    "E_DUPLICATE_SCAN",
    "the same scan is stored under two patient identifiers",
    "Find the patient of the scan in the PACS. Both patients were excluded.",
)
SHARED_STUDY = Reason(
    "E_SHARED_STUDY",
    "one examination is stored under two patient identifiers",
    "Find the patient of the examination in the PACS. Both patients were excluded.",
)
SEVERAL_SERIES = Reason(
    "W_SEVERAL_SERIES",
    "the examination contains several usable series",
    "No action is needed. The series with the most slices was used.",
)
DUPLICATE_SERIES = Reason(
    "W_DUPLICATE_SERIES",
    "the same scan is stored several times for the patient, under different UIDs",
    "No action is needed. One of the copies was used; check that all of them have the same date.",
)
OUTCOME_WITHOUT_CT = Reason(
    "W_OUTCOME_WITHOUT_CT",
    "there is an outcome for a patient without a CT",
    "Check that the PACS export is complete and uses the same identifiers. No patient was excluded.",
)
MASK_SEVERAL = Reason(
    "E_MASK_SEVERAL",
    "there are {masks} lung masks for this series",
    "Leave only one of them in the folder that [ct] lung_masks of site.toml names.",
)
EXAMINE_FAILED = Reason(
    "E_EXAMINE_FAILED",
    "the examination of the series failed with an unexpected error",
    "Report it with the site's log, which contains the error. Other series are not affected. Every ingest examines the "
    "series again.",
)
EXAMINE_MEMORY = Reason(
    "E_EXAMINE_MEMORY",
    "there was not enough memory to examine the series",
    "Free memory, or give the machine more. Then run `fedthorax node ingest`, which examines the series again.",
)
EXAMINE_DIED = Reason(
    "E_EXAMINE_DIED",
    "the system ended the process that examined the series",
    "Free memory, or give the machine more. Then run `fedthorax node ingest`, which examines the series again, last "
    "and alone. If its process ends again, report it: a file may be damaged. Other series are not affected.",
)
COHORT_BUSY = Reason(
    "E_COHORT_BUSY",
    "another command is using this site's cohort",
    "Wait until it has finished, and run the command again.",
)
COHORT_FILE = Reason(
    "E_COHORT_FILE",
    "a file of the cohort cannot be read or written",
    "Free space on the disk. If cohort/cohort.sqlite is damaged, delete it. Then run `fedthorax node ingest`, and "
    "`fedthorax node encode` for a study with an encoder: they make damaged files again, and nothing is lost.",
)
PREPROCESSING = Reason(
    "E_PREPROCESSING",
    "the cohort was preprocessed with other settings than those of the study",
    "Run `fedthorax node ingest` with --study and the study's file.",
)
NOT_ENCODED = Reason(
    "E_NOT_ENCODED",
    "the study uses an encoder, and {missing} of the site's {scans} scans have no features of it yet",
    "Approve the encoder with `fedthorax node approve-encoder`, then run `fedthorax node encode`.",
)
NO_ENCODER = Reason(
    "E_NO_ENCODER",
    "no approved encoder fits the preprocessing of this site's cohort",
    "Approve an encoder with `fedthorax node approve-encoder`. If one is approved, run `fedthorax node ingest` with "
    "--study and the file of the study that uses it.",
)
FEWER_RECORDS = Reason(
    "W_FEWER_RECORDS",
    "the site has {count} {kind}, and had {before} at the last ingest",
    "Check whether the file was cut: compare its end with the source. If so, copy it again and repeat the ingest: "
    "until then, patients lack their labels. No action is needed if the records were deleted or withdrawn on purpose. "
    "The next ingest compares with this one.",
)

"""Reasons why a patient is not in the cohort."""

from models.refusal import Reason

DUPLICATE_SCAN = Reason(
    "E_DUPLICATE_SCAN",
    "the same scan is filed under two patient identifiers",
    "Find out in the PACS whose scan it is; both were left out.",
)
SHARED_STUDY = Reason(
    "E_SHARED_STUDY",
    "one examination is filed under two patient identifiers",
    "Find out in the PACS whose it is; both were left out.",
)
SEVERAL_SERIES = Reason(
    "W_SEVERAL_SERIES",
    "the examination holds several usable series",
    "Nothing to do: the one with most slices was taken.",
)
OUTCOME_WITHOUT_CT = Reason(
    "W_OUTCOME_WITHOUT_CT",
    "there is an outcome for a patient without a CT",
    "Check that the PACS export is complete and uses the same identifiers; nothing was left out.",
)
EXAMINE_FAILED = Reason(
    "E_EXAMINE_FAILED",
    "examining the series failed in a way that was not foreseen",
    "Report it with the site's log, which tells the error; the other series are not affected.",
)
WORKER_DIED = Reason(
    "E_WORKER_DIED",
    "a process that examined series was ended by the system, most likely for want of memory",
    "Free memory and run the command again; what was examined is kept.",
)
COHORT_BUSY = Reason(
    "E_COHORT_BUSY",
    "another command works on this site's cohort",
    "Wait until it has finished, and run the command again.",
)
COHORT_FILE = Reason(
    "E_COHORT_FILE",
    "the cohort's file cannot be read or written",
    "Free space on the disk; if the file is damaged, delete cohort/cohort.sqlite and ingest again: nothing is lost.",
)
PREPROCESSING = Reason(
    "E_PREPROCESSING",
    "the cohort was prepared with other settings than the study's",
    "Run `fedthorax node ingest` with --study and the study's file.",
)

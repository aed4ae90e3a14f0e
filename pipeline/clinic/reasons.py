"""Reasons of the clinic: the clinician's page, its API, and the exchange with the PACS."""

from models.refusal import Reason

NO_SUCH_JOB = Reason(
    "E_NO_SUCH_JOB",
    "the queue has no such scan",
    "Look at the worklist. Answered scans are removed after the time set in clinic.toml.",
)
NO_SUCH_PICTURE = Reason(
    "E_NO_SUCH_PICTURE",
    "this scan has no such slice or overlay",
    "Request the list of slices first: it gives their number. An overlay exists only if the answer shows it.",
)
PICTURE_DAMAGED = Reason(
    "E_PICTURE_DAMAGED",
    "a picture file of this scan is damaged or cannot be read",
    "Submit the scan again, or restore the clinic from its backup: fedthorax clinic restore. Check the disk.",
)
NO_SUCH_ANSWER = Reason(
    "E_NO_SUCH_ANSWER",
    "there is no such answer",
    "Look at the worklist. Answers are removed after the time set in clinic.toml.",
)
SCAN_TAKEN = Reason(
    "E_SCAN_TAKEN",
    "another reader has this scan",
    "Look at the worklist, which names them. They release it, or an administrator does.",
)
ANSWER_CHANGED = Reason(
    "E_ANSWER_CHANGED",
    "the answer has changed since it was shown: another person decided, or a PCR result was entered",
    "Look at the answer as it is now, then decide again.",
)
DECISION = Reason(
    "E_DECISION",
    "the decision is not complete or contradicts itself: {problems}",
    "Correct it on the page, or in the request as the API's document describes it.",
)
PCR_DAY = Reason(
    "E_PCR_DAY",
    "no specimen of this patient can be of this day: {why}",
    "Correct the day of the specimen. If it is not known, leave it empty.",
)
CORRECTED_MASK = Reason(
    "E_CORRECTED_MASK",
    "the corrected mask cannot be used: {problems}",
    "Open the answer again and correct its mask on the page, or build the request as the API's document describes it.",
)
MASK_NOT_KEPT = Reason(
    "E_MASK_NOT_KEPT",
    "the mask of this answer cannot be corrected by hand: an earlier version of the service wrote the answer",
    "Score the scan again, correct the shares in the table, or say that the mask is not usable.",
)
NOT_A_PERSON = Reason(
    "E_NOT_A_PERSON",
    "only a named person can accept, correct or reject a result; this token names none",
    "Ask an administrator for a token of your own: `fedthorax clinic token CLINIC NAME --person 'FAMILY^GIVEN'`.",
)
PERSON_NAME = Reason(
    "E_PERSON_NAME",
    "this is not a person's name as DICOM writes it",
    "Write FAMILY^GIVEN, at most 64 characters, without backslash, equals sign and control characters.",
)
NOT_ACCEPTED = Reason(
    "E_NOT_ACCEPTED",
    "no named person has accepted this result, so it is not sent",
    'Accept or correct it first. Only with send = "always" in clinic.toml are results sent before, marked unverified.',
)
QUEUE_FULL = Reason(
    "E_QUEUE_FULL",
    "the queue of waiting scans is full ({waiting})",
    "Send this scan again later, or raise waiting_scans in clinic.toml.",
)
ALREADY_ANSWERED = Reason(
    "E_ALREADY_ANSWERED",
    "this scan is already answered, or another worker is scoring it",
    "No action is needed. The valid answer is in the worklist.",
)
SCORING_FAILED = Reason(
    "E_SCORING_FAILED",
    "the scan could not be scored because of an unexpected error",
    "Read logs/worker.log in the clinic's folder, and report the error.",
)
SCORING_MEMORY = Reason(
    "E_SCORING_MEMORY",
    "scoring the scan needs more memory than the worker may use",
    "Raise worker_mb in [limits] of clinic.toml, or send a reconstruction with fewer slices.",
)
SCORING_DIED = Reason(
    "E_SCORING_DIED",
    "the scan could not be scored: the worker ended {attempts} times while scoring it, out of memory or time",
    "Read the scan on the workstation. The administrator of the service finds the cause in logs/service.log.",
)
NO_SUCH_MODEL = Reason(
    "E_NO_SUCH_MODEL",
    "the clinic has no model of this name",
    "List the clinic's models with `fedthorax clinic models`.",
)
NEEDS_MASKS = Reason(
    "E_NEEDS_MASKS",
    "the release needs an external lung mask for each scan, which the clinic does not take",
    "Score with `fedthorax score --lungs`, or use a release that finds the lungs itself.",
)
CLINIC_FILE = Reason(
    "E_CLINIC_FILE",
    "the clinic's database clinic.sqlite cannot be read or written",
    "Check free space and permissions of the clinic's folder. Restore a damaged database from the backup.",
)
CLINIC_ADDRESS = Reason(
    "E_CLINIC_ADDRESS",
    "the page cannot be served at this host and port",
    "Choose an address of this machine and a free port. For access from other machines, set certificate and key in "
    "[server] of clinic.toml, or without_tls = true behind a proxy that does TLS.",
)
CLINIC_TLS = Reason(
    "E_CLINIC_TLS",
    "the page's certificate and key cannot be used",
    "Give certificate and key in [server] of clinic.toml as PEM files that belong together. The key must have no "
    "password.",
)
CLINIC_BUSY = Reason(
    "E_CLINIC_BUSY",
    "another service already uses this clinic's folder",
    "Stop the other service first, or use it: one service serves all browsers of the hospital.",
)

CLINIC_NO_PACS = Reason(
    "E_CLINIC_NO_PACS", "this page has no PACS", "Add the scan as files, or name a PACS in [pacs] of clinic.toml."
)

# --- the API: callers and permissions -------------------------------------------------------------------

NO_TOKEN = Reason(
    "E_NO_TOKEN",
    "the request contains no token and no session",
    "Sign in on the page, or send the header `Authorization: Bearer TOKEN`. Create a token with `fedthorax clinic "
    "token`.",
)
TOKEN = Reason(
    "E_TOKEN",
    "the token or session is wrong, expired or revoked",
    "Sign in again, or ask an administrator for a new token.",
)
ROLE = Reason(
    "E_ROLE",
    "this action needs the role {role}",
    "Ask an administrator for a token with that role: `fedthorax clinic token CLINIC NAME --role ROLE`.",
)
OTHER_SITE = Reason(
    "E_OTHER_SITE",
    "the request comes from a page of another site",
    "Use the clinic's own page. A program sends its token in the header `Authorization` and sends no cookie.",
)
HOST = Reason(
    "E_HOST",
    "the server does not serve this host name",
    "Use an address that clinic.toml names, or add this name to `names` in its [server].",
)
SIGN_IN_TRIES = Reason(
    "E_SIGN_IN_TRIES",
    "too many wrong tokens or sign-ins came from this address; the next try is possible in {seconds} s",
    "Wait, then try again with the complete token.",
)
RATE = Reason(
    "E_RATE",
    "too many requests in one minute; the next one is accepted in {seconds} s",
    "Wait, then continue. requests_per_minute in [limits] of clinic.toml sets the limit.",
)
TOKEN_NAME = Reason(
    "E_TOKEN_NAME",
    "the name is invalid, or a token of this name exists or existed",
    "Choose another name: up to 60 letters, digits, spaces, dots, hyphens or @. The audit records use it to say who "
    "did what.",
)
NO_SUCH_TOKEN = Reason(
    "E_NO_SUCH_TOKEN", "there is no token of this name", "List the names with `fedthorax clinic tokens CLINIC`."
)

# --- the API: invalid requests --------------------------------------------------------------------------

NO_SUCH_ADDRESS = Reason(
    "E_NO_SUCH_ADDRESS", "the API has no such address", "GET /api/v1/openapi.json lists all addresses."
)
METHOD = Reason(
    "E_METHOD",
    "this address does not support this method",
    "Use a method that the header Allow or /api/v1/openapi.json names.",
)
REQUEST = Reason(
    "E_REQUEST",
    "the request does not match its description: {problems}",
    "Correct it as /api/v1/openapi.json describes.",
)
REQUEST_SIZE = Reason(
    "E_REQUEST_SIZE",
    "the request is larger than {megabytes} MB",
    "Send only one series, as a zip. upload_mb in [limits] of clinic.toml sets the limit.",
)
REQUEST_TYPE = Reason(
    "E_REQUEST_TYPE",
    "this address does not accept this type of body",
    "Send a scan as multipart/form-data or application/zip, and everything else as application/json.",
)
REQUEST_TIME = Reason(
    "E_REQUEST_TIME", "the request took longer than {seconds} s", "Try again. If it happens again, check the network."
)
UPLOAD_BROKEN = Reason(
    "E_UPLOAD_BROKEN", "the upload is incomplete or malformed", "Send it again. Nothing of it was kept."
)
UPLOAD_EMPTY = Reason("E_UPLOAD_EMPTY", "the upload contains no file", "Send the files of one chest CT, or one zip.")
UPLOAD_NO_SCAN = Reason(
    "E_UPLOAD_NO_SCAN", "none of the files is an image of a scan", "Send the images of one chest CT, no documents."
)
UPLOAD_FILES = Reason(
    "E_UPLOAD_FILES", "the upload contains more than {files} files", "Send only one series, or send it as one zip."
)
NO_SUCH_FILE = Reason(
    "E_NO_SUCH_FILE", "the answer has no such file", "Request the answer first: its `files` lists the files that exist."
)
DISK_FULL = Reason(
    "E_DISK_FULL",
    "the clinic's disk is full or almost full",
    "Tell the server's administrator to free space, or to lower answers_days in [keep] of clinic.toml.",
)
INTERNAL = Reason(
    "E_INTERNAL",
    "the server failed because of an unexpected error",
    "Try again. If it happens again, report the code and the time to the server's administrator.",
)

# --- models -----------------------------------------------------------------------------------------------

NOT_SHADOWED = Reason(
    "E_NOT_SHADOWED",
    "this model has never run in shadow, so its difference from the live model is unknown",
    "Run it in shadow first with `fedthorax clinic shadow CLINIC MODEL`. On the clinic's machine, "
    "`fedthorax clinic promote CLINIC MODEL --force` makes it live without that.",
)
IS_LIVE = Reason(
    "E_IS_LIVE", "this model is already the live model", "No action is needed. Choose another model to run in shadow."
)

# --- results, for the PACS --------------------------------------------------------------------------------

RESULT_NO_DICOM = Reason(
    "E_RESULT_NO_DICOM",
    "there are no results for the PACS: the scan was not sent as DICOM",
    "Send the scan as a DICOM series, from the PACS or as a folder, if the results must be stored with it.",
)
RESULT_IDENTITY = Reason(
    "E_RESULT_IDENTITY",
    "there are no results for the PACS: the scan's headers do not identify the patient or the study reliably",
    "Correct patient and study in the PACS, and send the scan again.",
)
RESULT_WRITE = Reason(
    "E_RESULT_WRITE",
    "the results for the PACS could not be written",
    "Report the problem with its code. The answer itself is complete.",
)
NO_RESULTS = Reason(
    "E_NO_RESULTS",
    "this answer has no results that can be sent to this system",
    "Results need an answer of the live model, and sending to this system enabled in [results] of clinic.toml. For the "
    "PACS they also need a scan in DICOM, for a FHIR server or HL7 receiver the patient's identifier.",
)
NOT_FOR_PATIENTS = Reason(
    "E_NOT_FOR_PATIENTS",
    "the model was trained on synthetic data, so its result for this scan is not passed on to other systems",
    "Use a model that was trained on patients. This model's results are passed on only for synthetic phantoms.",
)
NO_SUCH_CONNECTION = Reason(
    "E_NO_SUCH_CONNECTION", "clinic.toml does not set up this system", "Fill in its table, then restart the service."
)
RECEIVER_CLOSED = Reason(
    "E_RECEIVER_CLOSED",
    "the clinic's own DICOM receiver accepts no connection",
    "logs/service.log says why it does not run. Another program may use the port in [receiver] of clinic.toml.",
)

# --- labels for the next study ----------------------------------------------------------------------------

LABELS_OFF = Reason(
    "E_LABELS_OFF",
    "the settings do not allow an export of labels",
    "If the hospital agrees that its patients' results become labels of a study, set export = true in [labels] of "
    "clinic.toml.",
)
LABELS_NO_NODE = Reason(
    "E_LABELS_NO_NODE",
    "the clinic has no node with outcomes, so that no labels can be made",
    "Name the node's folder in [node] of clinic.toml, and set up [outcomes] in its site.toml.",
)
LABELS_FILE = Reason(
    "E_LABELS_FILE",
    "the file of the labels exists, or cannot be written",
    "Give a new file in an existing folder of this machine.",
)

"""The table of reasons of the clinician's page, its API, and the way to and from the PACS."""

from models.refusal import Reason

NO_SUCH_JOB = Reason(
    "E_NO_SUCH_JOB",
    "there is no such scan in the queue",
    "Look at the worklist: scans that are answered are removed from it after the time set in clinic.toml.",
)
NO_SUCH_PICTURE = Reason(
    "E_NO_SUCH_PICTURE",
    "there is no such slice or overlay of this scan",
    "Ask for its slices first: they are counted there, and an overlay exists only where the answer shows it.",
)
NO_SUCH_ANSWER = Reason(
    "E_NO_SUCH_ANSWER",
    "there is no such answer",
    "Look at the worklist: answers are removed after the time set in clinic.toml.",
)
QUEUE_FULL = Reason(
    "E_QUEUE_FULL",
    "{waiting} scans are waiting already",
    "Send this scan again when some are answered, or raise waiting_scans in clinic.toml.",
)
ALREADY_ANSWERED = Reason(
    "E_ALREADY_ANSWERED",
    "this scan has been answered, or is in the hands of another worker",
    "Nothing to do: the answer that counts is in the worklist.",
)
SCORING_FAILED = Reason(
    "E_SCORING_FAILED",
    "the scan could not be scored for a reason that was not foreseen",
    "Look into logs/worker.log in the clinic's folder, and report it.",
)
SCORING_MEMORY = Reason(
    "E_SCORING_MEMORY",
    "the scan needs more memory than the worker may take",
    "Raise worker_mb in [limits] of clinic.toml, or send a reconstruction with fewer slices.",
)
SCORING_DIED = Reason(
    "E_SCORING_DIED",
    "the scan could not be scored: the worker ended {attempts} times over it, out of memory or of time",
    "Read the scan on the workstation. Whoever runs the service finds in logs/service.log how the worker ended.",
)
NO_SUCH_MODEL = Reason(
    "E_NO_SUCH_MODEL",
    "the clinic keeps no model of this name",
    "`fedthorax clinic models` lists those that it keeps.",
)
CLINIC_FILE = Reason(
    "E_CLINIC_FILE",
    "the clinic's file clinic.sqlite cannot be read or written",
    "Check free space and permissions of the clinic's folder; a damaged file is put back from the backup.",
)
NO_CLINIC = Reason(
    "E_NO_CLINIC",
    "the folder is not a clinic's",
    "Give the folder that `fedthorax clinic init` made.",
)
CLINIC_EXISTS = Reason(
    "E_CLINIC_EXISTS",
    "the folder is a clinic's already",
    "Edit its clinic.toml, or give another folder.",
)
CLINIC_ADDRESS = Reason(
    "E_CLINIC_ADDRESS",
    "the page cannot be served at this host and port",
    "Choose an address of this machine and a port that is free; for other machines to reach it, certificate and key in "
    "[server] of clinic.toml, or without_tls = true where a proxy does TLS.",
)
CLINIC_TLS = Reason(
    "E_CLINIC_TLS",
    "the page's certificate and key cannot be used",
    "Give certificate and key in [server] of clinic.toml as PEM files that belong together, the key without password.",
)
CLINIC_BUSY = Reason(
    "E_CLINIC_BUSY",
    "another service runs over this clinic's folder",
    "Stop it first, or ask it: one service serves all of the hospital's browsers.",
)

# --- the API: who asks, and what for ----------------------------------------------------------------------

NO_TOKEN = Reason(
    "E_NO_TOKEN",
    "the request does not say who asks",
    "Sign in on the page, or send the header `Authorization: Bearer TOKEN`; `fedthorax clinic token` makes one.",
)
TOKEN = Reason(
    "E_TOKEN",
    "the token or session is wrong, over or revoked",
    "Sign in again. An administrator makes a new token with `fedthorax clinic token`.",
)
ROLE = Reason(
    "E_ROLE",
    "this needs the role {role}",
    "Ask an administrator for a token of that role: `fedthorax clinic token CLINIC NAME --role ROLE`.",
)
OTHER_SITE = Reason(
    "E_OTHER_SITE",
    "the request comes from another page than ours",
    "Use the clinic's own page. A program sends its token in the header `Authorization`, and no cookie.",
)
HOST = Reason(
    "E_HOST",
    "the server does not answer under this name",
    "Use an address that clinic.toml names, or add this name to `names` in its [server].",
)
SIGN_IN_TRIES = Reason(
    "E_SIGN_IN_TRIES",
    "too many wrong tokens came from this address; it may try again in {seconds} s",
    "Wait, then try again with the whole token.",
)
RATE = Reason(
    "E_RATE",
    "too many requests in a minute; the next is taken in {seconds} s",
    "Wait, then go on; requests_per_minute in [limits] of clinic.toml sets how many there may be.",
)
TOKEN_NAME = Reason(
    "E_TOKEN_NAME",
    "there is, or was, a token of this name, or the name is not one",
    "Choose another, up to 60 letters, digits, spaces, dots, hyphens or @: the records name by it who did what.",
)
NO_SUCH_TOKEN = Reason(
    "E_NO_SUCH_TOKEN", "there is no such token", "Look for its name: `fedthorax clinic tokens CLINIC`."
)

# --- the API: what is wrong with a request ----------------------------------------------------------------

NO_SUCH_ADDRESS = Reason(
    "E_NO_SUCH_ADDRESS", "nothing is at this address", "GET /api/v1/openapi.json lists the addresses that there are."
)
METHOD = Reason(
    "E_METHOD", "this address knows no such method", "Use one that the header Allow or /api/v1/openapi.json names."
)
REQUEST = Reason(
    "E_REQUEST", "the request is not as described: {problems}", "Correct it as /api/v1/openapi.json describes it."
)
REQUEST_SIZE = Reason(
    "E_REQUEST_SIZE",
    "the request is larger than {megabytes} MB",
    "Send one series alone, as a zip; upload_mb in [limits] of clinic.toml sets how large it may be.",
)
REQUEST_TYPE = Reason(
    "E_REQUEST_TYPE",
    "the body is of another type than this address takes",
    "Send a scan as multipart/form-data or application/zip, anything else as application/json.",
)
REQUEST_TIME = Reason(
    "E_REQUEST_TIME", "the request took longer than {seconds} s", "Try again; if it comes again, look at the network."
)
UPLOAD_BROKEN = Reason(
    "E_UPLOAD_BROKEN", "the upload is not whole or not well formed", "Send it again; nothing of it was kept."
)
UPLOAD_EMPTY = Reason("E_UPLOAD_EMPTY", "the upload holds no file", "Send the files of one chest CT, or one zip.")
UPLOAD_FILES = Reason(
    "E_UPLOAD_FILES", "the upload holds more than {files} files", "Send one series alone, or send it as one zip."
)
NO_SUCH_FILE = Reason(
    "E_NO_SUCH_FILE", "the answer has no such file", "Ask for the answer first: its `files` are those that there are."
)
DISK_FULL = Reason(
    "E_DISK_FULL",
    "the clinic's disk is full, or nearly so",
    "Tell whoever looks after the server: free space, or lower answers_days in [keep] of clinic.toml.",
)
INTERNAL = Reason(
    "E_INTERNAL",
    "the server failed for a reason that it did not foresee",
    "Try again. If it comes again, report the code and the time to whoever looks after the server.",
)

# --- models -----------------------------------------------------------------------------------------------

NOT_SHADOWED = Reason(
    "E_NOT_SHADOWED",
    "this model has never been scored in shadow, so nothing says how it differs from the live one",
    "Let it run in shadow first: `fedthorax clinic shadow CLINIC MODEL`; or promote it with --force.",
)
IS_LIVE = Reason("E_IS_LIVE", "this model is the live one", "Nothing to do; choose another for the shadow.")

# --- results, for the PACS --------------------------------------------------------------------------------

RESULT_NO_DICOM = Reason(
    "E_RESULT_NO_DICOM",
    "there are no results for the PACS: the scan did not come as DICOM",
    "Give the scan as a DICOM series, from the PACS or as a folder, if its result shall lie beside it.",
)
RESULT_IDENTITY = Reason(
    "E_RESULT_IDENTITY",
    "there are no results for the PACS: the scan's headers do not say cleanly whose it is or to which study it belongs",
    "Correct patient and study in the PACS, and send the scan again.",
)
RESULT_WRITE = Reason(
    "E_RESULT_WRITE",
    "the results for the PACS could not be written",
    "Report it with the code; the answer itself is whole.",
)
NO_RESULTS = Reason(
    "E_NO_RESULTS",
    "this answer has no results that could be sent to the PACS",
    "The scan must come as DICOM, its answer not be a shadow model's, and [results] of clinic.toml ask for results.",
)

# --- scans from the PACS ----------------------------------------------------------------------------------

PACS_CRITERIA = Reason(
    "E_PACS_CRITERIA",
    "the search names nothing that the PACS could look for",
    "Give a patient's identifier or an accession number, without * ? or backslash, or a first and a last day that lie "
    "at most a month apart.",
)
PACS_UID = Reason(
    "E_PACS_UID",
    "study or series is not named by a valid UID",
    "Take both as the list of the PACS's series gives them.",
)
PACS_NO_SERIES = Reason(
    "E_PACS_NO_SERIES",
    "the PACS has no CT images of this series",
    "Search again: the series may have been moved or deleted. Chosen was perhaps a report or a series of another kind.",
)
SERIES_SIZE = Reason(
    "E_SERIES_SIZE",
    "the series has more than {images} images or {gigabytes} GB",
    "Choose the reconstruction of the chest alone.",
)

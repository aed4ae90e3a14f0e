"""The tables of clinic.sqlite, and the steps from earlier versions to this one.

A step is a list of statements that run in one transaction with the change of the version. A database of a later
version is refused.
"""

VERSION = 3
LEAST_AUDIT_DAYS = 183  # six months

_DELIVERIES = """
CREATE TABLE IF NOT EXISTS deliveries (  -- of what was said of an answer to another system
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    answer_id TEXT NOT NULL REFERENCES answers (id) ON DELETE CASCADE,
    target TEXT NOT NULL CHECK (target IN ('pacs', 'fhir', 'hl7')),
    decision_id TEXT NOT NULL,         -- '': what the model said, unverified
    state TEXT NOT NULL CHECK (state IN ('waiting', 'sent', 'failed', 'dropped')),
    attempts INTEGER NOT NULL,
    code TEXT,
    due_at TEXT,
    sent_at TEXT,
    UNIQUE (answer_id, target, decision_id)
)"""
_DELIVERIES_BY_STATE = "CREATE INDEX IF NOT EXISTS deliveries_by_state ON deliveries (state, due_at)"
_DECISIONS = """
CREATE TABLE IF NOT EXISTS decisions (   -- of persons about answers; the newest one of an answer holds
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    answer_id TEXT NOT NULL REFERENCES answers (id) ON DELETE CASCADE,
    at TEXT NOT NULL,
    by TEXT NOT NULL,                  -- the token's name
    person TEXT NOT NULL,              -- the person's DICOM name
    verdict TEXT NOT NULL CHECK (verdict IN ('accepted', 'corrected', 'rejected')),
    reason TEXT,
    comment TEXT NOT NULL,
    correction TEXT NOT NULL,          -- JSON of records.Correction
    revision TEXT NOT NULL,            -- what the person saw (Answer.revision)
    before TEXT NOT NULL,              -- JSON: what was said until then
    UNIQUE (answer_id, revision)       -- of two decisions about the same state of an answer, only one is stored
)"""
_DECISIONS_ARE_FINAL = """
CREATE TRIGGER IF NOT EXISTS decisions_are_final BEFORE UPDATE ON decisions
    BEGIN SELECT RAISE(ABORT, 'decisions are final'); END"""
_DECISIONS_ARE_KEPT = """
CREATE TRIGGER IF NOT EXISTS decisions_are_kept BEFORE DELETE ON decisions
    WHEN EXISTS (SELECT 1 FROM answers WHERE id = old.answer_id)
    BEGIN SELECT RAISE(ABORT, 'decisions are kept with their answer'); END"""
SCHEMA = f"""
CREATE TABLE IF NOT EXISTS secret (name TEXT PRIMARY KEY, value BLOB NOT NULL);
INSERT OR IGNORE INTO secret VALUES ('patients', secret_key());
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL CHECK (state IN ('waiting', 'working', 'answered', 'no_score')),
    source TEXT NOT NULL CHECK (source IN ('upload', 'pacs', 'received')),
    asked_by TEXT NOT NULL,
    received_at TEXT NOT NULL,
    started_at TEXT,
    ended_at TEXT,
    attempts INTEGER NOT NULL DEFAULT 0,
    is_whole INTEGER NOT NULL DEFAULT 1,
    study_uid TEXT,
    series_uid TEXT,
    patient TEXT,                      -- JSON of records.Patient
    code TEXT,
    says TEXT,
    remedy TEXT,
    answer_id TEXT,
    reader_by TEXT,                    -- name of the token of the reader who has the scan
    reader_person TEXT,                -- their DICOM name
    reader_at TEXT
);
CREATE INDEX IF NOT EXISTS jobs_by_answer ON jobs (answer_id);
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, attempts, number);
CREATE TABLE IF NOT EXISTS answers (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    job_id TEXT NOT NULL,
    created_at TEXT NOT NULL,
    patient_key TEXT,
    patient TEXT,
    study_uid TEXT NOT NULL,
    series_uid TEXT NOT NULL,
    accession TEXT NOT NULL,
    acquired_at TEXT,                  -- local time of the scan, or with an offset from UTC; a day if no time is known
    score TEXT NOT NULL,               -- JSON of Score.to_json()
    model_sha256 TEXT NOT NULL,
    model_name TEXT NOT NULL,
    role TEXT NOT NULL CHECK (role IN ('live', 'shadow')),
    UNIQUE (job_id, role)              -- no job is answered twice
);
CREATE INDEX IF NOT EXISTS answers_by_patient ON answers (patient_key);
CREATE TABLE IF NOT EXISTS pcr (
    answer_id TEXT PRIMARY KEY REFERENCES answers (id) ON DELETE CASCADE,
    result TEXT NOT NULL CHECK (result IN ('positive', 'negative', 'indeterminate')),
    collected_on TEXT,
    source TEXT NOT NULL CHECK (source IN ('entered', 'laboratory')),
    by TEXT NOT NULL
);
{_DELIVERIES};
{_DELIVERIES_BY_STATE};
{_DECISIONS};
{_DECISIONS_ARE_FINAL};
{_DECISIONS_ARE_KEPT};
CREATE TABLE IF NOT EXISTS models (
    sha256 TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    signed_by TEXT,
    added_at TEXT NOT NULL,
    added_by TEXT NOT NULL,
    role TEXT UNIQUE CHECK (role IN ('live', 'shadow'))
);
CREATE TABLE IF NOT EXISTS worker (      -- the scoring process: its last reported state
    one INTEGER PRIMARY KEY CHECK (one = 1),
    state TEXT NOT NULL CHECK (state IN ('starting', 'ready', 'no_model')),
    code TEXT
);
CREATE TABLE IF NOT EXISTS tokens (      -- access tokens; see web/auth.py
    name TEXT PRIMARY KEY,
    sha256 TEXT NOT NULL UNIQUE,       -- of the token itself, which is shown once and not stored
    role TEXT NOT NULL CHECK (role IN ('read', 'score', 'admin')),
    made_at TEXT NOT NULL,
    ends_at TEXT,
    revoked_at TEXT,
    once INTEGER NOT NULL,             -- 1: valid only for a single sign-in of a browser
    used_at TEXT,
    person TEXT NOT NULL DEFAULT ''    -- the person's DICOM name, if the token is a person's
);
CREATE TABLE IF NOT EXISTS sessions (    -- of browsers
    sha256 TEXT PRIMARY KEY,
    token TEXT NOT NULL REFERENCES tokens (name) ON DELETE CASCADE,
    ends_at TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS audit (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    at TEXT NOT NULL,
    who TEXT NOT NULL,
    action TEXT NOT NULL,
    job_id TEXT,
    answer_id TEXT,
    input_sha256 TEXT,
    model_sha256 TEXT,
    output TEXT,
    code TEXT,
    version TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS audit_by_time ON audit (at);
-- Even a faulty program of ours cannot change a record, or delete one too early.
CREATE TRIGGER IF NOT EXISTS audit_is_final BEFORE UPDATE ON audit
    BEGIN SELECT RAISE(ABORT, 'audit records are final'); END;
CREATE TRIGGER IF NOT EXISTS audit_is_kept BEFORE DELETE ON audit
    WHEN old.at > strftime('%Y-%m-%dT%H:%M:%S', 'now', '-{LEAST_AUDIT_DAYS} days')
    BEGIN SELECT RAISE(ABORT, 'audit records are kept'); END;
"""  # noqa: S608

# By version of the file: the statements that bring it to the next version.
MIGRATIONS: dict[int, tuple[str, ...]] = {
    1: (  # decisions of persons, deliveries to several systems, persons' names
        "ALTER TABLE tokens ADD COLUMN person TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE deliveries RENAME TO deliveries_before",
        "DROP INDEX deliveries_by_state",
        _DELIVERIES,
        "INSERT INTO deliveries (answer_id, target, decision_id, state, attempts, code, due_at, sent_at)"
        " SELECT answer_id, 'pacs', '', state, attempts, code, due_at, sent_at FROM deliveries_before",
        "DROP TABLE deliveries_before",
        _DELIVERIES_BY_STATE,
        _DECISIONS,
        _DECISIONS_ARE_FINAL,
        _DECISIONS_ARE_KEPT,
    ),
    2: (  # readers who have scans; decisions may name a mask that was corrected by hand
        *(f"ALTER TABLE jobs ADD COLUMN {name} TEXT" for name in ("reader_by", "reader_person", "reader_at")),
        "CREATE INDEX jobs_by_answer ON jobs (answer_id)",
    ),
}

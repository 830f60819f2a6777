-- Jobs and what belongs to them. Texts named arguments, cursor, result, error, state and
-- fingerprint are the typed JSON of tracedjobs._core.values. Times are seconds since the epoch,
-- but for lease_until: seconds since the boot that lease_boot names.
CREATE TABLE jobs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    arguments TEXT NOT NULL,
    submitted_at REAL NOT NULL,
    version INTEGER NOT NULL,
    status TEXT NOT NULL,
    revision INTEGER NOT NULL,
    run INTEGER NOT NULL,
    token TEXT,
    worker TEXT,
    owner TEXT,
    lease_until REAL NOT NULL,
    lease_boot TEXT,
    lost_token TEXT,
    rewinds INTEGER NOT NULL,
    wish TEXT,
    resumptions INTEGER NOT NULL,
    items_redone INTEGER NOT NULL,
    reason TEXT,
    error TEXT,
    result TEXT,
    started_at REAL,
    ended_at REAL,
    resume_at REAL,
    deadline_at REAL,
    expires_at REAL,
    retention REAL NOT NULL,
    steps_expected INTEGER,
    step TEXT,
    cursor TEXT NOT NULL,
    items INTEGER NOT NULL,
    total INTEGER,
    unit TEXT,
    step_started_at REAL,
    fingerprint TEXT,
    entered TEXT,
    progressed_at REAL,
    state TEXT,
    saved_seq INTEGER NOT NULL,
    meter TEXT,
    counted INTEGER NOT NULL,
    queue TEXT,
    run_started_at REAL,
    lease_ttl REAL,
    stall TEXT,
    trace TEXT,
    spans_due REAL,
    steps_sent INTEGER NOT NULL,
    runs_sent INTEGER NOT NULL,
    root_sent INTEGER NOT NULL,
    message TEXT,
    handed_at REAL,
    hand_at REAL
);

CREATE INDEX jobs_by_status ON jobs (status, seq);
CREATE INDEX jobs_by_name ON jobs (name, seq);
CREATE INDEX jobs_by_spans_due ON jobs (spans_due) WHERE spans_due IS NOT NULL;
CREATE INDEX jobs_by_hand_at ON jobs (hand_at)
    WHERE status = 'interrupted' AND queue IS NOT NULL;
CREATE INDEX jobs_by_unbegun ON jobs (hand_at)
    WHERE status = 'pending' AND queue IS NOT NULL;
CREATE INDEX jobs_by_expiry ON jobs (expires_at) WHERE expires_at IS NOT NULL;

CREATE TABLE steps (
    job INTEGER NOT NULL,
    position INTEGER NOT NULL,
    name TEXT NOT NULL,
    result TEXT NOT NULL,
    cursor TEXT NOT NULL,
    items INTEGER NOT NULL,
    total INTEGER,
    unit TEXT,
    started_at REAL NOT NULL,
    ended_at REAL NOT NULL,
    run INTEGER NOT NULL,
    entered TEXT,
    PRIMARY KEY (job, position)
) WITHOUT ROWID;

CREATE TABLE runs (
    job INTEGER NOT NULL,
    number INTEGER NOT NULL,
    worker TEXT NOT NULL,
    started_at REAL NOT NULL,
    resumed INTEGER NOT NULL,
    ended_at REAL,
    outcome TEXT,
    reason TEXT,
    "left" TEXT,
    PRIMARY KEY (job, number)
) WITHOUT ROWID;

CREATE TABLE controls (
    job INTEGER NOT NULL,
    position INTEGER NOT NULL,
    at REAL NOT NULL,
    action TEXT NOT NULL,
    "by" TEXT NOT NULL,
    detail TEXT,
    PRIMARY KEY (job, position)
) WITHOUT ROWID;

-- How many steps the last completed job of a name had, for "2 of 5".
CREATE TABLE names (
    name TEXT PRIMARY KEY,
    steps INTEGER NOT NULL
) WITHOUT ROWID;

-- What happened so far, of all jobs, kept as long as the file: see tracedjobs._core.counting.
CREATE TABLE totals (
    metric TEXT NOT NULL,
    job_name TEXT NOT NULL,
    queue TEXT NOT NULL,
    step TEXT NOT NULL,
    label TEXT NOT NULL,
    value REAL NOT NULL,
    PRIMARY KEY (metric, job_name, queue, step, label)
) WITHOUT ROWID;

-- The step names that are told apart in totals.
CREATE TABLE step_names (
    job_name TEXT NOT NULL,
    step TEXT NOT NULL,
    PRIMARY KEY (job_name, step)
) WITHOUT ROWID;

-- Who does what one worker alone is to do; `until` is on the clock of that boot.
CREATE TABLE elections (
    name TEXT PRIMARY KEY,
    holder TEXT NOT NULL,
    until REAL NOT NULL,
    boot TEXT NOT NULL
) WITHOUT ROWID;

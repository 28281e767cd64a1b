//! The tables. Whoever changes one raises `FORMAT`: a file of another format is built anew.

/// The version of the tables.
pub(crate) const FORMAT: u32 = 1;

/// What makes an empty file a view. `{partition}` is how the positions of its log begin.
pub(crate) const TABLES: &str = "
CREATE TABLE meta (
    key TEXT PRIMARY KEY,
    value
) WITHOUT ROWID;

CREATE TABLE events (
    n INTEGER PRIMARY KEY,              -- where it stands in the log
    epoch INTEGER NOT NULL,
    id TEXT NOT NULL,
    topic TEXT NOT NULL,
    agent TEXT NOT NULL,                -- who it is of: who sent it, or whom the engine speaks of
    sender TEXT NOT NULL,               -- namespace/name
    thread TEXT NOT NULL,
    run TEXT NOT NULL,
    correlation TEXT,
    causation TEXT,
    key TEXT,
    time_ms INTEGER NOT NULL,
    hop INTEGER NOT NULL,
    qos TEXT NOT NULL,
    durable INTEGER NOT NULL,
    turn INTEGER,                       -- the recorded turn that sent it
    level TEXT NOT NULL,
    code TEXT,
    content_type TEXT,
    labels TEXT,                        -- a JSON list
    headers TEXT,                       -- a JSON object
    dedup TEXT,
    bytes INTEGER NOT NULL,
    data TEXT,                          -- JSON or text; NULL where it is neither, or too large to be kept here
    position TEXT GENERATED ALWAYS AS ('{partition}'
        || '-' || char(96 + length(printf('%x', epoch))) || printf('%x', epoch)
        || '-' || char(96 + length(printf('%x', n))) || printf('%x', n)) VIRTUAL,
    time TEXT GENERATED ALWAYS AS (strftime('%Y-%m-%dT%H:%M:%fZ', time_ms / 1000.0, 'unixepoch')) VIRTUAL
);
CREATE INDEX events_id ON events (id);
CREATE INDEX events_run ON events (run);
CREATE INDEX events_thread ON events (thread);
CREATE INDEX events_correlation ON events (correlation) WHERE correlation IS NOT NULL;
CREATE INDEX events_causation ON events (causation) WHERE causation IS NOT NULL;
CREATE INDEX events_level ON events (level) WHERE level <> 'info';

CREATE TABLE calls (
    call TEXT PRIMARY KEY,              -- the id of a call; for a request, that of its event
    kind TEXT NOT NULL,                 -- capability, request
    n INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    effect TEXT,
    name TEXT NOT NULL,                 -- the capability or the topic
    version TEXT,
    class TEXT,                         -- pure, idempotent, probeable, unsafe
    key TEXT,
    caller TEXT NOT NULL,
    run TEXT,
    thread TEXT,
    event TEXT,                         -- whose turn calls; for a call inside a call, the outer one
    turn INTEGER,
    started_ms INTEGER NOT NULL,
    ended_ms INTEGER,
    micros INTEGER,
    code TEXT,                          -- NULL while it is open, OK, or the error
    message TEXT,
    attempts INTEGER NOT NULL DEFAULT 0,
    provider TEXT,
    arguments TEXT,
    result TEXT
) WITHOUT ROWID;
CREATE INDEX calls_run ON calls (run);
CREATE INDEX calls_event ON calls (event);
CREATE INDEX calls_n ON calls (n);

CREATE TABLE effects (
    effect TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    version TEXT,
    class TEXT NOT NULL,
    key TEXT,
    state TEXT NOT NULL,                -- planned, dispatched, confirmed, failed, unknown, reconciled
    attempts INTEGER NOT NULL DEFAULT 0,
    calls INTEGER NOT NULL DEFAULT 0,   -- how many calls share it
    caller TEXT NOT NULL,
    run TEXT,
    n INTEGER NOT NULL,
    planned_ms INTEGER NOT NULL,
    ended_ms INTEGER,
    settled_by TEXT,
    note TEXT
) WITHOUT ROWID;
CREATE INDEX effects_state ON effects (state) WHERE state NOT IN ('confirmed', 'failed');

CREATE TABLE turns (
    epoch INTEGER NOT NULL,
    turn INTEGER NOT NULL,
    n INTEGER NOT NULL,
    agent TEXT NOT NULL,
    version TEXT,
    event TEXT,
    run TEXT,
    attempt INTEGER NOT NULL,
    started_ms INTEGER NOT NULL,
    ended_ms INTEGER,
    waited_micros INTEGER NOT NULL,
    code TEXT,                          -- NULL while it is open, OK, or the error
    message TEXT,
    PRIMARY KEY (epoch, turn)
) WITHOUT ROWID;
CREATE INDEX turns_run ON turns (run);
CREATE INDEX turns_event ON turns (event);

CREATE TABLE steps (
    n INTEGER PRIMARY KEY,
    epoch INTEGER NOT NULL,
    turn INTEGER NOT NULL,
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    time_ms INTEGER NOT NULL,
    micros INTEGER NOT NULL,
    code TEXT NOT NULL,
    facts TEXT
);
CREATE INDEX steps_turn ON steps (epoch, turn);

CREATE TABLE costs (
    n INTEGER PRIMARY KEY,              -- of the step
    run TEXT,
    agent TEXT,
    name TEXT NOT NULL,                 -- of the model
    time_ms INTEGER NOT NULL,
    input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    cost REAL NOT NULL
);
CREATE INDEX costs_run ON costs (run);

CREATE TABLE errors (
    n INTEGER PRIMARY KEY,              -- where it was told first
    subject TEXT NOT NULL UNIQUE,       -- what failed: told twice, it is one error
    kind TEXT NOT NULL,                 -- turn, call, request, other
    code TEXT NOT NULL,
    message TEXT NOT NULL,
    agent TEXT,
    name TEXT,                          -- the capability or the topic
    event TEXT,
    run TEXT,
    thread TEXT,
    time_ms INTEGER NOT NULL,
    records INTEGER NOT NULL,           -- how often the log recorded it: once an attempt
    events INTEGER NOT NULL             -- how often an event told it
);
CREATE INDEX errors_run ON errors (run);

CREATE TABLE notes (
    n INTEGER PRIMARY KEY,              -- what the log says of itself
    kind TEXT NOT NULL,                 -- opened, closed, gap, clock
    level TEXT NOT NULL,
    time_ms INTEGER,
    message TEXT NOT NULL,
    run TEXT
);

CREATE TABLE runs (
    run TEXT PRIMARY KEY,
    root TEXT,                          -- the topic of its first event
    agent TEXT,                         -- who sent that
    thread TEXT,
    started_ms INTEGER NOT NULL,
    last_ms INTEGER NOT NULL,
    first_n INTEGER NOT NULL,
    last_n INTEGER NOT NULL,
    events INTEGER NOT NULL DEFAULT 0,
    turns INTEGER NOT NULL DEFAULT 0,   -- attempts of one turn counted once
    calls INTEGER NOT NULL DEFAULT 0,   -- those of capabilities
    requests INTEGER NOT NULL DEFAULT 0,
    errors INTEGER NOT NULL DEFAULT 0,
    input_tokens INTEGER NOT NULL DEFAULT 0,
    output_tokens INTEGER NOT NULL DEFAULT 0,
    cost REAL NOT NULL DEFAULT 0,
    gaps INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX runs_first ON runs (first_n);

CREATE TABLE threads (
    thread TEXT PRIMARY KEY,
    started_ms INTEGER NOT NULL,
    last_ms INTEGER NOT NULL,
    last_n INTEGER NOT NULL,
    events INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE consumers (
    consumer INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    filters TEXT NOT NULL,              -- a JSON list
    start INTEGER NOT NULL,
    floor INTEGER NOT NULL,
    time_ms INTEGER NOT NULL,
    gone TEXT                           -- why it consumes no more
);

CREATE TABLE deliveries (
    consumer INTEGER NOT NULL,          -- durable events that a consumer has not done with
    n INTEGER NOT NULL,
    state TEXT NOT NULL,                -- new, given, waits
    attempt INTEGER NOT NULL DEFAULT 0,
    until_ms INTEGER,
    code TEXT,
    message TEXT,
    PRIMARY KEY (consumer, n)
) WITHOUT ROWID;
CREATE INDEX deliveries_n ON deliveries (n);

CREATE TABLE dead_letters (
    consumer INTEGER NOT NULL,
    n INTEGER NOT NULL,
    name TEXT,
    event TEXT,
    topic TEXT,
    run TEXT,
    thread TEXT,
    attempt INTEGER NOT NULL,
    code TEXT,
    message TEXT,
    time_ms INTEGER NOT NULL,
    redriven_n INTEGER,
    PRIMARY KEY (consumer, n)
) WITHOUT ROWID;

CREATE VIEW run_states AS
SELECT r.*,
    CASE
        WHEN r.gaps > 0 THEN 'incomplete'
        WHEN EXISTS (SELECT 1 FROM turns t WHERE t.run = r.run AND t.code IS NULL AND t.epoch = now.epoch)
            OR EXISTS (SELECT 1 FROM calls c WHERE c.run = r.run AND c.code IS NULL AND c.epoch = now.epoch)
            OR EXISTS (SELECT 1 FROM events e JOIN deliveries d ON d.n = e.n WHERE e.run = r.run AND e.durable)
        THEN CASE WHEN now.closed THEN 'incomplete' ELSE 'running' END
        WHEN EXISTS (SELECT 1 FROM turns t WHERE t.run = r.run AND t.code IS NULL AND NOT EXISTS (
                SELECT 1 FROM turns u WHERE u.event = t.event AND u.agent = t.agent AND u.code IS NOT NULL AND u.n > t.n))
        THEN 'incomplete'
        ELSE 'ended'
    END AS state
FROM runs r, (SELECT
    (SELECT value FROM meta WHERE key = 'epoch') AS epoch,
    (SELECT value FROM meta WHERE key = 'closed') AS closed) now;
";

/// The tables of what stands at one place of the log, and the columns that say where.
pub(crate) const PLACES: [(&str, &str); 11] = [
    ("events", "n"),
    ("calls", "n"),
    ("turns", "n"),
    ("steps", "n"),
    ("costs", "n"),
    ("errors", "n"),
    ("notes", "n"),
    ("runs", "last_n"),
    ("threads", "last_n"),
    ("deliveries", "n"),
    ("dead_letters", "n"),
];

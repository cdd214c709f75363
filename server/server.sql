-- Tables of server.sqlite: keys, jobs, and the files of each job.
CREATE TABLE keys (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, digest BLOB NOT NULL, grants TEXT NOT NULL,
    created REAL NOT NULL, revoked REAL
) WITHOUT ROWID;
CREATE TABLE jobs (
    id TEXT PRIMARY KEY, kind TEXT NOT NULL, base TEXT NOT NULL, state TEXT NOT NULL,
    created REAL NOT NULL, started REAL, finished REAL, after REAL NOT NULL DEFAULT 0,
    worker TEXT, attempts INTEGER NOT NULL DEFAULT 0, cancel INTEGER NOT NULL DEFAULT 0,
    chunks INTEGER NOT NULL DEFAULT 0, error TEXT, error_zh TEXT
) WITHOUT ROWID;
CREATE INDEX jobs_base ON jobs (base, created);
CREATE INDEX jobs_state ON jobs (state, created);
CREATE TABLE files (
    job TEXT NOT NULL REFERENCES jobs ON DELETE CASCADE, position INTEGER NOT NULL,
    name TEXT NOT NULL, digest TEXT NOT NULL, size INTEGER NOT NULL, state TEXT NOT NULL,
    chunks INTEGER NOT NULL DEFAULT 0, receipt TEXT, problem TEXT, problem_zh TEXT,
    PRIMARY KEY (job, position)
) WITHOUT ROWID;
CREATE INDEX files_digest ON files (digest);

-- Tables of traces.sqlite: traces, and which documents each one quotes.
CREATE TABLE traces (
    id TEXT PRIMARY KEY, number INTEGER NOT NULL UNIQUE, created REAL NOT NULL,
    kind TEXT NOT NULL, base TEXT NOT NULL, sequence INTEGER NOT NULL, record TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX traces_base ON traces (base);
CREATE TABLE quoted (
    document TEXT NOT NULL, trace TEXT NOT NULL REFERENCES traces ON DELETE CASCADE,
    PRIMARY KEY (document, trace)
) WITHOUT ROWID;
CREATE INDEX quoted_trace ON quoted (trace);

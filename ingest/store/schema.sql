CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
-- One row a committed change. An index with a (seq, stamp) that is not here is foreign.
CREATE TABLE changes (seq INTEGER PRIMARY KEY AUTOINCREMENT, stamp INTEGER NOT NULL);
CREATE TABLE documents (
    key INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    source TEXT NOT NULL UNIQUE,
    title TEXT NOT NULL,
    digest TEXT NOT NULL,
    receipt TEXT NOT NULL,
    length INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE passages (
    key INTEGER PRIMARY KEY,
    document INTEGER NOT NULL REFERENCES documents ON DELETE CASCADE,
    start INTEGER NOT NULL,
    end INTEGER NOT NULL,
    label TEXT NOT NULL,
    text TEXT NOT NULL
);
CREATE UNIQUE INDEX passages_place ON passages (document, start);
-- AUTOINCREMENT: keys only grow, so an index knows by its last key which chunks it lacks.
CREATE TABLE chunks (
    key INTEGER PRIMARY KEY AUTOINCREMENT,
    document INTEGER NOT NULL REFERENCES documents ON DELETE CASCADE,
    passage INTEGER NOT NULL REFERENCES passages ON DELETE CASCADE,
    start INTEGER NOT NULL,
    end INTEGER NOT NULL,
    places TEXT NOT NULL,
    context TEXT NOT NULL,
    digest BLOB NOT NULL,
    vector BLOB NOT NULL
);
CREATE INDEX chunks_document ON chunks (document);
CREATE INDEX chunks_passage ON chunks (passage);
CREATE INDEX chunks_digest ON chunks (digest);
-- Keys of chunks removed since the indexes were last rebuilt.
CREATE TABLE removed (key INTEGER PRIMARY KEY, seq INTEGER NOT NULL);
CREATE INDEX removed_seq ON removed (seq);
CREATE TRIGGER chunk_removed AFTER DELETE ON chunks BEGIN
    INSERT INTO removed VALUES (old.key, (SELECT max(seq) FROM changes));
END;

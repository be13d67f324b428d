"""The outbox's file as SQL: its tables and indexes, and how older ones become it."""

from __future__ import annotations

from typing import Final

SCHEMA_VERSION: Final = 2
_TABLE: Final = """
CREATE TABLE spill (
  seq INTEGER PRIMARY KEY,
  device TEXT NOT NULL,
  id TEXT NOT NULL,
  model TEXT NOT NULL,
  priority INTEGER NOT NULL,
  reason TEXT NOT NULL,
  channel TEXT NOT NULL,
  encoding TEXT NOT NULL,
  request BLOB,
  edge BLOB,
  accepted_ms REAL NOT NULL,
  deadline_ms REAL NOT NULL,
  due_ms REAL NOT NULL,
  attempt INTEGER NOT NULL,
  stage INTEGER NOT NULL,
  outcome TEXT,
  answer BLOB,
  ended_ms REAL,
  closed_ms REAL,
  ready INTEGER NOT NULL DEFAULT 0,
  seal INTEGER,
  UNIQUE (device, id)
) STRICT;
"""
# An open row is either ready to be sent, in order of its deadline, or waits for
# due_ms: so neither a deep backlog nor many sent rows are ever read through.
_INDEXES: Final = """
CREATE INDEX ready_by_deadline ON spill (priority, deadline_ms)
  WHERE stage = 0 AND ready = 1;
CREATE INDEX waiting_by_due ON spill (due_ms) WHERE stage = 0 AND ready = 0;
CREATE INDEX open_by_deadline ON spill (deadline_ms) WHERE stage = 0;
CREATE INDEX untold_by_end ON spill (ended_ms) WHERE stage = 1;
CREATE INDEX closed_by_time ON spill (closed_ms) WHERE stage >= 2;
CREATE TABLE ledger (
  entry TEXT NOT NULL,
  what TEXT NOT NULL,
  why TEXT NOT NULL,
  count INTEGER NOT NULL,
  PRIMARY KEY (entry, what, why)
) STRICT;
"""
SCHEMA: Final = _TABLE + _INDEXES
# How schema 1, which counted outcomes only, becomes this one.
FROM_1: Final = f"""
ALTER TABLE spill ADD COLUMN closed_ms REAL;
ALTER TABLE spill ADD COLUMN ready INTEGER NOT NULL DEFAULT 0;
ALTER TABLE spill ADD COLUMN seal INTEGER;
UPDATE spill SET closed_ms = ended_ms WHERE stage = 2;
UPDATE spill SET ready = 1 WHERE stage = 0 AND attempt = 0;
DROP INDEX open_by_due;
DROP INDEX open_by_deadline;
DROP INDEX untold;
DROP INDEX told_by_end;
{_INDEXES}
INSERT INTO ledger SELECT 'ended', outcome, 'unknown', count FROM tally;
INSERT INTO ledger SELECT 'accepted', reason, '', count(*) FROM spill GROUP BY reason;
INSERT INTO ledger
  SELECT 'accepted', 'unknown', '',
    (SELECT sum(count) FROM tally) - count(*) FROM spill WHERE stage > 0;
DROP TABLE tally;
"""

COLUMNS: Final = (
    "device, id, model, priority, reason, channel, encoding, request, edge, "
    "accepted_ms, deadline_ms, due_ms, attempt, seal"
)

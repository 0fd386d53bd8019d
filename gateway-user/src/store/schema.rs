//! The database's schema and the way to it from every earlier one.

use rusqlite::{Connection, TransactionBehavior};

/// Marks the file as ours: "LZRT".
pub(super) const APPLICATION_ID: i64 = 0x4c5a_5254;

/// Step `n` leads from schema version `n` to `n + 1`. Append only.
const STEPS: &[&str] = &["
    CREATE TABLE meta (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        revision INTEGER NOT NULL,
        next_session INTEGER NOT NULL,
        -- Changes of GatewayURIs up to this revision may be gone.
        uri_floor INTEGER NOT NULL
    ) STRICT;
    INSERT INTO meta VALUES (1, 0, 1, 0);

    CREATE TABLE devices (
        id TEXT PRIMARY KEY,
        owner TEXT NOT NULL,
        full_service_pool TEXT NOT NULL,
        state TEXT NOT NULL,
        state_reason TEXT NOT NULL,
        state_since INTEGER NOT NULL,
        policy_revision TEXT,
        restricted_at INTEGER,
        -- All four, or none.
        lease_wall INTEGER,
        lease_boot INTEGER,
        lease_boot_id INTEGER,
        lease_length INTEGER,
        gateway_uri TEXT NOT NULL,
        revision INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE common_names (
        name TEXT PRIMARY KEY,
        device TEXT NOT NULL REFERENCES devices (id)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX common_names_device ON common_names (device);

    CREATE TABLE certificates (
        fingerprint BLOB PRIMARY KEY CHECK (length(fingerprint) = 32),
        device TEXT NOT NULL REFERENCES devices (id)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX certificates_device ON certificates (device);

    CREATE TABLE sessions (
        id INTEGER PRIMARY KEY,
        -- NULL: a device that the registry does not know.
        device TEXT REFERENCES devices (id),
        interface TEXT NOT NULL,
        source TEXT NOT NULL,
        opened_at INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX sessions_device ON sessions (device);

    CREATE TABLE session_addresses (
        -- 4 or 16 bytes, network order.
        address BLOB PRIMARY KEY CHECK (length(address) IN (4, 16)),
        session INTEGER NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
        place INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX session_addresses_session ON session_addresses (session);

    CREATE TABLE uri_changes (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        revision INTEGER NOT NULL,
        device TEXT NOT NULL,
        old TEXT NOT NULL,
        new TEXT NOT NULL,
        at INTEGER NOT NULL,
        reason TEXT NOT NULL
    ) STRICT;
    CREATE INDEX uri_changes_revision ON uri_changes (revision);
"];

/// The version that this binary writes.
pub(super) const VERSION: i64 = STEPS.len() as i64;

/// Brings the schema from `found` to [`VERSION`], all of it or none.
pub(super) fn migrate(connection: &mut Connection, found: i64) -> rusqlite::Result<()> {
    let Some(steps) = usize::try_from(found)
        .ok()
        .and_then(|n| STEPS.get(n..))
        .filter(|s| !s.is_empty())
    else {
        return Ok(());
    };
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for step in steps {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", VERSION)?;
    transaction.commit()
}

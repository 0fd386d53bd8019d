//! The database's schema and the way to it from every earlier one.

use rusqlite::{Connection, OptionalExtension as _, TransactionBehavior};

/// Marks the file as ours: "LZRT".
pub(super) const APPLICATION_ID: i64 = 0x4c5a_5254;

/// Step `n` leads from schema version `n` to `n + 1`. Append only.
pub(super) const STEPS: &[&str] = &["
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
", "
    ALTER TABLE meta ADD COLUMN committed_at INTEGER;
    -- When a backup took the place of this database; NULL: never, or all that followed from it is done.
    ALTER TABLE meta ADD COLUMN restored INTEGER;
    -- The audit's last entry, and the last that was pruned. Number 0, hash zero: none.
    ALTER TABLE meta ADD COLUMN audit_number INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE meta ADD COLUMN audit_hash BLOB NOT NULL DEFAULT x'0000000000000000000000000000000000000000000000000000000000000000';
    ALTER TABLE meta ADD COLUMN anchor_number INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE meta ADD COLUMN anchor_hash BLOB NOT NULL DEFAULT x'0000000000000000000000000000000000000000000000000000000000000000';

    -- Moments of both clocks are blobs of big-endian numbers of 8 bytes: wall clock, boot clock, boot id; spans have their length, too.
    CREATE TABLE devices_2 (
        id TEXT PRIMARY KEY,
        owner TEXT NOT NULL,
        full_service_pool TEXT NOT NULL,
        state TEXT NOT NULL,
        state_reason TEXT NOT NULL,
        state_since INTEGER NOT NULL,
        policy_revision TEXT,
        restricted_at INTEGER,
        proved BLOB,
        lease BLOB,
        gateway_uri TEXT NOT NULL,
        revision INTEGER NOT NULL,
        enrolled_at INTEGER,
        arrived_at INTEGER,
        arrived_outside INTEGER,
        deadline BLOB,
        offer_key BLOB,
        offer_revision TEXT,
        offer_holds BLOB,
        final_key BLOB,
        final_revision TEXT,
        exception_kind TEXT,
        exception_reason TEXT,
        exception_by TEXT,
        exception_holds BLOB,
        not_before INTEGER,
        not_after INTEGER,
        -- One after the other: names with a space between, the others 32 bytes each.
        common_names TEXT NOT NULL,
        certificates BLOB NOT NULL,
        vpn_keys BLOB NOT NULL,
        -- The number of its last entry in the audit; 0: none.
        last_audit INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    INSERT INTO devices_2
        SELECT id, owner, full_service_pool, state, state_reason, state_since, policy_revision, restricted_at, NULL,
            CASE WHEN lease_wall IS NULL THEN NULL
                ELSE unhex(printf('%016x%016x%016x%016x', lease_wall, lease_boot, lease_boot_id, lease_length)) END,
            gateway_uri, revision,
            NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
            coalesce((SELECT group_concat(name, ' ' ORDER BY name) FROM common_names WHERE device = devices.id), ''),
            coalesce((SELECT unhex(group_concat(hex(fingerprint), '' ORDER BY fingerprint)) FROM certificates WHERE device = devices.id), x''),
            x'', 0
        FROM devices ORDER BY id;

    -- Whose a name (1), certificate (2) or VPN key (3) is; that no two devices have one.
    CREATE TABLE aliases (
        kind INTEGER NOT NULL,
        alias BLOB NOT NULL,
        device TEXT NOT NULL REFERENCES devices (id),
        PRIMARY KEY (kind, alias)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO aliases SELECT 1, CAST(name AS BLOB), device FROM common_names ORDER BY name;
    INSERT INTO aliases SELECT 2, fingerprint, device FROM certificates ORDER BY fingerprint;
    DROP TABLE common_names;
    DROP TABLE certificates;
    DROP TABLE devices;
    ALTER TABLE devices_2 RENAME TO devices;

    ALTER TABLE sessions ADD COLUMN trust TEXT NOT NULL DEFAULT 'name';
    DROP INDEX sessions_device;
    DROP INDEX session_addresses_session;
    CREATE INDEX session_addresses_session ON session_addresses (session, place);

    CREATE TABLE publications (
        number INTEGER PRIMARY KEY,
        revision TEXT NOT NULL UNIQUE,
        at INTEGER NOT NULL,
        ceiling INTEGER NOT NULL,
        rate INTEGER NOT NULL,
        paused INTEGER NOT NULL
    ) STRICT;

    -- In the order in which they came, so that the oldest go first. The key is a digest of client and id, and the index has it by
    -- chapters of 16,384 requests: what is written together lies together, wherever the digests are.
    CREATE TABLE requests (
        number INTEGER PRIMARY KEY,
        key INTEGER NOT NULL,
        client TEXT NOT NULL,
        id TEXT NOT NULL,
        digest BLOB NOT NULL,
        at INTEGER NOT NULL,
        answer BLOB
    ) STRICT;
    CREATE INDEX requests_key ON requests (number >> 14, key);

    CREATE TABLE audit (
        number INTEGER PRIMARY KEY,
        at INTEGER NOT NULL,
        by TEXT NOT NULL,
        action TEXT NOT NULL,
        device TEXT,
        subject TEXT NOT NULL,
        before TEXT NOT NULL,
        after TEXT NOT NULL,
        reason TEXT NOT NULL,
        request TEXT NOT NULL,
        result TEXT NOT NULL,
        hash BLOB NOT NULL,
        -- The number of the entry before it of the same registered device; 0: none. No index, which would be written to all over.
        previous INTEGER NOT NULL
    ) STRICT;
", "
    -- By number alone: revisions ascend with it. An index and AUTOINCREMENT would be two more pages of each commit.
    CREATE TABLE uri_changes_3 (
        number INTEGER PRIMARY KEY,
        revision INTEGER NOT NULL,
        device TEXT NOT NULL,
        old TEXT NOT NULL,
        new TEXT NOT NULL,
        at INTEGER NOT NULL,
        reason TEXT NOT NULL
    ) STRICT;
    INSERT INTO uri_changes_3 SELECT number, revision, device, old, new, at, reason FROM uri_changes ORDER BY number;
    DROP TABLE uri_changes;
    ALTER TABLE uri_changes_3 RENAME TO uri_changes;
", "
    -- From when on restrictions and publications are not in here that a database may have had which a backup has replaced; NULL: never, or
    -- a policy was published since.
    ALTER TABLE meta ADD COLUMN forgotten INTEGER;
    UPDATE meta SET forgotten = restored;
", "
    -- On which devices somebody may act whose certificate is limited: names, or beginnings and *, with a space between.
    CREATE TABLE scopes (
        number INTEGER PRIMARY KEY,
        devices TEXT NOT NULL UNIQUE
    ) STRICT;
    -- Of whoever registered the device's certificates and keys; 0: of who may act on all.
    ALTER TABLE devices ADD COLUMN scope INTEGER NOT NULL DEFAULT 0;
    -- That no two devices have one by the word of the same. Names have scope 0.
    CREATE TABLE aliases_5 (
        kind INTEGER NOT NULL,
        alias BLOB NOT NULL,
        scope INTEGER NOT NULL,
        device TEXT NOT NULL REFERENCES devices (id),
        PRIMARY KEY (kind, alias, scope)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO aliases_5 SELECT kind, alias, 0, device FROM aliases ORDER BY kind, alias;
    DROP TABLE aliases;
    ALTER TABLE aliases_5 RENAME TO aliases;

    -- Entries that have left the audit's chain, of identities that have few. Columns as there.
    CREATE TABLE audit_aside (
        number INTEGER PRIMARY KEY,
        at INTEGER NOT NULL,
        by TEXT NOT NULL,
        action TEXT NOT NULL,
        device TEXT,
        subject TEXT NOT NULL,
        before TEXT NOT NULL,
        after TEXT NOT NULL,
        reason TEXT NOT NULL,
        request TEXT NOT NULL,
        result TEXT NOT NULL,
        hash BLOB NOT NULL
    ) STRICT;
    CREATE INDEX audit_aside_by ON audit_aside (by, number);
"];

/// The version that this binary writes.
pub(super) const VERSION: i64 = STEPS.len() as i64;

/// The version of a database; 0: an empty one.
pub(super) fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |r| r.get(0))
}

/// Brings the schema from `found` to [`VERSION`], all of it or none. Foreign keys must not be enforced meanwhile: a table that is made anew
/// is for a moment not there.
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
    if let Some(table) = transaction
        .query_row("PRAGMA foreign_key_check", [], |r| r.get::<_, String>(0))
        .optional()?
    {
        let what = format!("a row of {table} refers to one that does not exist");
        return Err(rusqlite::Error::ToSqlConversionFailure(what.into()));
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", VERSION)?;
    transaction.commit()
}

//! The simplest numbering of classes, for tests and benchmarks of whatever reads the tables. The daemon gives its numbers out.

use super::{CLASSES, Class, ClassEntry, Control, MAX_POOLS, class_entry};

/// The lease bit in a class byte of [`plain_classes`].
pub const CLASS_LEASED: Class = 0x80;

/// Pool n at rest, or bound to no interface, is n; with a lease, n and [`CLASS_LEASED`].
#[must_use]
pub const fn plain_classes() -> [ClassEntry; CLASSES] {
    let mut classes = [0; CLASSES];
    let mut n = 1;
    while n <= MAX_POOLS {
        classes[n as usize] = class_entry(n, false, 0);
        classes[(n | CLASS_LEASED) as usize] = class_entry(n, true, 0);
        n += 1;
    }
    classes
}

/// All zeros, but for [`plain_classes`].
impl Default for Control {
    fn default() -> Self {
        Self {
            abi: 0,
            flags: 0,
            generation: 0,
            hash6_bits: 0,
            earliest_lease_end: 0,
            config_digest: 0,
            fragment_bits: 0,
            meta_key: 0,
            classes: plain_classes(),
        }
    }
}

//! What the probing twin leaves behind: one record of how it judged. The shipped program never comes here.

use gateway_ebpf::{
    abi::{CLASSES, Class, FLAG_OBSERVE, Trace},
    decide::Verdict,
    headers::Headers,
    tables::{Tables, classes, read},
};

use crate::maps::{KERNEL, TRACE, kept};

/// A verdict in the words that a called function takes.
#[inline(always)]
pub(crate) fn packed(verdict: &Verdict, hook: u8) -> (u32, u32) {
    (
        u32::from_ne_bytes([verdict.reason as u8, verdict.pool, hook, verdict.answer.into()]),
        verdict.rule.into(),
    )
}

/// Writes the record of the packet whose headers were kept last. The rest: [`packed`].
#[inline(always)]
pub(crate) fn write(mark: u32, what: u32, rule: u32, shadow: u8) -> u64 {
    let (Some(h), Some(trace), Some(control)) = (kept(), TRACE.get_ptr_mut(0), KERNEL.control()) else {
        return 0;
    };
    let [reason, pool, hook, answer] = what.to_ne_bytes();
    let [source, destination] = ends(h);
    let entry = |class: Class| read(&control.classes[usize::from(class) % CLASSES]);
    // SAFETY: the map is this load's own; one that runs the twin twice at a time gets one record or the other, or a mixture.
    unsafe {
        *trace = Trace {
            judged: (*trace).judged + 1,
            entries: [entry(source), entry(destination)],
            mark,
            generation: read(&control.generation) & 1,
            rule: rule as u16,
            classes: [source, destination],
            reason,
            pool,
            hook,
            answer,
            shadow,
            observed: (read(&control.flags) & FLAG_OBSERVE != 0).into(),
            spare: [0; 6],
        };
    }
    0
}

/// Zeros where no addresses were read, or a table could not be.
#[inline(always)]
fn ends(h: &Headers) -> [Class; 2] {
    if h.version == 0 {
        return [0; 2];
    }
    match KERNEL.control().and_then(|control| classes(&KERNEL, control, h)) {
        Some((source, destination)) => [source, destination],
        None => [0; 2],
    }
}

//! Threads that work for another one: woken, they let it go on until it waits or its slice is over.

use std::io;

/// Gives the calling thread the policy SCHED_BATCH (sched(7)): its share of the CPU is as before, but it preempts nobody when it wakes. Without
/// it, a thread that is asked for something often takes the very CPU of the one that asked, which then does nothing beside.
///
/// Needs no capability. Where it is refused the thread goes on as it was.
pub(crate) fn yield_to_others() {
    let priority = libc::sched_param { sched_priority: 0 };
    // SAFETY: the structure is read during the call; 0 is the calling thread.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const priority) } != 0 {
        tracing::debug!(error = %io::Error::last_os_error(), "a thread has no background policy");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thread_is_in_the_background() {
        std::thread::spawn(|| {
            yield_to_others();
            // SAFETY: a question about the calling thread.
            assert_eq!(unsafe { libc::sched_getscheduler(0) }, libc::SCHED_BATCH);
        })
        .join()
        .unwrap();
    }
}

//! What the allocator keeps of memory that was freed. A start with a million sessions frees as much as it keeps, and glibc would hold on to tens of
//! megabytes of that in each thread's arena, since what it keeps grows with what is freed (mallopt(3)).

/// Sets how much it keeps, for the whole process: to be called before there are threads.
pub fn bound() {
    #[cfg(target_env = "gnu")]
    {
        /// At the end of each arena, bytes. A batch of signals takes less, and so causes no page faults each time.
        const KEPT: libc::c_int = 2 << 20;
        /// From so many bytes on an allocation has pages of its own, which go back with it.
        const LARGE: libc::c_int = 1 << 20;
        for (parameter, value) in [(libc::M_TRIM_THRESHOLD, KEPT), (libc::M_MMAP_THRESHOLD, LARGE)] {
            // SAFETY: it takes two numbers, and locks what it changes. Refused, things are as they were.
            unsafe { libc::mallopt(parameter, value) };
        }
    }
}

/// Gives whole pages that were freed back to the kernel, also from among those in use. It looks at all free memory: for after a start.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a number, and locks what it looks at.
    unsafe {
        libc::malloc_trim(0)
    };
}

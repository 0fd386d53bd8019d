//! Debian's libnftables, in process: the quickest way to change one element that nftables has.

use std::ffi::{CStr, CString, c_char, c_int, c_void};

use anyhow::{Context as _, Result, bail, ensure};

const LIBRARY: &CStr = c"libnftables.so.1";

type New = unsafe extern "C" fn(u32) -> *mut c_void;
type Run = unsafe extern "C" fn(*mut c_void, *const c_char) -> c_int;
type Free = unsafe extern "C" fn(*mut c_void);

/// A context; its socket belongs to the namespace of the thread that made it.
pub(crate) struct Nftables {
    context: *mut c_void,
    run: Run,
    free: Free,
}

impl Nftables {
    /// Opens the library and a context.
    pub(crate) fn open() -> Result<Self> {
        // SAFETY: the library's initialisers need nothing of us. It stays open for the rest of the process.
        let library = unsafe { libc::dlopen(LIBRARY.as_ptr(), libc::RTLD_NOW) };
        ensure!(!library.is_null(), "{} cannot be opened", LIBRARY.to_string_lossy());
        let symbol = |name: &CStr| {
            // SAFETY: the handle is open, the name ends with a zero.
            let found = unsafe { libc::dlsym(library, name.as_ptr()) };
            if found.is_null() {
                bail!("{} has no {}", LIBRARY.to_string_lossy(), name.to_string_lossy());
            }
            Ok(found)
        };
        // SAFETY: nftables/libnftables.h declares these functions with these types.
        let (new, run, free) = unsafe {
            (
                std::mem::transmute::<*mut c_void, New>(symbol(c"nft_ctx_new")?),
                std::mem::transmute::<*mut c_void, Run>(symbol(c"nft_run_cmd_from_buffer")?),
                std::mem::transmute::<*mut c_void, Free>(symbol(c"nft_ctx_free")?),
            )
        };
        // SAFETY: 0 is NFT_CTX_DEFAULT.
        let context = unsafe { new(0) };
        ensure!(!context.is_null(), "no nftables context");
        Ok(Self { context, run, free })
    }

    /// Runs commands, as one transaction.
    pub(crate) fn run(&self, commands: &str) -> Result<()> {
        let text = CString::new(commands)?;
        // SAFETY: the context is live, and the text ends with a zero.
        let result = unsafe { (self.run)(self.context, text.as_ptr()) };
        (result == 0)
            .then_some(())
            .with_context(|| format!("nftables refuses: {commands}"))
    }
}

impl Drop for Nftables {
    fn drop(&mut self) {
        // SAFETY: the context is live, and nobody has it after this.
        unsafe { (self.free)(self.context) }
    }
}

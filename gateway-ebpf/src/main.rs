//! The programs, for the BPF target only. On the host this is an empty program, so that the whole workspace builds with one command.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[cfg(target_arch = "bpf")]
mod access;
#[cfg(target_arch = "bpf")]
mod account;
#[cfg(target_arch = "bpf")]
mod answer;
#[cfg(target_arch = "bpf")]
mod capture;
#[cfg(target_arch = "bpf")]
mod hooks;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod note;
#[cfg(target_arch = "bpf")]
mod place;
#[cfg(target_arch = "bpf")]
mod rate;
#[cfg(target_arch = "bpf")]
mod report;
#[cfg(target_arch = "bpf")]
mod short;
#[cfg(target_arch = "bpf")]
mod trace;

#[cfg(not(target_arch = "bpf"))]
fn main() {}

/// The kernel offers the helpers that are used here to programs under a GPL-compatible licence.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// No program can reach it: the verifier refuses a loop without end.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

//! Programs that only the benchmark loads: prologues that draw a packet and tail-call the *shipping* program, a generator for live frames,
//! sinks that count, and the references that a verdict is compared with. On the host this is an empty program.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
#[allow(dead_code, reason = "the shipping programs, whose file this is, use the rest")]
mod access;
#[cfg(target_arch = "bpf")]
#[path = "bench/draw.rs"]
mod draw;
#[cfg(target_arch = "bpf")]
#[path = "bench/reference.rs"]
mod reference;

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::{
        bindings::{
            TC_ACT_SHOT,
            xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS},
        },
        helpers::generated::bpf_redirect,
        macros::{classifier, map, xdp},
        maps::{PerCpuArray, ProgramArray},
        programs::{TcContext, XdpContext},
    };

    use crate::draw::{self, Family};

    /// Slot 0: the program under test. Written by the benchmark before the prologue is loaded, so that the JIT makes a direct jump.
    #[map]
    static JUMP: ProgramArray = ProgramArray::with_max_entries(1, 0);
    /// The same for programs that take frames in one piece only: the kernel keeps the two kinds apart. Written by the benchmark.
    #[map]
    static JUMP_LINEAR: ProgramArray = ProgramArray::with_max_entries(1, 0);
    /// 0: frames sent, 1: frames that arrived at the sink, 2 and 3: what a reference passed and dropped. Read by the benchmark.
    #[map]
    static COUNT: PerCpuArray<u64> = PerCpuArray::with_max_entries(4, 0);

    #[inline(always)]
    pub(crate) fn count(slot: u32) {
        if let Some(c) = COUNT.get_ptr_mut(slot) {
            // SAFETY: the slot is this CPU's, and the program is not preempted by itself.
            unsafe { *c += 1 }
        }
    }

    /// Nothing: what the hook itself costs.
    #[xdp(frags)]
    fn bench_empty(_: XdpContext) -> u32 {
        XDP_PASS
    }

    /// Drops everything: what the driver and the hook cost.
    #[xdp(frags)]
    fn bench_drop(_: XdpContext) -> u32 {
        XDP_DROP
    }

    /// Draws an IPv4 packet and tail-calls the program under test.
    #[xdp(frags)]
    fn bench_prologue(ctx: XdpContext) -> u32 {
        prologue::<false>(&ctx, Family::V4, &JUMP)
    }

    /// The same for programs that take frames in one piece only.
    #[xdp]
    fn bench_prologue_linear(ctx: XdpContext) -> u32 {
        prologue::<false>(&ctx, Family::V4, &JUMP_LINEAR)
    }

    /// The same, but the address drawn depends on what the last verdict left in front of the frame: nothing overlaps.
    #[xdp(frags)]
    fn bench_prologue_dependent(ctx: XdpContext) -> u32 {
        prologue::<true>(&ctx, Family::V4, &JUMP)
    }

    /// Draws an IPv6 packet and tail-calls the program under test.
    #[xdp(frags)]
    fn bench_prologue6(ctx: XdpContext) -> u32 {
        prologue::<false>(&ctx, Family::V6, &JUMP)
    }

    /// Draws a packet and sends it (run with BPF_F_TEST_XDP_LIVE_FRAMES).
    #[xdp(frags)]
    fn bench_generate(ctx: XdpContext) -> u32 {
        match draw::frame(&ctx) {
            Some(ifindex) => {
                count(0);
                // SAFETY: a helper call without pointers.
                unsafe { bpf_redirect(ifindex, 0) as u32 }
            }
            None => XDP_ABORTED,
        }
    }

    /// Counts and drops what arrives, past the generator's interface: TC, so that it sees what the stack forwarded.
    #[classifier]
    fn bench_sink(_: TcContext) -> i32 {
        count(1);
        TC_ACT_SHOT
    }

    /// Nothing, at TC: what the hook itself costs. The next program of the hook, or the stack, is next.
    #[classifier]
    fn bench_tc_empty(_: TcContext) -> i32 {
        -1
    }

    /// The hash + LPM + hash reference.
    #[xdp(frags)]
    fn bench_kernel_maps(ctx: XdpContext) -> u32 {
        crate::reference::kernel_maps(&ctx)
    }

    /// The shipping decision with a BPF hash for IPv6 addresses.
    #[xdp(frags)]
    fn bench_hash6(ctx: XdpContext) -> u32 {
        crate::reference::hash6(&ctx)
    }

    #[inline(always)]
    fn prologue<const DEPENDENT: bool>(ctx: &XdpContext, family: Family, jump: &ProgramArray) -> u32 {
        if draw::packet::<DEPENDENT>(ctx, family).is_some() {
            // SAFETY: the slot holds an XDP program or nothing; a failed tail call returns.
            unsafe { jump.tail_call(ctx, 0) };
        }
        XDP_ABORTED
    }

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo) -> ! {
        loop {}
    }

    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
}

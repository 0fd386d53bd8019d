//! Programs that only the benchmark loads: an empty one to compare with, a prologue that draws a packet and tail-calls the *shipping*
//! program, a generator for live frames, and a sink that counts. On the host this is an empty program.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::{
        bindings::xdp_action::{XDP_ABORTED, XDP_PASS},
        helpers::generated::{bpf_redirect, bpf_xdp_adjust_meta},
        macros::{classifier, map, xdp},
        maps::{Array, PerCpuArray, ProgramArray},
        programs::{TcContext, XdpContext},
    };

    /// What is drawn, set by the benchmark: first source address (host order), log2 of how many, first destination, log2 of how many /24s,
    /// first destination port, interface to send from.
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Draw {
        source: u32,
        source_bits: u32,
        destination: u32,
        destination_bits: u32,
        port: u32,
        ifindex: u32,
        state: u32,
        spare: u32,
    }

    /// Key 0: a [`Draw`]; its `state` is the generator's. Written by the benchmark before a run and by the programs during it.
    #[map]
    static DRAW: Array<Draw> = Array::with_max_entries(1, 0);
    /// Slot 0: the program under test. Written by the benchmark.
    #[map]
    static JUMP: ProgramArray = ProgramArray::with_max_entries(1, 0);
    /// 0: frames sent, 1: frames that arrived at the sink. Read by the benchmark.
    #[map]
    static COUNT: PerCpuArray<u64> = PerCpuArray::with_max_entries(2, 0);

    /// Ethernet + IPv4 + UDP, as the benchmark builds it.
    const FRAME: usize = 60;

    #[inline(always)]
    fn count(slot: u32) {
        if let Some(c) = COUNT.get_ptr_mut(slot) {
            // SAFETY: the slot is this CPU's, and the program is not preempted by itself.
            unsafe { *c += 1 }
        }
    }

    /// Draws source, destination and port with a full-period generator, writes them into the frame with a right header checksum, and
    /// returns the interface to send from.
    #[inline(always)]
    fn draw(ctx: &XdpContext) -> Option<u32> {
        let d = DRAW.get_ptr_mut(0)?;
        let start = ctx.data();
        if start + FRAME > ctx.data_end() {
            return None;
        }
        // SAFETY: the map's element is there for as long as the program; FRAME bytes from `start` are inside the packet.
        unsafe {
            let x = (*d).state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (*d).state = x;
            // The upper bits of a linear congruential generator are the random ones; of 32 - bits >= 1 shifted away, none is shifted by 32.
            let pick = |v: u32, bits: u32| (v >> 1) >> (31 - (bits & 31));
            let source = (*d).source.wrapping_add(pick(x, (*d).source_bits));
            let y = x.wrapping_mul(0x9e37_79b1);
            let destination = (*d).destination.wrapping_add(pick(y, (*d).destination_bits) << 8);
            let port = (*d).port as u16 + ((y >> 8) & 3) as u16;
            let p = start as *mut u8;
            // A recycled frame of a live run carries what the gateway wrote: set addresses and hop count again.
            *p.cast::<u32>() = u32::from_ne_bytes([2, 0, 0, 0]);
            *p.add(4).cast::<u32>() = u32::from_ne_bytes([0, 2, 2, 0]);
            *p.add(8).cast::<u32>() = u32::from_ne_bytes([0, 0, 0, 1]);
            *p.add(22) = 64;
            *p.add(26).cast::<u32>() = source.to_be();
            *p.add(30).cast::<u32>() = destination.to_be();
            *p.add(36).cast::<u16>() = port.to_be();
            // 4500 + 002e + 0000 + 0000 + 4011 = 853f: the words of the header that do not change.
            let mut sum = 0x853f + (source >> 16) + (source & 0xffff) + (destination >> 16) + (destination & 0xffff);
            sum = (sum & 0xffff) + (sum >> 16);
            sum = (sum & 0xffff) + (sum >> 16);
            *p.add(24).cast::<u16>() = (!(sum as u16)).to_be();
            Some((*d).ifindex)
        }
    }

    /// Nothing: what the hook itself costs.
    #[xdp(frags)]
    fn bench_empty(_: XdpContext) -> u32 {
        XDP_PASS
    }

    /// Draws a packet and tail-calls the program under test. A test run reuses the frame, so metadata that the last pass left is taken away first.
    #[xdp(frags)]
    fn bench_prologue(ctx: XdpContext) -> u32 {
        let left = ctx.data() - ctx.metadata();
        if left != 0 {
            // SAFETY: a helper call on this program's context.
            unsafe { bpf_xdp_adjust_meta(ctx.ctx, left as i32) };
        }
        if draw(&ctx).is_some() {
            // SAFETY: the slot holds an XDP program or nothing; a failed tail call returns.
            let _ = unsafe { JUMP.tail_call(&ctx, 0) };
        }
        XDP_ABORTED
    }

    /// Draws a packet and sends it (run with BPF_F_TEST_XDP_LIVE_FRAMES).
    #[xdp(frags)]
    fn bench_generate(ctx: XdpContext) -> u32 {
        match draw(&ctx) {
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
        aya_ebpf::bindings::TC_ACT_SHOT
    }

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo) -> ! {
        loop {}
    }

    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
}

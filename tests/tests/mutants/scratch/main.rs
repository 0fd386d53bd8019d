//! In the scratch workspace: tries every fault that is its share, and says what became of it, a line each.

mod differential;
mod reference;

use std::panic::catch_unwind;

fn main() {
    let mut arguments = std::env::args().skip(1).map(|a| a.parse::<usize>().unwrap_or_else(|e| panic!("{a}: {e}")));
    let mut next = || arguments.next().unwrap_or_else(|| panic!("FIRST STEP LAST SCENARIOS"));
    let (first, step, last, scenarios) = (next(), next(), next(), next() as u64);
    for number in (first..=last).step_by(step) {
        gateway_ebpf::switch(number);
        let outcome = match catch_unwind(|| differential::search(1..=scenarios, 200)) {
            Err(_) => "panicked".to_owned(),
            Ok(Ok(_)) => "survived".to_owned(),
            Ok(Err(found)) => format!("found in scenario {}", found.seed),
        };
        println!("{number} {outcome}");
    }
}

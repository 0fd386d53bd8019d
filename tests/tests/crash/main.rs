//! What survives a death: of the daemon, killed at random moments under load, with the real kernel; and of the machine, with all that was
//! not yet on the disk gone.
#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

mod judge;
mod kill;
mod load;
mod moments;
mod power;
mod reboot;

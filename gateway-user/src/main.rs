//! `lazaret`: the daemon and its command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    gateway_user::cli::main()
}

//! The VPN servers' own scripts, as subcommands: each is a process for one call, reads its environment and asks the daemon. It starts no
//! other program, so that nothing that a client chose can reach a shell.

pub mod openvpn;

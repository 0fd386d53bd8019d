//! Who may call what: the listeners (mTLS over TCP, peer credentials on the Unix socket), the identity that they find, and the one table of
//! RPC by role. It knows nothing of what a call does.

pub mod answer;
pub mod certificate;
pub mod clients;
mod connection;
mod connections;
pub mod gate;
mod handshakes;
pub mod listen;
pub mod live;
pub mod peer;
pub mod refusals;
pub mod report;
pub mod roles;
pub mod shares;
pub mod socket;
pub mod tls;
pub mod transport;
pub mod trust;

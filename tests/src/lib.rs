//! What scenario tests, the demo and the benchmark share: network namespaces, processes in them, raw packets, and a gateway with its
//! configuration and certificates.

pub mod api;
pub mod bulk;
pub mod desk;
pub mod differential;
pub mod elements;
pub mod flows;
pub mod fuzz;
pub mod gateway;
pub mod lab;
pub mod loaded;
pub mod lossy;
pub mod machine;
pub mod netns;
pub mod openvpn;
pub mod packets;
pub mod pins;
pub mod process;
pub mod reference;
pub mod require;
pub mod rtnl;
pub mod scratch;
pub mod services;
pub mod site;
pub mod wire;

pub use require::require;

//! Lazaret's daemon and command line, as a library; `main.rs` is thin. ARCHITECTURE.md has the map. Modules in the order of the flow.

mod background;
pub mod clock;
pub mod config;
mod durable;
pub mod model;

pub mod audit;

pub mod access;
pub mod api;

pub mod controller;
pub mod refusal;
pub mod store;
pub mod transition;

pub mod kernel;
pub mod reconcile;

pub mod dataplane;
pub mod floor;
pub mod links;
mod netlink;
pub mod routes;

pub mod events;
pub mod explain;
pub mod ledger;
pub mod metrics;
pub mod telemetry;
pub mod why;

pub mod cli;
pub mod daemon;
pub mod heap;
pub mod hook;
pub mod notify;
pub mod pki;
pub mod privileges;

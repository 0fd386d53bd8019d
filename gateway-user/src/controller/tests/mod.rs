//! The controller on the real store, over the fake kernel.

mod kit;
mod signals;

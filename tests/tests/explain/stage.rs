//! A running gateway between a device by Ethernet and a core with TCP listeners, and the command line that asks it.

use std::{
    ops::{Deref, DerefMut},
    process::Stdio,
};

use lazaret_proto::v1;
pub(crate) use lazaret_tests::desk::{LIMIT, PATIENCE};
use lazaret_tests::{desk::Desk, gateway::Gateway};
use serde_json::Value;

pub(crate) struct Stage(Desk);

impl Stage {
    /// With `phone` registered, and no session.
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with(configure: impl FnOnce(&Gateway)) -> Self {
        let desk = Desk::new(|g| {
            configure(g);
            Ok(())
        })
        .unwrap();
        desk.local.register("phone", "staff").unwrap();
        Self(desk)
    }

    pub(crate) fn open(&self) -> u64 {
        self.0.open().unwrap().session.unwrap().session_id
    }

    /// `lazaret explain` with `--json`: its explanations.
    pub(crate) fn explain(&self, words: &str) -> Vec<Value> {
        json(&self.gateway, words)
    }

    /// As [`Stage::explain`], of which there is one.
    pub(crate) fn one(&self, words: &str) -> Value {
        let mut all = self.explain(words);
        assert_eq!(all.len(), 1, "{words}");
        all.remove(0)
    }

    /// What `lazaret` says on standard error, and its exit code, when it does not succeed.
    pub(crate) fn refused(&self, words: &str) -> (i32, String) {
        let mut command = self.gateway.lazaret();
        let output = command.args(words.split_whitespace()).stdout(Stdio::null()).output().unwrap();
        assert!(!output.status.success(), "{words}");
        (
            output.status.code().unwrap(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    }

    /// Every counter, those of rules included, and the last denials.
    pub(crate) fn all_counted(&self) -> (Value, Vec<v1::Denial>) {
        (self.json("counters").unwrap(), self.local.denials().unwrap())
    }
}

impl Deref for Stage {
    type Target = Desk;
    fn deref(&self) -> &Desk {
        &self.0
    }
}

impl DerefMut for Stage {
    fn deref_mut(&mut self) -> &mut Desk {
        &mut self.0
    }
}

/// `lazaret explain` with `--json`: its explanations.
pub(crate) fn json(gateway: &Gateway, words: &str) -> Vec<Value> {
    let text = gateway.cli(&format!("explain --json {words}")).unwrap();
    let answer: Value = serde_json::from_str(&text).unwrap();
    answer["explanations"].as_array().unwrap().clone()
}

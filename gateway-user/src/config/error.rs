//! What is wrong with a configuration file: every mistake with its place.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use super::read;

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file, as it was named.
    pub file: PathBuf,
    /// From 1; 0: the file as a whole.
    pub line: usize,
    /// The key as the documentation names it, e.g. `pool.prefixes`; empty: none.
    pub key: String,
    /// What is wrong.
    pub problem: String,
    /// What would be right.
    pub remedy: String,
}

impl ConfigError {
    /// A mistake that shows only outside the file, at a key of one of its sections. The place is looked up in the file as it is now; line 0
    /// if the key is not there.
    #[must_use]
    pub fn at_key(file: &Path, section: &str, key: &str, problem: String, remedy: &str) -> Self {
        let line = read::text(file).ok().and_then(|text| read::line_of(&text, section, key));
        Self {
            file: file.to_owned(),
            line: line.unwrap_or(0),
            key: format!("{section}.{key}"),
            problem,
            remedy: remedy.to_owned(),
        }
    }
}

/// `file:line: key: problem; remedy`, on one line, control characters escaped.
impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = self.file.display().to_string();
        if self.line > 0 {
            line += &format!(":{}", self.line);
        }
        line += ": ";
        if !self.key.is_empty() {
            line += &format!("{}: ", self.key);
        }
        line += &self.problem;
        if !self.remedy.is_empty() {
            line += &format!("; {}", self.remedy);
        }
        line.chars().try_for_each(|c| {
            if c.is_control() {
                write!(f, "{}", c.escape_default())
            } else {
                fmt::Write::write_char(f, c)
            }
        })
    }
}

/// Every mistake of a file, in its order; never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}

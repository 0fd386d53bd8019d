//! Typed reading of a TOML document that notes every mistake with its place and goes on. What a key means is not known here.
//!
//! Serde would stop at the first mistake; an operator wants all of them.

use std::{
    cell::RefCell,
    fs::File,
    io::Read as _,
    ops::{Range, RangeInclusive},
    path::Path,
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    error::{ConfigError, ConfigErrors},
    raw::keys_of,
};

/// The text of a configuration file.
pub(super) fn text(file: &Path) -> Result<String, ConfigErrors> {
    const MOST: u64 = 4 << 20;
    let error = |line, problem: String, remedy: &str| {
        ConfigErrors(vec![ConfigError {
            file: file.to_owned(),
            line,
            key: String::new(),
            problem,
            remedy: remedy.into(),
        }])
    };
    let cannot = |e: std::io::Error| error(0, format!("cannot be read: {e}"), "name a readable file");
    let opened = File::open(file).map_err(cannot)?;
    if !opened.metadata().map_err(cannot)?.is_file() {
        return Err(error(0, "is not a regular file".into(), "name a file"));
    }
    let mut bytes = Vec::new();
    opened.take(MOST + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > MOST {
        return Err(error(
            0,
            format!("is longer than {MOST} bytes"),
            "a configuration is a few kilobytes",
        ));
    }
    String::from_utf8(bytes).map_err(|e| {
        let before = &e.as_bytes()[..e.utf8_error().valid_up_to()];
        let line = before.iter().filter(|b| **b == b'\n').count() + 1;
        error(line, "the text is not UTF-8".into(), "save the file as UTF-8")
    })
}

/// The line of a key of a section, from 1.
pub(super) fn line_of(text: &str, section: &str, key: &str) -> Option<usize> {
    let (document, _) = DeTable::parse_recoverable(text);
    let (key, _) = document.get_ref().get(section)?.get_ref().as_table()?.get_key_value(key)?;
    Some(line(text, key.span().start))
}

/// The line of an offset, from 1.
fn line(text: &str, at: usize) -> usize {
    text.as_bytes().iter().take(at).filter(|b| **b == b'\n').count() + 1
}

/// What is wrong with a value, and what would be right.
pub(super) struct Wrong {
    pub(super) problem: String,
    pub(super) remedy: String,
}

impl Wrong {
    pub(super) fn new(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            problem: problem.into(),
            remedy: remedy.into(),
        }
    }
}

/// A value with its place.
#[derive(Clone, Debug)]
pub(super) struct At<T> {
    pub(super) value: T,
    /// Offset in bytes.
    pub(super) at: usize,
}

/// The mistakes found so far.
pub(super) struct Notes<'a> {
    file: &'a Path,
    text: &'a str,
    errors: RefCell<Vec<(usize, ConfigError)>>,
}

impl<'a> Notes<'a> {
    pub(super) fn new(file: &'a Path, text: &'a str) -> Self {
        Self {
            file,
            text,
            errors: RefCell::default(),
        }
    }

    /// Notes a mistake at an offset.
    pub(super) fn note(&self, at: usize, key: impl Into<String>, wrong: Wrong) {
        let error = ConfigError {
            file: self.file.to_owned(),
            line: self.line(at),
            key: key.into(),
            problem: wrong.problem,
            remedy: wrong.remedy,
        };
        self.errors.borrow_mut().push((at, error));
    }

    /// The line of an offset, from 1.
    pub(super) fn line(&self, at: usize) -> usize {
        line(self.text, at)
    }

    pub(super) fn is_clean(&self) -> bool {
        self.errors.borrow().is_empty()
    }

    /// All of them, in the order of the file.
    pub(super) fn into_errors(self) -> ConfigErrors {
        let mut errors = self.errors.into_inner();
        errors.sort_by_key(|(at, _)| *at);
        ConfigErrors(errors.into_iter().map(|(_, e)| e).collect())
    }
}

/// A table of the document, whose keys are known by its name.
pub(super) struct Section<'a, 'i> {
    notes: &'a Notes<'a>,
    /// As in the documentation: `pool.route`; empty: the document.
    name: &'static str,
    /// Offset of its header.
    pub(super) at: usize,
    table: &'a DeTable<'i>,
}

impl<'a, 'i> Section<'a, 'i> {
    /// Opens a table and notes the keys that it may not have.
    pub(super) fn new(notes: &'a Notes<'a>, name: &'static str, span: Range<usize>, table: &'a DeTable<'i>) -> Self {
        let section = Self {
            notes,
            name,
            at: span.start,
            table,
        };
        let known = keys_of(name);
        for key in table.keys() {
            let text: &str = key.get_ref();
            if !known.contains(&text) {
                let remedy = match known.iter().find(|k| distance(k, text) <= 2) {
                    Some(near) => format!("did you mean {near}?"),
                    None => format!("known here: {}", known.join(", ")),
                };
                notes.note(
                    key.span().start,
                    section.key(&shortened(text)),
                    Wrong::new("unknown key", remedy),
                );
            }
        }
        section
    }

    /// Notes a mistake with the value of a key, at its place.
    pub(super) fn wrong<T>(&self, value: &At<T>, key: &str, wrong: Wrong) {
        self.notes.note(value.at, self.key(key), wrong);
    }

    /// Notes what the section lacks as a whole, unless the key has a wrong type, which was noted.
    pub(super) fn lacks(&self, key: &str, wrong: Wrong) {
        if self.get(key).is_none_or(|v| v.get_ref().is_array()) {
            self.notes.note(self.at, self.key(key), wrong);
        }
    }

    /// Notes that a key is missing.
    pub(super) fn missing(&self, key: &str, remedy: &str) {
        let whole = if self.name.is_empty() {
            "the file".into()
        } else {
            format!("[{}]", self.name)
        };
        self.notes
            .note(self.at, self.key(key), Wrong::new(format!("{whole} has no {key}"), remedy));
    }

    /// Whether the key is there, right or wrong.
    pub(super) fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// Notes that a key is missing, unless it is there.
    pub(super) fn require(&self, key: &str, remedy: &str) {
        if !self.has(key) {
            self.missing(key, remedy);
        }
    }

    /// Whether the key is an array without elements.
    pub(super) fn is_empty_list(&self, key: &str) -> bool {
        self.get(key)
            .is_some_and(|v| v.get_ref().as_array().is_some_and(|a| a.is_empty()))
    }

    /// A string, read by `parse`.
    pub(super) fn parsed<T>(&self, key: &str, parse: impl Fn(&str) -> Result<T, Wrong>) -> Option<At<T>> {
        self.element(key, self.get(key)?, &parse)
    }

    /// A string out of a list.
    pub(super) fn one_of<T: Copy>(&self, key: &str, choices: &[(&str, T)]) -> Option<At<T>> {
        self.parsed(key, |text| {
            choices
                .iter()
                .find(|(name, _)| *name == text)
                .map(|(_, value)| *value)
                .ok_or_else(|| {
                    let names: Vec<String> = choices.iter().map(|(name, _)| format!("{name:?}")).collect();
                    Wrong::new(
                        format!("{:?} is not a choice", shortened(text)),
                        format!("write {}", names.join(" or ")),
                    )
                })
        })
    }

    /// `true` or `false`.
    pub(super) fn boolean(&self, key: &str) -> Option<At<bool>> {
        let value = self.get(key)?;
        let at = value.span().start;
        let DeValue::Boolean(value) = *value.get_ref() else {
            self.notes.note(
                at,
                self.key(key),
                wrong_type(value.get_ref(), "write true or false, without quotes"),
            );
            return None;
        };
        Some(At { value, at })
    }

    /// An integer inside a range.
    pub(super) fn integer(&self, key: &str, range: RangeInclusive<u32>) -> Option<At<u32>> {
        let value = self.get(key)?;
        let at = value.span().start;
        let right = format!("write an integer from {} to {}", range.start(), range.end());
        let DeValue::Integer(digits) = value.get_ref() else {
            self.notes.note(at, self.key(key), wrong_type(value.get_ref(), &right));
            return None;
        };
        let number = i128::from_str_radix(digits.as_str(), digits.radix()).ok();
        match number.and_then(|n| u32::try_from(n).ok()).filter(|n| range.contains(n)) {
            Some(value) => Some(At { value, at }),
            None => {
                self.notes
                    .note(at, self.key(key), Wrong::new(format!("{digits} is out of range"), right));
                None
            }
        }
    }

    /// An array, each element a string read by `parse`; elements that are wrong are noted and left out. `None`: no such key.
    pub(super) fn list<T>(&self, key: &str, parse: impl Fn(&str) -> Result<T, Wrong>) -> Option<At<Vec<At<T>>>> {
        let value = self.get(key)?;
        let at = value.span().start;
        let DeValue::Array(array) = value.get_ref() else {
            self.notes.note(
                at,
                self.key(key),
                wrong_type(value.get_ref(), "write an array of strings, [\"...\"]"),
            );
            return None;
        };
        let value = array
            .iter()
            .filter_map(|element| self.element(key, element, &parse))
            .collect();
        Some(At { value, at })
    }

    /// A string, or an array of strings.
    pub(super) fn one_or_more<T>(&self, key: &str, parse: impl Fn(&str) -> Result<T, Wrong>) -> Option<At<Vec<At<T>>>> {
        let value = self.get(key)?;
        if value.get_ref().is_array() {
            return self.list(key, parse);
        }
        let at = value.span().start;
        self.element(key, value, &parse).map(|one| At { value: vec![one], at })
    }

    /// An array of integers and strings, each read by `parse` as text; elements that are wrong are noted and left out.
    pub(super) fn texts_or_numbers<T>(&self, key: &str, parse: impl Fn(&str) -> Result<T, Wrong>) -> Option<At<Vec<At<T>>>> {
        let value = self.get(key)?;
        let at = value.span().start;
        let DeValue::Array(array) = value.get_ref() else {
            self.notes
                .note(at, self.key(key), wrong_type(value.get_ref(), "write an array, [1, \"2.3\"]"));
            return None;
        };
        let one = |element: &Spanned<DeValue<'i>>| match element.get_ref() {
            DeValue::Integer(digits) => {
                let number = i128::from_str_radix(digits.as_str(), digits.radix()).ok();
                let text = number.map_or_else(|| digits.to_string(), |n| n.to_string());
                let value = parse(&text).map_err(|wrong| self.notes.note(element.span().start, self.key(key), wrong));
                let at = element.span().start;
                value.ok().map(|value| At { value, at })
            }
            _ => self.element(key, element, &parse),
        };
        Some(At {
            value: array.iter().filter_map(one).collect(),
            at,
        })
    }

    /// A table below this one.
    pub(super) fn section(&self, key: &'static str) -> Option<Section<'a, 'i>> {
        let value = self.get(key)?;
        let DeValue::Table(table) = value.get_ref() else {
            let right = format!("write a section, [{key}]");
            self.notes
                .note(value.span().start, self.key(key), wrong_type(value.get_ref(), &right));
            return None;
        };
        Some(Section::new(self.notes, key, value.span(), table))
    }

    /// The tables of an array of tables; `name` is theirs in the documentation.
    pub(super) fn sections(&self, key: &str, name: &'static str) -> Vec<Section<'a, 'i>> {
        let Some(value) = self.get(key) else {
            return Vec::new();
        };
        let right = format!("write a section with double brackets for each, [[{name}]]");
        let DeValue::Array(array) = value.get_ref() else {
            self.notes
                .note(value.span().start, self.key(key), wrong_type(value.get_ref(), &right));
            return Vec::new();
        };
        let mut sections = Vec::new();
        for element in array.iter() {
            match element.get_ref() {
                DeValue::Table(table) => sections.push(Section::new(self.notes, name, element.span(), table)),
                other => self
                    .notes
                    .note(element.span().start, self.key(key), wrong_type(other, &right)),
            }
        }
        sections
    }

    fn get(&self, key: &str) -> Option<&'a Spanned<DeValue<'i>>> {
        debug_assert!(
            keys_of(self.name).contains(&key),
            "{key} is missing in the schema of {}",
            self.name
        );
        self.table.iter().find(|(k, _)| k.get_ref() == key).map(|(_, v)| v)
    }

    fn element<T>(&self, key: &str, value: &Spanned<DeValue<'i>>, parse: &impl Fn(&str) -> Result<T, Wrong>) -> Option<At<T>> {
        let at = value.span().start;
        let read = match value.get_ref() {
            DeValue::String(text) => parse(text),
            other => Err(wrong_type(other, "write a string, in quotes")),
        };
        match read {
            Ok(value) => Some(At { value, at }),
            Err(wrong) => {
                self.notes.note(at, self.key(key), wrong);
                None
            }
        }
    }

    fn key(&self, key: &str) -> String {
        if self.name.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.name)
        }
    }
}

/// The first characters of a text out of the file, for a message.
pub(super) fn shortened(text: &str) -> String {
    const MOST: usize = 60;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

fn wrong_type(value: &DeValue<'_>, right: &str) -> Wrong {
    Wrong::new(format!("the value's type is {}", value.type_str()), right)
}

/// Edit distance of two short texts (Levenshtein); long ones are far.
fn distance(a: &str, b: &str) -> usize {
    if a.len().abs_diff(b.len()) > 2 {
        return usize::MAX;
    }
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = (diagonal + usize::from(x != *y)).min(above + 1).min(row[j] + 1);
            diagonal = above;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::distance;

    #[test]
    fn edit_distance() {
        for (a, b, d) in [
            ("pool", "pool", 0),
            ("pool", "pol", 1),
            ("prefixes", "prefix", 2),
            ("a", "xyz", 3),
        ] {
            assert_eq!(distance(a, b), d, "{a} {b}");
        }
    }
}

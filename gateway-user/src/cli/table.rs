//! Text for people: aligned columns, colour where the terminal has it, control characters escaped.

use std::io::{self, IsTerminal as _, Write as _};

/// How a cell looks on a terminal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Tone {
    #[default]
    Plain,
    Good,
    Warn,
    Bad,
    Dim,
}

/// A piece of text.
#[derive(Clone, Debug, Default)]
pub(super) struct Cell {
    text: String,
    tone: Tone,
}

impl<T: ToString> From<T> for Cell {
    fn from(text: T) -> Self {
        Self {
            text: escaped(&text.to_string()),
            tone: Tone::Plain,
        }
    }
}

/// A text in a tone.
pub(super) fn toned(text: impl ToString, tone: Tone) -> Cell {
    Cell {
        tone,
        ..Cell::from(text)
    }
}

/// Lines to be printed.
pub(super) struct Page {
    text: String,
    colour: bool,
}

impl Page {
    /// With colour if standard output is a terminal and NO_COLOR (no-color.org) is not set.
    pub(super) fn new() -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        let able = std::env::var_os("TERM").is_none_or(|t| t != "dumb");
        Self::with_colour(io::stdout().is_terminal() && wanted && able)
    }

    fn with_colour(colour: bool) -> Self {
        Self {
            text: String::new(),
            colour,
        }
    }

    /// One line.
    pub(super) fn line(&mut self, cell: impl Into<Cell>) {
        let line = self.painted(&cell.into());
        self.text += &line;
        self.text.push('\n');
    }

    /// `name` padded, then the value; "-" if it is empty.
    pub(super) fn pair(&mut self, name: &str, value: impl Into<Cell>) {
        let value = value.into();
        let value = if value.text.is_empty() { toned("-", Tone::Dim) } else { value };
        let value = self.painted(&value);
        self.text += &format!("{name:<18}{value}\n");
    }

    /// Columns as wide as they need to be, two spaces apart; columns that are empty in every row are left out.
    pub(super) fn table(&mut self, headers: &[&str], rows: &[Vec<Cell>]) {
        let cell_of = |row: &Vec<Cell>, column: usize| row.get(column).cloned().unwrap_or_default();
        let used: Vec<usize> = (0..headers.len())
            .filter(|c| rows.iter().any(|r| !cell_of(r, *c).text.is_empty()))
            .collect();
        let width = |c: usize| {
            let cells = rows.iter().map(|r| cell_of(r, c).text.chars().count());
            cells.chain([headers[c].chars().count()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = used.iter().map(|c| width(*c)).collect();
        let head: Vec<Cell> = used.iter().map(|c| toned(headers[*c], Tone::Dim)).collect();
        let body = rows.iter().map(|r| used.iter().map(|c| cell_of(r, *c)).collect::<Vec<_>>());
        for row in std::iter::once(head).chain(body) {
            let mut line = String::new();
            let mut gap = 0;
            for (cell, width) in row.iter().zip(&widths) {
                if !cell.text.is_empty() {
                    line += &" ".repeat(gap);
                    line += &self.painted(cell);
                    gap = 0;
                }
                gap += width - cell.text.chars().count() + 2;
            }
            self.text += &line;
            self.text.push('\n');
        }
    }

    /// A table, or a line that says that there is nothing to show.
    pub(super) fn list(&mut self, nothing: &str, headers: &[&str], rows: &[Vec<Cell>]) {
        if rows.is_empty() {
            self.line(toned(nothing, Tone::Dim));
        } else {
            self.table(headers, rows);
        }
    }

    /// As it would be printed.
    pub(super) fn into_text(self) -> String {
        self.text
    }

    /// Writes it to standard output. A reader that went away is no error.
    pub(super) fn print(self) -> io::Result<()> {
        write_out(&self.text)
    }

    fn painted(&self, cell: &Cell) -> String {
        let code = match cell.tone {
            Tone::Plain => return cell.text.clone(),
            Tone::Good => "32",
            Tone::Warn => "33",
            Tone::Bad => "1;31",
            Tone::Dim => "2",
        };
        if self.colour && !cell.text.is_empty() {
            format!("\x1b[{code}m{}\x1b[0m", cell.text)
        } else {
            cell.text.clone()
        }
    }
}

/// Writes to standard output; a reader that went away is no error.
pub(super) fn write_out(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Control characters and those that turn the direction of text, as `\u{..}`: names and reasons are chosen by others.
pub(crate) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let turns = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if c.is_control() || turns {
            out.extend(c.escape_default())
        } else {
            out.push(c)
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_empty_ones_left_out() {
        let mut page = Page::with_colour(false);
        let row = |cells: [&str; 3]| cells.map(Cell::from).to_vec();
        page.table(
            &["NAME", "NOTHING", "N"],
            &[row(["a", "", "10"]), row(["longer", "", ""]), row(["ä", "", "1"])],
        );
        assert_eq!(page.text, "NAME    N\na       10\nlonger\nä       1\n");
        let mut page = Page::with_colour(false);
        page.list("no devices", &["DEVICE"], &[]);
        page.list("no devices", &["DEVICE"], &[row(["a", "", ""])]);
        assert_eq!(page.text, "no devices\nDEVICE\na\n");
    }

    #[test]
    fn colour_only_where_wanted() {
        for (colour, text) in [(false, "bad\n"), (true, "\x1b[1;31mbad\x1b[0m\n")] {
            let mut page = Page::with_colour(colour);
            page.line(toned("bad", Tone::Bad));
            assert_eq!(page.text, text);
        }
    }

    #[test]
    fn what_others_chose_cannot_steer_the_terminal() {
        assert_eq!(
            escaped("a\u{1b}[2Jb\r\nc\u{202e}d\u{9b}"),
            "a\\u{1b}[2Jb\\r\\nc\\u{202e}d\\u{9b}"
        );
        let mut page = Page::with_colour(true);
        page.table(&["H"], &[vec![Cell::from("x\u{1b}[31m")]]);
        assert!(page.text.contains("x\\u{1b}[31m"), "{}", page.text);
    }
}

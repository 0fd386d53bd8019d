//! Pages of lists: sizes, and tokens that say where the next page starts. A token is opaque to the caller and grants nothing; it is
//! checked, so that a token of another list, of another filter or a damaged one is refused in place of giving a wrong page.

use super::parse::Invalid;

/// A page of a list: how many elements, after which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Page {
    /// How many, at most.
    pub(super) size: u32,
    /// The last element of the page before; `None`: from the start.
    pub(super) after: Option<String>,
}

/// Elements of a page when the caller names no number.
const DEFAULT: u32 = 100;
/// Most elements of a page.
const MOST: u32 = 1000;

/// A request's page. `list` names the list and its filter, e.g. `devices/3`.
pub(super) fn parse(list: &str, size: u32, token: &str) -> Result<Page, Invalid> {
    let after = if token.is_empty() {
        None
    } else {
        Some(open(list, token).ok_or_else(invalid)?)
    };
    Ok(Page {
        size: limit(size, DEFAULT, MOST),
        after,
    })
}

/// The token of the page after `last`.
pub(super) fn token(list: &str, last: &str) -> String {
    let sum = checksum(list, last);
    last.bytes().map(|b| format!("{b:02x}")).collect::<String>() + &format!("{sum:08x}")
}

/// A token that does not belong here.
pub(super) fn invalid() -> Invalid {
    Invalid::new("page_token", "is not the next_page_token of this list with this filter")
}

/// A wanted number of elements within what is allowed; 0: the default.
pub(super) fn limit(wanted: u32, default: u32, most: u32) -> u32 {
    if wanted == 0 { default } else { wanted.min(most) }
}

fn open(list: &str, token: &str) -> Option<String> {
    // A name of the model has at most 128 characters, and a list may put a few before it.
    if token.len() > 2 * 136 + 8 || !token.len().is_multiple_of(2) || !token.is_ascii() {
        return None;
    }
    let (last, sum) = token.split_at_checked(token.len().checked_sub(8)?)?;
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let bytes: Option<Vec<u8>> = last
        .as_bytes()
        .chunks_exact(2)
        .map(|p| Some(digit(p[0])? << 4 | digit(p[1])?))
        .collect();
    let last = String::from_utf8(bytes?).ok()?;
    (sum == format!("{:08x}", checksum(list, &last))).then_some(last)
}

/// FNV-1a, 32 bits: against mistakes, not against malice.
fn checksum(list: &str, last: &str) -> u32 {
    let bytes = list.bytes().chain([0]).chain(last.bytes());
    bytes.fold(0x811c_9dc5, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_lead_back_and_are_checked() {
        let t = token("devices/0", "user@example.org");
        assert_eq!(
            parse("devices/0", 7, &t).unwrap(),
            Page {
                size: 7,
                after: Some("user@example.org".into())
            }
        );
        assert!(parse("devices/3", 7, &t).is_err(), "another filter");
        assert!(parse("sessions", 7, &t).is_err(), "another list");
        let damaged: Vec<String> = (0..t.len()).map(|i| t[..i].to_owned() + &t[i + 1..]).collect();
        let odd = ["0", "zz", "ä", "0000000", "00000000", "\0\0", &"ab".repeat(5000)].map(String::from);
        for bad in damaged.iter().chain(&odd) {
            assert_eq!(parse("devices/0", 0, bad).unwrap_err().field(), "page_token", "{bad:?}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(parse("x", 0, "").unwrap(), Page { size: 100, after: None });
        assert_eq!(parse("x", 1, "").unwrap().size, 1);
        assert_eq!(parse("x", u32::MAX, "").unwrap().size, 1000);
    }
}

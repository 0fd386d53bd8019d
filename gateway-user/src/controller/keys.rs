//! Policy keys, as they go out and come in. What is stored is [`KeyHash`].

use std::{fmt, str::FromStr};

use crate::{audit::sha256, model::KeyHash};

/// 128 random bits; as text 32 hexadecimal digits. It is shown by [`PolicyKey::reveal`] only, never in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct PolicyKey([u8; 16]);

impl PolicyKey {
    /// From the operating system's random numbers.
    ///
    /// # Errors
    /// There are none (yet).
    pub fn fresh() -> Result<Self, getrandom::Error> {
        let mut bits = [0; 16];
        getrandom::fill(&mut bits)?;
        Ok(Self(bits))
    }

    /// What is kept of it: SHA-256 of its bits.
    #[must_use]
    pub fn hash(&self) -> KeyHash {
        KeyHash(sha256(&self.0))
    }

    /// As text, for the one that it is given to.
    #[must_use]
    pub fn reveal(&self) -> String {
        self.0.iter().map(|b| format!("{b:02x}")).collect()
    }
}

impl fmt::Debug for PolicyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PolicyKey")
    }
}

/// Not a policy key. The text itself is not repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a policy key must be 32 hexadecimal digits")]
pub struct InvalidPolicyKey;

impl FromStr for PolicyKey {
    type Err = InvalidPolicyKey;
    fn from_str(s: &str) -> Result<Self, InvalidPolicyKey> {
        let digit = |c: u8| {
            char::from(c)
                .to_digit(16)
                .and_then(|d| u8::try_from(d).ok())
                .ok_or(InvalidPolicyKey)
        };
        let digits: Vec<u8> = s.bytes().map(digit).collect::<Result<_, _>>()?;
        let mut bits = [0; 16];
        if digits.len() != 32 {
            return Err(InvalidPolicyKey);
        }
        for (byte, pair) in bits.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = pair[0] << 4 | pair[1];
        }
        Ok(Self(bits))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_it_is_shown_and_not_shown_otherwise() {
        let (one, other) = (PolicyKey::fresh().unwrap(), PolicyKey::fresh().unwrap());
        assert_ne!(one, other);
        let text = one.reveal();
        assert_eq!((text.len(), text.parse::<PolicyKey>().unwrap().hash()), (32, one.hash()));
        assert_eq!(text.to_uppercase().parse::<PolicyKey>().unwrap(), one);
        assert_eq!(format!("{one:?} {:?}", one.hash()), "PolicyKey KeyHash");
        for bad in [
            "",
            &text[1..],
            &format!("{text}0"),
            &format!("{}g", &text[1..]),
            &format!("+{}", &text[1..]),
        ] {
            assert_eq!(bad.parse::<PolicyKey>(), Err(InvalidPolicyKey), "{bad:?}");
        }
    }
}

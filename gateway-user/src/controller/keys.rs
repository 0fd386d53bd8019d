//! Policy keys, as they go out and come in. What is stored is [`KeyHash`], and the salt of a final key: neither gives a key without the other key.

use std::{fmt, str::FromStr};

use ring::hmac;

use crate::{
    audit::sha256,
    model::{DeviceId, KeyHash, PolicyRevision, Salt},
};

/// Keeps final keys apart from whatever else may be derived from a temporary one.
const LABEL: &[u8] = b"lazaret final policy key 1";

/// 128 bits that nobody can guess; as text 32 hexadecimal digits. It is shown by [`PolicyKey::reveal`] only, never in logs.
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

    /// The final key that this temporary one is taken for: the first 128 bits of HMAC-SHA256 (RFC 2104) with the temporary key's bits as its
    /// key, over a label, a zero byte, the salt, the device's name, a zero byte, and the revision. So who brings the temporary key once more
    /// gets the same final one, and nothing that is stored gives it.
    #[must_use]
    pub fn final_key(&self, salt: &Salt, device: &DeviceId, revision: &PolicyRevision) -> Self {
        let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, &self.0));
        let names = (device.as_str().as_bytes(), revision.as_str().as_bytes());
        for part in [LABEL, &[0], &salt.0, names.0, &[0], names.1] {
            context.update(part);
        }
        let mut bits = [0; 16];
        let tag = context.sign();
        bits.iter_mut().zip(tag.as_ref()).for_each(|(to, from)| *to = *from);
        Self(bits)
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

/// A fresh salt.
///
/// # Errors
/// As [`PolicyKey::fresh`].
pub(super) fn salt() -> Result<Salt, getrandom::Error> {
    PolicyKey::fresh().map(|bits| Salt(bits.0))
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

    /// By another implementation: Python's `hmac.new(bytes(range(16)), message, "sha256").digest()[:16]`.
    #[test]
    fn a_final_key_is_derived_from_all_that_it_is_bound_to() {
        let temporary: PolicyKey = "000102030405060708090a0b0c0d0e0f".parse().unwrap();
        let derive = |key: &PolicyKey, salt: u8, device: &str, revision: &str| {
            let (device, revision) = (device.parse().unwrap(), revision.parse().unwrap());
            key.final_key(&Salt([salt; 16]), &device, &revision).reveal()
        };
        let known = derive(&temporary, 0xa5, "phone-1", "baseline-7");
        assert_eq!(known, "1c5c4fb898d24b4aef13d7736f8ceae0");
        let other: PolicyKey = "000102030405060708090a0b0c0d0e0e".parse().unwrap();
        for another in [
            derive(&other, 0xa5, "phone-1", "baseline-7"),
            derive(&temporary, 0xa4, "phone-1", "baseline-7"),
            derive(&temporary, 0xa5, "phone-2", "baseline-7"),
            derive(&temporary, 0xa5, "phone-1", "baseline-8"),
        ] {
            assert_ne!(another, known);
        }
    }

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

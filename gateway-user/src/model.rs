//! The words of the domain, as types that cannot hold a wrong value. No I/O; every other module speaks in these.

mod addresses;
mod device;
mod identity;
mod place;
pub mod prefix;

use std::{fmt, str::FromStr};

use arcstr::ArcStr;
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, Serialize};

pub use self::addresses::Addresses;
pub use self::device::{
    Aliases, Device, DeviceState, Enrolment, Exception, ExceptionKind, FinalKey, Handshake, Offer, Rare, Release, StateReason,
    Window,
};
pub use self::identity::{DevicePattern, Identity, Reach, Role, Scope};
pub use self::place::Place;

/// A text that matches a documented set of characters.
macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $max:literal, $extra:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(ArcStr);

        impl $name {
            /// As text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
        impl From<$name> for String {
            fn from(n: $name) -> Self {
                n.0.as_str().to_owned()
            }
        }
        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(s: String) -> Result<Self, InvalidName> {
                let ok = |c: char| c.is_ascii_alphanumeric() || $extra.contains(c);
                let bad = s.len() > $max || !s.starts_with(|c: char| c.is_ascii_alphanumeric()) || !s.chars().all(ok);
                if bad { Err(InvalidName { what: $what, max: $max, extra: $extra }) } else { Ok(Self(s.into())) }
            }
        }
        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(s: &str) -> Result<Self, InvalidName> {
                s.to_owned().try_into()
            }
        }
    };
}

/// A name with characters outside its set, too long, or empty. The text itself is not repeated: it is the caller's, and may hold anything.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} must be 1 to {max} characters of A-Z a-z 0-9 {extra}, the first a letter or digit")]
pub struct InvalidName {
    what: &'static str,
    max: usize,
    extra: &'static str,
}

name!(/// The MDM's name for a device, or a common name that stands for it.
    DeviceId, 128, "._:@-", "a device name");
name!(/// A pool's or a policy's name.
    PoolName, 32, "._-", "a pool or policy name");
name!(/// Who reports sessions: a VPN server.
    SourceName, 64, "._-", "a source name");
name!(/// A certificate's common name, and the name of its files.
    CertificateName, 64, "._-", "a certificate's name");
name!(/// A request id.
    RequestId, 64, "._:-", "a request id");
name!(/// The MDM's version of its device policy.
    PolicyRevision, 64, "._:-", "a policy revision");

/// A Linux interface name: 1 to 15 bytes, no `/`, no white space, not `.` or `..` (dev_valid_name in the kernel), and here ASCII
/// graphic characters without quotes and backslash.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InterfaceName(ArcStr);

impl InterfaceName {
    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}
impl From<InterfaceName> for String {
    fn from(n: InterfaceName) -> Self {
        n.0.as_str().to_owned()
    }
}
impl TryFrom<String> for InterfaceName {
    type Error = InvalidName;
    fn try_from(s: String) -> Result<Self, InvalidName> {
        let ok = (1..=15).contains(&s.len())
            && s != "."
            && s != ".."
            && s.chars().all(|c| c.is_ascii_graphic() && !"/\"'\\:*".contains(c));
        if ok {
            Ok(Self(s.into()))
        } else {
            Err(InvalidName {
                what: "an interface name",
                max: 15,
                extra: "and punctuation, without / : * quotes and backslash",
            })
        }
    }
}
impl FromStr for InterfaceName {
    type Err = InvalidName;
    fn from_str(s: &str) -> Result<Self, InvalidName> {
        s.to_owned().try_into()
    }
}

/// SHA-256 of a certificate.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// From the digest.
    #[must_use]
    pub const fn new(digest: [u8; 32]) -> Self {
        Self(digest)
    }
    /// The digest.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}
impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}
impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
impl FromStr for Fingerprint {
    type Err = InvalidFingerprint;
    fn from_str(s: &str) -> Result<Self, InvalidFingerprint> {
        let digits: Vec<u8> = s.bytes().filter(|b| *b != b':').collect();
        let mut out = [0; 32];
        if digits.len() != 64 {
            return Err(InvalidFingerprint);
        }
        for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |b: u8| char::from(b).to_digit(16).ok_or(InvalidFingerprint);
            *byte = u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).map_err(|_| InvalidFingerprint)?;
        }
        Ok(Self(out))
    }
}

/// A VPN public key (WireGuard: Curve25519), in text base64 with padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VpnKey(pub [u8; 32]);

impl fmt::Display for VpnKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&BASE64.encode(self.0))
    }
}
impl FromStr for VpnKey {
    type Err = InvalidVpnKey;
    fn from_str(s: &str) -> Result<Self, InvalidVpnKey> {
        let bytes = BASE64.decode(s).map_err(|_| InvalidVpnKey)?;
        bytes.try_into().map(Self).map_err(|_| InvalidVpnKey)
    }
}

/// Not a VPN public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a VPN public key must be 32 bytes in base64: 43 digits and one =")]
pub struct InvalidVpnKey;

/// SHA-256 of a policy key. The key itself is nowhere kept.
#[derive(Clone, Copy)]
pub struct KeyHash(pub [u8; 32]);

impl PartialEq for KeyHash {
    /// In constant time.
    fn eq(&self, other: &Self) -> bool {
        self.0.iter().zip(other.0).fold(0, |d, (a, b)| d | (a ^ b)) == 0
    }
}
impl Eq for KeyHash {}
impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyHash")
    }
}

/// Public random bits that a final policy key is derived from, together with the temporary key: of no use without that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Salt(pub [u8; 16]);

/// Not a SHA-256 fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a certificate fingerprint must be 64 hexadecimal digits (SHA-256), with or without colons")]
pub struct InvalidFingerprint;

/// A pool's number in class bytes, marks and counters: 1 to 63, in the order of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolId(pub u8);

/// A session's number; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);
impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The store's revision: rises by one with each commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Revision(pub u64);
impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A point of wall-clock time: milliseconds since 1970-01-01 UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WallTime(pub i64);

/// A point of the boot clock, nanoseconds: it counts suspend and no step of the wall clock moves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootTime(pub u64);

/// Both clocks, read together, and which boot they belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Wall clock.
    pub wall: WallTime,
    /// Boot clock.
    pub boot: BootTime,
    /// Digest of the kernel's boot id.
    pub boot_id: u64,
}

/// What a release lasts: until when it holds. On the same boot the boot clock decides; after a reboot the wall clock, never for longer
/// than the lease had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// When it was given.
    pub given: Now,
    /// Its length in milliseconds.
    pub length_ms: u64,
}

/// How well a session's device is known; the better, the greater.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trust {
    /// A name that the VPN server passes on.
    #[default]
    Name,
    /// A registered VPN public key.
    VpnKey,
    /// A registered certificate.
    Certificate,
}

/// A published policy revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// The MDM's name for it.
    pub revision: PolicyRevision,
    /// When.
    pub at: WallTime,
    /// Most devices stale at a time; 0: no ceiling.
    pub ceiling: u32,
    /// Most devices that become stale in a minute; 0: no limit.
    pub rate: u32,
    /// No wave comes while it is.
    pub paused: bool,
}

/// A live VPN connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Number.
    pub id: SessionId,
    /// `None`: a device that the registry does not know, quarantined without a name.
    pub device: Option<DeviceId>,
    /// Its addresses.
    pub addresses: Addresses,
    /// On which its packets arrive.
    pub interface: InterfaceName,
    /// Who reported it.
    pub source: SourceName,
    /// How well its device is known.
    pub trust: Trust,
    /// When it opened.
    pub opened_at: WallTime,
}

/// A GatewayURI that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UriChange {
    /// The store's revision of it.
    pub revision: Revision,
    /// Whose.
    pub device: DeviceId,
    /// Before.
    pub old: String,
    /// After.
    pub new: String,
    /// When.
    pub at: WallTime,
    /// As [`StateReason::as_str`].
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_refuse_what_could_hurt() {
        for bad in [
            "",
            ".",
            "..",
            "-x",
            "a/b",
            "../etc",
            "a b",
            "a\nb",
            "a\0b",
            "a;b",
            "$(x)",
            "ä",
            "a\u{202e}b",
            &"a".repeat(129),
        ] {
            assert!(bad.parse::<DeviceId>().is_err(), "{bad:?}");
        }
        for good in ["a", "phone-1", "user@example.org", "aa:bb", "A.b_c", &"a".repeat(128)] {
            assert!(good.parse::<DeviceId>().is_ok(), "{good:?}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "sixteen-letters-", "a\"b", "tun*"] {
            assert!(bad.parse::<InterfaceName>().is_err(), "{bad:?}");
        }
        assert!("tun0".parse::<InterfaceName>().is_ok());
    }

    #[test]
    fn vpn_keys() {
        let text = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
        let key: VpnKey = text.parse().unwrap();
        assert_eq!((key.0[0], key.0[31], key.to_string().as_str()), (0xc5, 0x38, text));
        assert_eq!(VpnKey([0xff; 32]).to_string().parse(), Ok(VpnKey([0xff; 32])));
        for bad in [
            "",
            "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg",
            "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dh=",
            "=TIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=",
            "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8D\u{e9}=",
        ] {
            assert_eq!(bad.parse::<VpnKey>(), Err(InvalidVpnKey), "{bad}");
        }
    }

    #[test]
    fn fingerprints() {
        let f: Fingerprint = "AB:".repeat(31).parse::<String>().map(|s| s + "cd").unwrap().parse().unwrap();
        assert_eq!(f.to_string(), "ab".repeat(31) + "cd");
        for bad in ["", "ab", &"zz".repeat(32), &"ab".repeat(33)] {
            assert!(bad.parse::<Fingerprint>().is_err());
        }
    }
}

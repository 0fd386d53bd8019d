//! The addresses of a session, in their order. Nearly every session has one, or one of each family: these need no memory of their own, since
//! there may be a million sessions.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// A list of addresses.
#[derive(Clone, PartialEq, Eq)]
pub struct Addresses(Kept);

/// The same list is kept in one way only, so that two are equal where their representations are.
#[derive(Clone, PartialEq, Eq)]
enum Kept {
    /// At most one of each family, IPv4 first.
    Few(Option<Ipv4Addr>, Option<Ipv6Addr>),
    /// Any other.
    More(Box<[IpAddr]>),
}

impl Addresses {
    /// One by one.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let (v4, v6, more) = match &self.0 {
            Kept::Few(v4, v6) => (*v4, *v6, &[][..]),
            Kept::More(all) => (None, None, &**all),
        };
        let few = v4.map(IpAddr::V4).into_iter().chain(v6.map(IpAddr::V6));
        few.chain(more.iter().copied())
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.iter().count()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.first().is_none()
    }

    /// The first.
    #[must_use]
    pub fn first(&self) -> Option<IpAddr> {
        self.iter().next()
    }

    /// Adds one at the end.
    pub fn push(&mut self, address: IpAddr) {
        *self = self.iter().chain([address]).collect();
    }
}

impl Default for Addresses {
    fn default() -> Self {
        Self(Kept::Few(None, None))
    }
}

impl FromIterator<IpAddr> for Addresses {
    fn from_iter<I: IntoIterator<Item = IpAddr>>(addresses: I) -> Self {
        let all: Vec<IpAddr> = addresses.into_iter().collect();
        Self(match *all {
            [] => Kept::Few(None, None),
            [IpAddr::V4(v4)] => Kept::Few(Some(v4), None),
            [IpAddr::V6(v6)] => Kept::Few(None, Some(v6)),
            [IpAddr::V4(v4), IpAddr::V6(v6)] => Kept::Few(Some(v4), Some(v6)),
            _ => Kept::More(all.into()),
        })
    }
}

impl From<IpAddr> for Addresses {
    fn from(address: IpAddr) -> Self {
        Self::from_iter([address])
    }
}

impl fmt::Debug for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out_in_its_order() {
        let lists: [&[&str]; 8] = [
            &[],
            &["10.0.0.1"],
            &["fd00::1"],
            &["10.0.0.1", "fd00::1"],
            &["fd00::1", "10.0.0.1"],
            &["10.0.0.1", "10.0.0.2"],
            &["fd00::1", "fd00::2"],
            &["10.0.0.1", "fd00::1", "10.0.0.2"],
        ];
        for list in lists {
            let list: Vec<IpAddr> = list.iter().map(|a| a.parse().unwrap()).collect();
            let kept: Addresses = list.iter().copied().collect();
            assert_eq!(kept.iter().collect::<Vec<_>>(), list);
            assert_eq!(
                (kept.len(), kept.is_empty(), kept.first()),
                (list.len(), list.is_empty(), list.first().copied())
            );
            let mut pushed = Addresses::default();
            list.iter().for_each(|a| pushed.push(*a));
            assert_eq!(pushed, kept, "one by one it is the same");
            assert_eq!(format!("{kept:?}"), format!("{list:?}"));
        }
        for (i, a) in lists.iter().enumerate() {
            for b in &lists[..i] {
                let of = |list: &[&str]| list.iter().map(|a| a.parse().unwrap()).collect::<Addresses>();
                assert_ne!(of(a), of(b));
            }
        }
    }
}

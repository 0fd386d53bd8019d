//! What each client has for itself: places of its own, so that one client's requests, streams and watches do not take everyone's.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::model::{Identity, Role};

/// Something of each client's that has it now.
pub struct Shares<T>(Arc<Mutex<HashMap<Client, Weak<T>>>>);

/// A client is its role and its certificate's subject, or its uid.
type Client = (Arc<str>, Role);

impl<T> Shares<T> {
    /// A client's own, made anew if nobody holds it.
    pub fn of(&self, by: &Identity, new: impl FnOnce() -> T) -> Arc<T> {
        let client = (by.client.clone(), by.role);
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = all.get(&client).and_then(Weak::upgrade) {
            return own;
        }
        // Nothing is kept of who has gone.
        all.retain(|_, own| own.strong_count() > 0);
        let own = Arc::new(new());
        all.insert(client, Arc::downgrade(&own));
        own
    }

    #[cfg(test)]
    fn held(&self) -> usize {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.values().filter(|own| own.strong_count() > 0).count()
    }
}

impl<T> Clone for Shares<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Default for Shares<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T> fmt::Debug for Shares<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shares").finish_non_exhaustive()
    }
}

/// Places of which one client has a quarter at most.
#[derive(Clone, Debug)]
pub struct Places {
    all: Arc<Semaphore>,
    most: usize,
    clients: Shares<Semaphore>,
}

/// One of [`Places`], until it is dropped.
#[derive(Debug)]
pub struct Taken {
    _all: OwnedSemaphorePermit,
    _own: OwnedSemaphorePermit,
}

/// Whose places are all taken, and how many they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// The client's own.
    Own(usize),
    /// Everyone's.
    All(usize),
}

impl Full {
    /// How many there are.
    #[must_use]
    pub const fn most(self) -> usize {
        let (Self::Own(most) | Self::All(most)) = self;
        most
    }
}

impl Places {
    /// So many, all of them free.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self {
            all: Arc::new(Semaphore::new(most)),
            most,
            clients: Shares::default(),
        }
    }

    /// One more of a client's.
    ///
    /// # Errors
    /// See [`Full`].
    pub fn take(&self, by: &Identity) -> Result<Taken, Full> {
        let quarter = (self.most / 4).max(1);
        let own = self.clients.of(by, || Semaphore::new(quarter));
        let own = own.try_acquire_owned().map_err(|_| Full::Own(quarter))?;
        let all = Arc::clone(&self.all).try_acquire_owned();
        Ok(Taken {
            _all: all.map_err(|_| Full::All(self.most))?,
            _own: own,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(name: &str, role: Role) -> Identity {
        Identity::unlimited(role, name)
    }

    #[test]
    fn a_client_has_its_own_for_as_long_as_it_needs_it() {
        let shares = Shares::<Semaphore>::default();
        let of = |name: &str, role| shares.of(&client(name, role), || Semaphore::new(2));
        let (one, again) = (of("a", Role::Mdm), of("a", Role::Mdm));
        let (role, other) = (of("a", Role::Viewer), of("b", Role::Mdm));
        let held: Vec<_> = (0..2).map(|_| Arc::clone(&one).try_acquire_owned().unwrap()).collect();
        assert!(again.try_acquire().is_err());
        assert!(role.try_acquire().is_ok() && other.try_acquire().is_ok());
        assert_eq!(shares.held(), 3);
        drop((one, again, other));
        assert!(of("a", Role::Mdm).try_acquire().is_err(), "what it has taken counts");
        drop(held);
        assert!(of("a", Role::Mdm).try_acquire().is_ok());
        drop(role);
        assert_eq!(shares.held(), 0);
        let new = of("c", Role::Mdm);
        assert_eq!(shares.0.lock().unwrap().len(), 1, "nothing is kept of who has gone");
        drop(new);
    }

    #[test]
    fn a_quarter_of_the_places_is_one_clients() {
        let places = Places::new(8);
        let take = |name: &str| places.take(&client(name, Role::Viewer));
        let _one = (take("a").unwrap(), take("a").unwrap());
        assert_eq!(take("a").unwrap_err(), Full::Own(2));
        let two = (take("b").unwrap(), take("b").unwrap());
        let _rest = ["c", "d"].map(|n| (take(n).unwrap(), take(n).unwrap()));
        assert_eq!(take("e").unwrap_err(), Full::All(8));
        drop(two);
        assert!(take("e").is_ok());
        assert_eq!(
            take("a").unwrap_err(),
            Full::Own(2),
            "a place that was not to be had takes none of its own"
        );
    }
}

//! A place among what is worked on at a time. Whoever took it gives it on with what it asks, so that it can be given back by whoever knows
//! that it is not needed any more, before the answer is out.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

/// A place, or none. It is given back with its last copy at the latest.
#[derive(Clone, Default)]
pub struct Place(Option<Arc<Mutex<Option<Held>>>>);

/// What gives the place back by being dropped.
type Held = Box<dyn Send>;

impl Place {
    /// The place that `what` holds.
    #[must_use]
    pub fn held(what: impl Send + 'static) -> Self {
        Self(Some(Arc::new(Mutex::new(Some(Box::new(what))))))
    }

    /// Gives it back; all copies of it hold nothing from then on.
    pub fn give_back(&self) {
        if let Some(place) = &self.0 {
            drop(place.lock().unwrap_or_else(PoisonError::into_inner).take());
        }
    }
}

/// Copies are the same place.
impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_ref().map(Arc::as_ptr) == other.0.as_ref().map(Arc::as_ptr)
    }
}

impl Eq for Place {}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place").field("held", &self.0.is_some()).finish()
    }
}

//! Slots with generations: a key that was given back never names what came after it.

use std::marker::PhantomData;

/// An opaque number that names one thing for as long as it lives. 0 is never given out.
pub trait Key: Copy {
    /// The key with this number.
    fn from_raw(raw: u64) -> Self;
    /// The number.
    fn raw(self) -> u64;
}

macro_rules! key {
    ($(#[$doc:meta])* $vis:vis $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        $vis struct $name(#[doc = "The number."] pub u64);

        impl $crate::arena::Key for $name {
            fn from_raw(raw: u64) -> Self {
                Self(raw)
            }
            fn raw(self) -> u64 {
                self.0
            }
        }
    };
}

key!(
    /// One attached session.
    pub SessionId
);
key!(
    /// A registration of a session: an agent, a provider, a stream, or the session's own root.
    pub Handle
);
key!(
    /// One delivery from start to end: a turn of an agent, or an invocation of a capability.
    pub LeaseId
);
key!(
    /// A call or a request that a session waits for.
    pub CallId
);
key!(
    /// An offer that was not answered in the same call.
    pub Ticket
);
key!(
    /// One subscription: what matches its filters is delivered to it once.
    pub(crate) SubId
);
key!(
    /// One provider of a capability.
    pub(crate) ProviderId
);
key!(
    /// One topic that is known; 0 stands for all others.
    pub(crate) TopicId
);
key!(
    /// The work of a call, apart from those who wait for it.
    pub(crate) JobId
);
key!(
    /// Subscriptions that share one stream of events.
    pub(crate) GroupId
);

struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

/// Values under keys, in slots that are used again.
pub(crate) struct Arena<K, T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    key: PhantomData<fn(K) -> K>,
}

/// Bits of a key that are its slot. More slots than that do not fit into memory; the rest is the generation. The keys of
/// a first generation stay below 2^30, which Python keeps in one digit.
const SLOT_BITS: u32 = 28;

#[expect(
    clippy::cast_possible_truncation,
    reason = "a generation has 32 bits and a slot fewer"
)]
fn split(raw: u64) -> (u32, usize) {
    (
        (raw >> SLOT_BITS) as u32,
        (raw & ((1 << SLOT_BITS) - 1)) as usize,
    )
}

fn join(generation: u32, slot: u64) -> u64 {
    debug_assert!(slot >> SLOT_BITS == 0, "more slots than keys can name");
    u64::from(generation) << SLOT_BITS | slot
}

impl<K: Key, T> Arena<K, T> {
    pub(crate) fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            key: PhantomData,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// The key that the next insertion gives out.
    pub(crate) fn next_key(&self) -> K {
        let reused = self
            .free
            .last()
            .and_then(|index| Some((*index, self.slots.get(*index as usize)?)));
        match reused {
            Some((index, slot)) => K::from_raw(join(slot.generation, u64::from(index))),
            None => K::from_raw(join(1, self.slots.len() as u64)),
        }
    }

    pub(crate) fn insert(&mut self, value: T) -> K {
        if let Some(index) = self.free.pop()
            && let Some(slot) = self.slots.get_mut(index as usize)
        {
            slot.value = Some(value);
            return K::from_raw(join(slot.generation, u64::from(index)));
        }
        let index = self.slots.len() as u64;
        self.slots.push(Slot {
            generation: 1,
            value: Some(value),
        });
        K::from_raw(join(1, index))
    }

    pub(crate) fn get(&self, key: K) -> Option<&T> {
        let (generation, index) = split(key.raw());
        let slot = self.slots.get(index)?;
        if slot.generation == generation {
            slot.value.as_ref()
        } else {
            None
        }
    }

    pub(crate) fn get_mut(&mut self, key: K) -> Option<&mut T> {
        let (generation, index) = split(key.raw());
        let slot = self.slots.get_mut(index)?;
        if slot.generation == generation {
            slot.value.as_mut()
        } else {
            None
        }
    }

    pub(crate) fn remove(&mut self, key: K) -> Option<T> {
        let (generation, index) = split(key.raw());
        let slot = self.slots.get_mut(index)?;
        if slot.generation != generation {
            return None;
        }
        let value = slot.value.take()?;
        slot.generation = slot.generation.wrapping_add(1).max(1);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "split() made it from a u32"
        )]
        self.free.push(index as u32);
        Some(value)
    }

    /// Whether this key named something that is gone.
    pub(crate) fn is_past(&self, key: K) -> bool {
        let (generation, index) = split(key.raw());
        generation != 0
            && self
                .slots
                .get(index)
                .is_some_and(|slot| slot.generation > generation)
    }

    /// How many slots there are, used or not.
    pub(crate) fn slots(&self) -> usize {
        self.slots.len()
    }

    /// What lives in this slot.
    pub(crate) fn at(&self, index: usize) -> Option<(K, &T)> {
        let slot = self.slots.get(index)?;
        let key = K::from_raw(join(slot.generation, index as u64));
        slot.value.as_ref().map(|value| (key, value))
    }

    /// All that live, in the order of their slots.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (K, &T)> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| {
            let value = slot.value.as_ref()?;
            Some((K::from_raw(join(slot.generation, index as u64)), value))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_was_given_back_names_nothing() {
        let mut arena: Arena<LeaseId, u8> = Arena::new();
        let first = arena.insert(1);
        assert_eq!(arena.remove(first), Some(1));
        let second = arena.insert(2);
        assert_eq!(arena.get(first), None);
        assert!(arena.is_past(first) && !arena.is_past(second));
        assert_eq!((arena.get(second), arena.len()), (Some(&2), 1));
    }

    #[test]
    fn zero_and_made_up_keys_are_neither_present_nor_past() {
        let arena: Arena<LeaseId, u8> = Arena::new();
        assert!(arena.get(LeaseId(0)).is_none() && !arena.is_past(LeaseId(0)));
        assert!(!arena.is_past(LeaseId(77)));
    }
}

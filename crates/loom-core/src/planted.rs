//! Bugs that a simulator switches on to see whether its checks catch them. Without the feature `planted` none can be.

/// A bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(
    not(feature = "planted"),
    expect(unreachable_pub, reason = "public with the feature")
)]
pub enum Planted {
    /// Ready work of an agent that has a turn under way is not announced.
    LostWake,
    /// A lane gives its newest event first.
    NewestFirst,
    /// A realtime event that is dropped is not counted.
    UncountedLoss,
    /// A call that fails has two outcomes.
    SecondOutcome,
    /// The deadline of a call passes unnoticed.
    ForgottenDeadline,
    /// An event is put twice into its first queue.
    DeliveredTwice,
}

impl Planted {
    /// All of them.
    #[cfg(feature = "planted")]
    pub const ALL: [Self; 6] = [
        Self::LostWake,
        Self::NewestFirst,
        Self::UncountedLoss,
        Self::SecondOutcome,
        Self::ForgottenDeadline,
        Self::DeliveredTwice,
    ];
}

#[cfg(feature = "planted")]
impl crate::Core {
    /// Switches one bug on.
    pub fn plant(&mut self, bug: Planted) {
        self.planted = Some(bug);
    }

    pub(crate) fn has(&self, bug: Planted) -> bool {
        self.planted == Some(bug)
    }
}

#[cfg(not(feature = "planted"))]
impl crate::Core {
    #[expect(clippy::unused_self, reason = "with the feature it looks")]
    pub(crate) const fn has(&self, _bug: Planted) -> bool {
        false
    }
}

//! Bugs that the simulator switches on to see whether its checks catch them. Without the feature `planted` none can be.

/// A bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(
    not(feature = "planted"),
    expect(unreachable_pub, reason = "public with the feature")
)]
pub enum Planted {
    /// A client adds what it is granted to what it had.
    CreditAsDelta,
    /// The end of a connection takes its session with it, whatever carries that by now.
    CleanedBySession,
    /// What still comes over a connection that was fenced is taken.
    FencedHeard,
    /// A frame that comes again is taken again.
    DuplicateTaken,
    /// What was not confirmed is forgotten when a connection ends.
    ResendDropped,
    /// That a turn has ended is said before what it has published.
    AckOvertakes,
    /// A session is resumed by a client of an earlier life of the node.
    ResumedInVain,
    /// What a client holds of an earlier life of the node keeps its number there.
    OldLeaseQuoted,
    /// An older attachment of a session takes over from a newer one.
    EpochIgnored,
    /// A session that does not come back is kept for ever.
    KeptForever,
    /// A session ends with its connection.
    ReleasedAtOnce,
    /// A durable event is sent to another life of the node without the id that tells it from a second one.
    SentAgainUnnamed,
    /// A connection that the node ended well is not made again.
    EndIsFinal,
    /// A durable event that comes again after its turn has ended well is begun again.
    AckedForgotten,
    /// What a durable turn has sent that is over here is said again outside of it, though the turn was given to others.
    EndedUnfenced,
    /// Deliveries go out whatever the client has granted.
    GrantIgnored,
    /// A half of a large frame is forgotten with its connection.
    PartsForgotten,
}

#[cfg(feature = "planted")]
impl Planted {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::CreditAsDelta,
        Self::CleanedBySession,
        Self::FencedHeard,
        Self::DuplicateTaken,
        Self::ResendDropped,
        Self::AckOvertakes,
        Self::ResumedInVain,
        Self::OldLeaseQuoted,
        Self::EpochIgnored,
        Self::KeptForever,
        Self::ReleasedAtOnce,
        Self::SentAgainUnnamed,
        Self::EndIsFinal,
        Self::AckedForgotten,
        Self::EndedUnfenced,
        Self::GrantIgnored,
        Self::PartsForgotten,
    ];
}

/// The bug that is switched on, if one is.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Bugs {
    #[cfg(feature = "planted")]
    pub(crate) on: Option<Planted>,
}

#[cfg(feature = "planted")]
impl Bugs {
    pub(crate) fn has(self, bug: Planted) -> bool {
        self.on == Some(bug)
    }
}

#[cfg(not(feature = "planted"))]
impl Bugs {
    #[expect(clippy::unused_self, reason = "with the feature it looks")]
    pub(crate) const fn has(self, _bug: Planted) -> bool {
        false
    }
}

#[cfg(feature = "planted")]
impl crate::Hub {
    /// Switches one bug on; before anybody attaches.
    pub fn plant(&mut self, bug: Planted) {
        self.bugs.on = Some(bug);
    }
}

#[cfg(feature = "planted")]
impl crate::Client {
    /// Switches one bug on; before it connects.
    pub fn plant(&mut self, bug: Planted) {
        self.bugs.on = Some(bug);
        self.channel.bugs = self.bugs;
    }
}

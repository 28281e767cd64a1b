//! Bugs that a simulator switches on to see whether its checks catch them. Without the feature `planted` none can be.

/// A bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(
    not(feature = "planted"),
    expect(unreachable_pub, reason = "public with the feature")
)]
pub enum Planted {
    /// What a session may hear is looked at when it subscribes, and not when an event is for it.
    GrantsNotKept,
    /// A lane gives its newest event to who takes ahead.
    AheadReordered,
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
    /// A lane gives its next event while a turn of it is under way.
    TwoTurns,
    /// A request whose time is up has an outcome, and still hears answers.
    LateAnswer,
    /// An event is delivered before its record is logged.
    ShownEarly,
    /// An answer of the log is applied before those to earlier records.
    LogUnordered,
    /// Credit is added to what was granted, not the new total.
    CreditAsDelta,
    /// An event that is over is started if nobody looked in between.
    ExpiredStarts,
    /// A key goes to another member of its group while one has it.
    KeyMoves,
    /// A turn that ends without an answer does not count as a decline.
    ForgottenDecline,
    /// A provider is not told that nobody waits any more.
    UntoldCancel,
    /// A session may end the turn of another one.
    ForeignLease,
    /// A full queue drops the newest realtime event.
    NewestDropped,
    /// Each loss of a subscription is published, however soon after the last.
    LossToldTwice,
    /// A subscription lags until its queue is empty.
    LagsLonger,
    /// A lane goes on before those that wait longer.
    LaneStarves,
    /// That an agent is quarantined is not published.
    HealthUntold,
    /// A quarantined agent hears on.
    QuarantinedHears,
    /// Whatever the effect of a call, it is tried again.
    UnsafeRetried,
    /// A call is tried again after its deadline.
    RetryOutlives,
    /// Retries cost nothing.
    BudgetIgnored,
    /// A half-open provider is given every call.
    ManyProbes,
    /// All providers may be ejected.
    AllEjected,
    /// With the first who waits all who have joined are forgotten.
    FollowerForgotten,
    /// A call joins one with other arguments.
    OtherArguments,
    /// A provider of weight 0 is chosen.
    DrainedChosen,
    /// Weights are read as 1.
    WeightsIgnored,
    /// Events of a run are not counted.
    RunUncounted,
    /// No topic is forgotten.
    TopicKept,
    /// Background may fill a queue as batched may.
    BackgroundUnshed,
    /// A parked event is forgotten when the floor moves past it.
    FloorOverParked,
    /// Ids of publishes are forgotten at a restart.
    IdsForgotten,
    /// How often an event was begun is forgotten at a restart.
    AttemptsForgotten,
    /// An event is acked when it is handed out.
    AckedEarly,
    /// An event is given again while a turn of it goes on and its loop moves.
    GivenWhileLeased,
    /// An event that is given up is acked.
    DeadDropped,
    /// A dead event is published anew each time that is asked for.
    RedrivenTwice,
    /// A provider is given a call whose intent is not in the log yet.
    IntentUnawaited,
    /// No outcome of a call with a key outlives the engine.
    KeptForgotten,
    /// The effect of a call has another id in each attempt.
    EffectIdChanges,
    /// What nobody knows of is done again, whatever its effect.
    UnknownRetried,
    /// A group that nobody belongs to is as young as if somebody did.
    IdleRenewed,
    /// That a group holds nothing any more is not published.
    EndUntold,
    /// Which clients had begun turns is forgotten at a restart.
    ClientsForgotten,
}

impl Planted {
    /// Those that show without a log, too; those of effects are in `tests/effects.rs`.
    #[cfg(feature = "planted")]
    pub const ALL: [Self; 34] = [
        Self::GrantsNotKept,
        Self::AheadReordered,
        Self::LostWake,
        Self::NewestFirst,
        Self::UncountedLoss,
        Self::SecondOutcome,
        Self::ForgottenDeadline,
        Self::DeliveredTwice,
        Self::TwoTurns,
        Self::LateAnswer,
        Self::CreditAsDelta,
        Self::ExpiredStarts,
        Self::KeyMoves,
        Self::ForgottenDecline,
        Self::UntoldCancel,
        Self::ForeignLease,
        Self::NewestDropped,
        Self::LossToldTwice,
        Self::LagsLonger,
        Self::LaneStarves,
        Self::HealthUntold,
        Self::QuarantinedHears,
        Self::UnsafeRetried,
        Self::RetryOutlives,
        Self::BudgetIgnored,
        Self::ManyProbes,
        Self::AllEjected,
        Self::FollowerForgotten,
        Self::OtherArguments,
        Self::DrainedChosen,
        Self::WeightsIgnored,
        Self::RunUncounted,
        Self::TopicKept,
        Self::BackgroundUnshed,
    ];
}

#[cfg(feature = "planted")]
impl Planted {
    /// Those that show in a life with a log only.
    pub const OF_THE_LOG: [Self; 12] = [
        Self::ClientsForgotten,
        Self::ShownEarly,
        Self::LogUnordered,
        Self::FloorOverParked,
        Self::IdsForgotten,
        Self::AttemptsForgotten,
        Self::AckedEarly,
        Self::GivenWhileLeased,
        Self::DeadDropped,
        Self::RedrivenTwice,
        Self::IdleRenewed,
        Self::EndUntold,
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

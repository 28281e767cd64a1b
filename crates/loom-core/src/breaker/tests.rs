use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1_000_000_000;
const PATIENCE: u64 = 10 * SECOND;

/// The breaker as one would write it down: every call of the window is kept.
struct Model {
    state: Open,
    row: u32,
    calls: Vec<(u64, bool)>,
    level: u32,
    since: u64,
    /// Which of its transitions were taken.
    taken: BTreeSet<&'static str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Open {
    Closed,
    Until(u64),
    Probing,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Pass(u64),
    /// A call begins if it is admitted, and ends at once: well or not; the rule of halves allows it to open or not.
    End {
        well: bool,
        may_open: bool,
    },
    /// A probe begins, and says nothing.
    Abandon,
    /// A call that began before the breaker opened ends now.
    Old {
        well: bool,
    },
}

fn rules() -> Rules {
    Rules::of(&Limits::default())
}

impl Model {
    fn admits(&self, now: u64) -> Admits {
        match self.state {
            Open::Closed => Admits::All,
            Open::Until(until) if until <= now => Admits::Probe,
            Open::Until(until) => Admits::None(Nanos(until)),
            Open::Probing => Admits::None(Nanos(now)),
        }
    }

    fn end(&mut self, well: bool, may_open: bool, now: u64) {
        if self.state == Open::Probing {
            if well || !may_open {
                self.state = Open::Closed;
                self.since = now;
                self.taken.insert(if well { "closed" } else { "spared" });
            } else {
                self.taken.insert("opened longer");
                self.open(now);
            }
            return;
        }
        self.row = if well { 0 } else { self.row + 1 };
        self.calls.push((now, well));
        let slot = |at: u64| at / SECOND;
        let recent = self
            .calls
            .iter()
            .filter(|(at, _)| slot(*at) + 10 > slot(now));
        let recent: Vec<bool> = recent.map(|(_, well)| *well).collect();
        let failed = recent.iter().filter(|well| !**well).count();
        let rate = recent.len() >= 20 && failed * 2 >= recent.len();
        if well || !(self.row >= 10 || rate) {
            return;
        }
        if !may_open {
            self.taken.insert("not opened: too many are");
            return;
        }
        self.taken
            .insert(if rate && self.row < 10 { "rate" } else { "row" });
        let healthy = u32::try_from((now - self.since) / (10 * SECOND)).unwrap();
        if self.level > 0 && healthy > 0 {
            self.taken.insert("forgiven");
        }
        self.level = self.level.saturating_sub(healthy);
        self.open(now);
    }

    fn open(&mut self, now: u64) {
        let seconds = 1u64 << self.level;
        self.state = Open::Until(now + seconds.min(60) * SECOND);
        if seconds < 60 {
            self.level += 1;
        } else {
            self.taken.insert("longest");
        }
        self.row = 0;
        self.calls.clear();
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let end = (any::<bool>(), 0u8..10).prop_map(|(well, may)| Step::End {
        well,
        may_open: may > 0,
    });
    let failed = (0u8..10).prop_map(|may| Step::End {
        well: false,
        may_open: may > 0,
    });
    let one = prop_oneof![
        2 => (0u64..3 * SECOND).prop_map(Step::Pass),
        1 => (0u64..70 * SECOND).prop_map(Step::Pass),
        4 => end,
        12 => failed,
        1 => Just(Step::Abandon),
        1 => any::<bool>().prop_map(|well| Step::Old { well }),
    ];
    proptest::collection::vec(one, 0..400)
}

/// The breaker and its model, side by side.
struct Pair {
    now: u64,
    breaker: Breaker,
    model: Model,
}

impl Pair {
    fn new() -> Self {
        Self {
            now: 0,
            breaker: Breaker::new(),
            model: Model {
                state: Open::Closed,
                row: 0,
                calls: Vec::new(),
                level: 0,
                since: 0,
                taken: BTreeSet::new(),
            },
        }
    }

    fn admits(&self) -> Admits {
        self.breaker.admits(Nanos(self.now))
    }

    fn ended(&self, well: bool, probe: bool) -> Ended {
        let now = Nanos(self.now);
        Ended { well, probe, now }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Pass(nanos) => self.now += nanos,
            Step::End { well, may_open } => self.end(well, may_open),
            Step::Abandon => self.abandon(),
            Step::Old { well } => {
                if !self.breaker.is_closed() {
                    let old = self.ended(well, false);
                    assert_eq!(self.breaker.record(old, &rules(), true), Turned::Not);
                    self.model.taken.insert("old");
                }
            }
        }
        assert_eq!(self.admits(), self.model.admits(self.now), "{step:?}");
        assert_eq!(self.breaker.is_closed(), self.model.state == Open::Closed);
        assert_eq!(self.breaker.is_probing(), self.model.state == Open::Probing);
    }

    fn begin_probe(&mut self) -> bool {
        let probe = self.admits() == Admits::Probe;
        if probe {
            self.breaker.probe(Nanos(self.now + PATIENCE));
            self.model.state = Open::Probing;
            let second = self.admits();
            assert_eq!(second, Admits::None(Nanos(self.now)), "one probe at a time");
        }
        probe
    }

    fn end(&mut self, well: bool, may_open: bool) {
        if matches!(self.admits(), Admits::None(_)) {
            return;
        }
        let probe = self.begin_probe();
        let ended = self.ended(well, probe);
        self.breaker.record(ended, &rules(), may_open);
        self.model.end(well, may_open, self.now);
    }

    fn abandon(&mut self) {
        if self.begin_probe() {
            self.breaker.give_up_probe(Nanos(self.now));
            self.model.state = Open::Until(self.now);
            self.model.taken.insert("abandoned");
        }
    }
}

fn follow(steps: &[Step]) -> BTreeSet<&'static str> {
    let mut pair = Pair::new();
    for step in steps {
        pair.step(*step);
    }
    pair.model.taken
}

// requirement: CALL-BREAKER
#[test]
fn a_breaker_does_what_its_model_does_and_every_transition_is_taken() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let taken = std::cell::RefCell::new(BTreeSet::new());
    let ran = runner.run(&steps(), |steps| {
        taken.borrow_mut().append(&mut follow(&steps));
        Ok(())
    });
    ran.unwrap();
    let all = [
        "abandoned",
        "closed",
        "forgiven",
        "longest",
        "not opened: too many are",
        "old",
        "opened longer",
        "rate",
        "row",
        "spared",
    ];
    assert_eq!(taken.into_inner(), BTreeSet::from(all));
}

// requirement: CALL-BREAKER
#[test]
fn a_probe_that_hangs_is_followed_by_another_one_and_says_nothing_any_more() {
    let mut breaker = Breaker::new();
    let ended = |well, probe, now| Ended {
        well,
        probe,
        now: Nanos(now),
    };
    for _ in 0..10 {
        breaker.record(ended(false, false, 0), &rules(), true);
    }
    let (first, second) = (SECOND, SECOND + PATIENCE);
    assert_eq!(breaker.admits(Nanos(first)), Admits::Probe);
    breaker.probe(Nanos(first + PATIENCE));
    assert_eq!(
        breaker.admits(Nanos(second - 1)),
        Admits::None(Nanos(second - 1))
    );
    assert_eq!(breaker.admits(Nanos(second)), Admits::Probe);
    breaker.probe(Nanos(second + PATIENCE));
    let late = ended(false, false, second + 1);
    assert_eq!(
        breaker.record(late, &rules(), true),
        Turned::Not,
        "the one that hung"
    );
    let well = ended(true, true, second + 2);
    assert_eq!(breaker.record(well, &rules(), true), Turned::Closed);
}

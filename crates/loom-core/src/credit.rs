//! Credit as two totals that only rise: what was granted in all, and what was spent in all. A grant names the new total,
//! so one that is lost, doubled or overtaken does no harm: the next one says it all.

/// What one side may still send.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Credit {
    granted: u64,
    spent: u64,
    /// The spender was refused and waits for more.
    starved: bool,
}

impl Credit {
    /// With so much granted at the start.
    pub(crate) const fn new(granted: u64) -> Self {
        Self {
            granted,
            spent: 0,
            starved: false,
        }
    }

    /// Granted in all.
    pub(crate) const fn granted(&self) -> u64 {
        self.granted
    }

    /// Spends one; `false`: there is none, and who asked waits.
    pub(crate) fn spend(&mut self) -> bool {
        if self.spent >= self.granted {
            self.starved = true;
            return false;
        }
        self.spent += 1;
        true
    }

    /// Whether any was spent.
    pub(crate) const fn is_begun(&self) -> bool {
        self.spent > 0
    }

    /// How far this total would let the spender be ahead of what it has spent.
    pub(crate) const fn ahead(&self, total: u64) -> u64 {
        total.saturating_sub(self.spent)
    }

    /// Grants a total; one that is not higher changes nothing. `true`: the spender waited, and may go on.
    pub(crate) fn grant(&mut self, total: u64) -> bool {
        if total <= self.granted {
            return false;
        }
        self.granted = total;
        std::mem::take(&mut self.starved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What happens next between a reader and a writer whose grants travel on an unreliable way.
    #[derive(Debug, Clone, Copy)]
    enum Step {
        Write,
        Read,
        /// The reader tells its total again.
        Tell,
        /// This grant on its way is lost.
        Lose(usize),
        /// It comes twice.
        Double(usize),
        /// It arrives, whether earlier ones have or not.
        Arrive(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => Just(Step::Write),
            4 => Just(Step::Read),
            2 => Just(Step::Tell),
            1 => (0..8usize).prop_map(Step::Lose),
            1 => (0..8usize).prop_map(Step::Double),
            4 => (0..8usize).prop_map(Step::Arrive),
        ]
    }

    proptest! {
        // requirement: STREAM-CREDIT-LOSS
        #[test]
        fn lost_doubled_and_overtaken_grants_neither_exceed_nor_leak(
            window in 1..6u64,
            steps in proptest::collection::vec(step(), 0..200),
        ) {
            let mut credit = Credit::new(window);
            let (mut written, mut read) = (0u64, 0u64);
            let mut way: Vec<u64> = Vec::new();
            let mut granted = window;
            for step in steps {
                match step {
                    Step::Write => {
                        let may = credit.spend();
                        prop_assert_eq!(may, written < granted);
                        written += u64::from(may);
                    }
                    Step::Read if read < written => read += 1,
                    Step::Read => {}
                    Step::Tell => way.push(read + window),
                    Step::Lose(_) | Step::Double(_) | Step::Arrive(_) if way.is_empty() => {}
                    Step::Lose(at) => drop(way.remove(at % way.len())),
                    Step::Double(at) => way.push(way[at % way.len()]),
                    Step::Arrive(at) => {
                        let total = way.remove(at % way.len());
                        let starved = credit.starved;
                        prop_assert_eq!(credit.grant(total), starved && total > granted);
                        granted = granted.max(total);
                    }
                }
                prop_assert!(written - read <= window, "the writer is never further ahead");
            }
            // Quiescence: all is read and the last word arrives.
            credit.grant(written + window);
            prop_assert_eq!(credit.ahead(credit.granted()), window, "as much as at the start");
        }
    }
}

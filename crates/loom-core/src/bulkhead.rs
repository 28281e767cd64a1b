//! How many calls one provider serves at once: between one and what it declared, halved when it is pressed, and widened
//! while it does well at its limit.

use crate::time::Nanos;

/// The width of one provider.
#[derive(Debug)]
pub(crate) struct Bulkhead {
    most: u32,
    width: u32,
    /// Calls that ended well at the limit since it changed last.
    well: u32,
    halved: Option<Nanos>,
}

impl Bulkhead {
    pub(crate) const fn new(most: u32) -> Self {
        Self {
            most,
            width: most,
            well: 0,
            halved: None,
        }
    }

    pub(crate) const fn width(&self) -> u32 {
        self.width
    }

    /// A call ended well; `full`: as many as it may serve were under way.
    pub(crate) fn well(&mut self, full: bool) {
        if !full || self.width >= self.most {
            return;
        }
        self.well += 1;
        if self.well >= self.width {
            self.width += 1;
            self.well = 0;
        }
    }

    /// It ran out of time or of room: half of it, if it was not halved within the last `pause` milliseconds.
    pub(crate) fn pressed(&mut self, now: Nanos, pause: u64) {
        if self
            .halved
            .is_some_and(|halved| now < halved.plus_millis(pause))
        {
            return;
        }
        self.halved = Some(now);
        self.width = (self.width / 2).max(1);
        self.well = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(millis: u64) -> Nanos {
        Nanos(0).plus_millis(millis)
    }

    // requirement: CALL-BULKHEAD
    #[test]
    fn the_width_is_halved_once_a_pause_down_to_one() {
        let mut width = Bulkhead::new(8);
        for (now, expected) in [(0, 4), (999, 4), (1_000, 2), (2_000, 1), (9_000, 1)] {
            width.pressed(at(now), 1_000);
            assert_eq!(width.width(), expected, "at {now} ms");
        }
    }

    // requirement: CALL-BULKHEAD
    #[test]
    fn it_widens_by_one_for_each_width_of_calls_that_end_well_at_the_limit() {
        let mut width = Bulkhead::new(4);
        width.pressed(at(0), 1_000);
        let widths: Vec<u32> = [true, false, true, true, true, true, true]
            .into_iter()
            .map(|full| {
                width.well(full);
                width.width()
            })
            .collect();
        assert_eq!(widths, [2, 2, 3, 3, 3, 4, 4]);
    }
}

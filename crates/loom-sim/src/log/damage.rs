//! What age, faults and people do to the files of a log: bits flip, sectors become zeros, pages land in the wrong place or
//! are older than they should be, files are cut short, lost, or copied over one another. Whatever it is, a record is read
//! exactly or an error says where; only what stands behind the last sync that the log knows of may be taken for torn.

use std::collections::BTreeMap;

use loom_log::format::{Frame, HEADER_BYTES, Header, Mark};
use loom_log::{End as Ending, File, Found, Known, Recovery, Source, Unreadable};

use super::LogSetup;
use super::disk::{Disk, PAGE};
use super::world::World;
use crate::dice::Dice;
use crate::trace::{Check, Violation, broken, ensure};

const SECTOR: usize = 512;

/// What many damages showed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Damages {
    /// How many were tried.
    pub tried: u64,
    /// After so many all records were there.
    pub whole: u64,
    /// After so many a tail was cut off that was not known to be synced.
    pub cut: u64,
    /// So many were reported.
    pub reported: u64,
    /// So many of these were opened again at the price of a gap.
    pub accepted: u64,
    /// The promise that was broken, if one was.
    pub violation: Option<Violation>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Record {
    position: u64,
    epoch: u32,
    kind: u8,
    head: Vec<u8>,
    body: Vec<u8>,
}

/// A log that is whole.
struct Truth {
    disk: Disk,
    /// The disk as it was some time before.
    earlier: Disk,
    records: Vec<Record>,
    setup: LogSetup,
    damages: Damages,
}

fn known(accept_loss: bool) -> Known {
    Known {
        from: 0,
        durable: 0,
        epoch: 0,
        unsynced_bytes: 12 << 10,
        accept_loss,
    }
}

/// What was read: records and gaps, in order.
#[derive(Debug, Default)]
struct Reading {
    records: Vec<Record>,
    gaps: Vec<(u64, u64)>,
}

fn read(disk: &Disk, recovery: Recovery) -> (Reading, Result<Ending, Unreadable>) {
    let mut reading = Reading::default();
    let ending = recovery.run(disk, &mut |found| match found {
        Found::Record {
            position,
            epoch,
            record,
        } => reading.records.push(Record {
            position,
            epoch,
            kind: record.kind,
            head: record.head.to_vec(),
            body: record.body.to_vec(),
        }),
        Found::Gap { from, to } => reading.gaps.push((from, to)),
    });
    (reading, ending)
}

impl Truth {
    fn new(seed: u64, setup: LogSetup, (segment_bytes, batches): (u64, usize)) -> Check<Self> {
        let mut world = World::new(Dice::new(seed), setup);
        let earlier = world.fill(segment_bytes, batches)?;
        let disk = world.into_disk();
        let (reading, ending) = read(&disk, Recovery::new(known(false)));
        if let Err(error) = ending {
            return broken("LOG-TORN", format!("seed {seed}: {error:?}"));
        }
        Ok(Self {
            disk,
            earlier,
            records: reading.records,
            setup,
            damages: Damages::default(),
        })
    }

    fn segments(&self) -> Vec<(u64, usize)> {
        let segments = self.disk.segments().unwrap_or_default();
        let sized = |(first, bytes)| Some((first, usize::try_from(bytes).ok()?));
        let mut all: Vec<(u64, usize)> = segments.into_iter().filter_map(sized).collect();
        all.sort_unstable();
        all
    }

    /// Up to where the log is known to be synced, by what is undamaged of it.
    fn floor(&self, damaged: &Disk) -> u64 {
        let Some((first, _)) = self.segments().pop() else {
            return 0;
        };
        let file = File::Segment(first);
        let (before, after) = (self.disk.bytes(file), damaged.bytes(file));
        let Ok(header) = Header::decode(before) else {
            return 0;
        };
        let mut at = usize::try_from(HEADER_BYTES).unwrap_or(0);
        let mut floor = first;
        while let Some(frame) = before
            .get(at..)
            .and_then(|rest| Frame::read(rest, header.salt()))
        {
            let range = at..at + frame.bytes;
            at = range.end;
            if let Mark::Synced(n) | Mark::Closed(n) = frame.place.mark
                && before.get(range.clone()) == after.get(range)
            {
                floor = floor.max(n);
            }
        }
        floor
    }

    /// Reads a damaged log, and judges what comes of it.
    fn judge(&mut self, damaged: &Disk, what: &dyn Fn() -> String) -> Check {
        self.damages.tried += 1;
        let recovery = (self.setup.recovery)(Recovery::new(known(false)));
        let (reading, ending) = read(damaged, recovery);
        let same = reading
            .records
            .iter()
            .zip(&self.records)
            .all(|(read, wrote)| read == wrote);
        let count = reading.records.len();
        ensure(
            same && count <= self.records.len() && reading.gaps.is_empty(),
            "LOG-DAMAGE",
            || format!("{}: a wrong record", what()),
        )?;
        let ending = match ending {
            Err(Unreadable::Corrupt(_)) => return self.accept(damaged, what),
            Err(other) => return broken("LOG-DAMAGE", format!("{}: {other:?}", what())),
            Ok(ending) => ending,
        };
        let Some(lost) = self.records.get(count) else {
            self.damages.whole += 1;
            return Ok(());
        };
        let floor = self.floor(damaged);
        self.damages.cut += 1;
        ensure(lost.position >= floor, "LOG-DAMAGE", || {
            let (position, end) = (lost.position, ending.end);
            format!(
                "{}: {position} is missing, end {end}, floor {floor}",
                what()
            )
        })
    }

    /// Opens a damaged log at the price of a gap, and once more without one.
    fn accept(&mut self, damaged: &Disk, what: &dyn Fn() -> String) -> Check {
        self.damages.reported += 1;
        let (first, ending) = read(damaged, Recovery::new(known(true)));
        // A segment that is not of this log, or is there twice, is for a person to take away.
        let Ok(ending) = ending else { return Ok(()) };
        self.covered(&first, what)?;
        let mut mended = damaged.clone();
        mended.do_all(&ending.steps);
        let (second, again) = read(&mended, Recovery::new(known(false)));
        let again = match again {
            Ok(again) => again,
            Err(error) => {
                let missing_start = ending.lost.first().is_some_and(|(from, _)| *from == 0);
                return ensure(missing_start, "LOG-LOSS", || {
                    format!("{}: accepted, and then {error:?}", what())
                });
            }
        };
        self.damages.accepted += 1;
        let same = first.records == second.records && first.gaps == second.gaps;
        ensure(same && again.end == ending.end, "LOG-LOSS", || {
            format!("{}: another log after the loss was accepted", what())
        })
    }

    /// Every record is there, or in a gap, or behind the end.
    fn covered(&self, reading: &Reading, what: &dyn Fn() -> String) -> Check {
        let mut read = reading.records.iter().peekable();
        let mut lost = false;
        for record in &self.records {
            if read.next_if(|next| *next == record).is_some() {
                ensure(!lost, "LOG-LOSS", || {
                    format!("{}: a hole without a gap", what())
                })?;
                continue;
            }
            let within = |(from, to): &(u64, u64)| (*from..*to).contains(&record.position);
            lost |= !reading.gaps.iter().any(within);
        }
        ensure(read.next().is_none(), "LOG-LOSS", || {
            format!("{}: a record that never was", what())
        })
    }
}

fn run(truth: Check<Truth>, each: impl FnOnce(&mut Truth) -> Check) -> Damages {
    match truth {
        Ok(mut truth) => {
            truth.damages.violation = each(&mut truth).err();
            truth.damages
        }
        Err(violation) => Damages {
            violation: Some(violation),
            ..Damages::default()
        },
    }
}

/// Flips every bit of a small log of two segments, one at a time.
pub fn flip_every_bit(seed: u64, setup: LogSetup) -> Damages {
    run(Truth::new(seed, setup, (8 << 10, 24)), |truth| {
        for (first, bytes) in truth.segments() {
            for bit in 0..bytes * 8 {
                let mut disk = truth.disk.clone();
                disk.damage(File::Segment(first), |bytes| flip(bytes, bit));
                truth.judge(&disk, &|| format!("bit {bit} of segment {first}"))?;
            }
        }
        Ok(())
    })
}

/// Cuts the segments of a small log short at every length.
pub fn truncate_everywhere(seed: u64, setup: LogSetup) -> Damages {
    run(Truth::new(seed, setup, (8 << 10, 40)), |truth| {
        for (first, bytes) in truth.segments() {
            for length in 0..bytes {
                let mut disk = truth.disk.clone();
                disk.damage(File::Segment(first), |bytes| bytes.truncate(length));
                truth.judge(&disk, &|| format!("segment {first} cut to {length}"))?;
            }
        }
        Ok(())
    })
}

/// Damages larger logs in ways that are drawn.
pub fn damage_drawn(seed: u64, count: u64, setup: LogSetup) -> Damages {
    let mut dice = Dice::new(seed);
    let shape = (dice.between(3, 8) * 4096, dice.count(60, 250));
    run(Truth::new(seed, setup, shape), |truth| {
        for number in 0..count {
            let mut disk = truth.disk.clone();
            let mut done = BTreeMap::<&str, u64>::new();
            for _ in 0..*dice.pick(&[&1, &1, &1, &2, &5]).unwrap_or(&1) {
                *done.entry(draw(&mut disk, truth, &mut dice)).or_default() += 1;
            }
            truth.judge(&disk, &|| format!("seed {seed}, damage {number}: {done:?}"))?;
        }
        Ok(())
    })
}

fn flip(bytes: &mut [u8], bit: usize) {
    if let Some(byte) = bytes.get_mut(bit / 8) {
        *byte ^= 1 << (bit % 8);
    }
}

/// Somewhere in what is used of the file, most of the time.
fn place(bytes: &[u8], dice: &mut Dice) -> usize {
    let used = bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |at| at + 1);
    if dice.chance(90) {
        dice.count(0, used)
    } else {
        dice.count(0, bytes.len())
    }
}

fn draw(disk: &mut Disk, truth: &Truth, dice: &mut Dice) -> &'static str {
    let segments = truth.segments();
    let Some((first, _)) = dice.pick(&segments) else {
        return "nothing";
    };
    let file = File::Segment(first);
    match dice.between(0, 8) {
        0 => disk.damage(file, |bytes| {
            let bit = place(bytes, dice) * 8 + dice.count(0, 7);
            flip(bytes, bit);
        }),
        1 => disk.damage(file, |bytes| fill(bytes, dice, |_| 0)),
        2 => disk.damage(file, |bytes| {
            fill(bytes, dice, |dice| dice.roll().to_le_bytes()[0]);
        }),
        3 => {
            // A page lands where another belongs, of this segment or of another.
            let from = dice.pick(&segments).map_or(first, |(first, _)| first);
            let from = truth.disk.bytes(File::Segment(from)).to_vec();
            let source = place(&from, dice) / PAGE * PAGE;
            let page = from.get(source..source + PAGE).unwrap_or_default().to_vec();
            disk.damage(file, |bytes| {
                let at = place(bytes, dice) / PAGE * PAGE;
                overwrite(bytes, at, &page);
            });
            return "a page in the wrong place";
        }
        4 => {
            // A write that never reached the disk.
            let old = truth.earlier.bytes(file).to_vec();
            disk.damage(file, |bytes| {
                let at = place(bytes, dice) / PAGE * PAGE;
                let page = old
                    .get(at..at + PAGE)
                    .map_or_else(|| vec![0; PAGE], <[u8]>::to_vec);
                overwrite(bytes, at, &page);
            });
            return "an old page";
        }
        5 => disk.damage(file, |bytes| bytes.truncate(place(bytes, dice))),
        6 if segments.len() > 2 && segments.last() != Some(&(first, 0)) => {
            if segments.last().is_some_and(|(last, _)| *last != first) {
                disk.remove(file);
                return "a segment is gone";
            }
        }
        7 if segments.last().is_some_and(|(last, _)| *last != first) => {
            let to = dice.pick(&segments).map_or(first, |(to, _)| to);
            let copy = truth.disk.bytes(file).to_vec();
            disk.damage(File::Segment(to), |bytes| *bytes = copy);
            return "a segment over another";
        }
        _ => disk.damage(file, |bytes| {
            // Two bits of one frame, which a sum would not see.
            let at = place(bytes, dice) * 8;
            flip(bytes, at);
            flip(bytes, at + dice.count(1, 64));
        }),
    }
    "a change in place"
}

fn fill(bytes: &mut [u8], dice: &mut Dice, mut with: impl FnMut(&mut Dice) -> u8) {
    let at = place(bytes, dice);
    let (at, length) = if dice.chance(50) {
        (at / SECTOR * SECTOR, SECTOR)
    } else {
        (at, dice.count(1, 200))
    };
    for byte in bytes.iter_mut().skip(at).take(length) {
        *byte = with(dice);
    }
}

fn overwrite(bytes: &mut [u8], at: usize, page: &[u8]) {
    for (to, from) in bytes.iter_mut().skip(at).zip(page) {
        *to = *from;
    }
}

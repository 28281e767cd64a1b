//! `loom-sim --seeds N [--from S]` runs many seeds; `loom-sim --seed S [--trace]` runs one again.
//! `loom-sim sessions --seeds N [--from S]` and `loom-sim sessions --seed S [--trace]` do so in the world of sessions.
//! `loom-sim log --points N [--seed S]` crashes the log so many times, and judges what recovery finds.
//! `loom-sim damage --tries N [--seed S]` damages logs so many times, and sees that each record is exact or is reported.

use std::io::{self, Write};
use std::process::ExitCode;

use loom_sim::{
    Campaign, LogCampaign, LogRun, LogSetup, RARE, RARE_IN_SESSIONS, Run, SessionSetup, Setup,
    damage_drawn, exhaust_log, simulate, simulate_sessions,
};

const USAGE: &str = "usage: loom-sim [sessions] --seeds N [--from S] | [sessions] --seed S [--trace] \
                     | log --points N [--seed S] | damage --tries N [--seed S]";
/// So many damages are tried on one log.
const OF_ONE_LOG: u64 = 200;
/// Of the crashes of the log one in so many belongs to a history that is tried out in every way.
const EXHAUSTED: u64 = 5;
/// No more ways than these are tried out at one moment of such a history.
const WAYS: usize = 1 << 10;
/// A campaign of fewer seeds may miss rare states by chance.
const WHOLE: u64 = 2_000;

#[derive(Default)]
struct Asked {
    seeds: u64,
    from: u64,
    seed: Option<u64>,
    traced: bool,
    sessions: bool,
}

fn read(mut words: impl Iterator<Item = String>) -> Option<Asked> {
    let mut asked = Asked::default();
    while let Some(word) = words.next() {
        let mut number = || words.next()?.parse::<u64>().ok();
        match word.as_str() {
            "--seeds" => asked.seeds = number()?,
            "--from" => asked.from = number()?,
            "--seed" => asked.seed = Some(number()?),
            "--trace" => asked.traced = true,
            _ => return None,
        }
    }
    (asked.seeds > 0 || asked.seed.is_some()).then_some(asked)
}

fn main() -> io::Result<ExitCode> {
    let mut words = std::env::args().skip(1).peekable();
    if words.next_if_eq("log").is_some() {
        return match read_log(words, "--points") {
            Some((points, seed)) => crash_logs(points, seed),
            None => show_usage(),
        };
    }
    if words.next_if_eq("damage").is_some() {
        return match read_log(words, "--tries") {
            Some((wanted, seed)) => damage_logs(wanted, seed),
            None => show_usage(),
        };
    }
    let sessions = words.next_if_eq("sessions").is_some();
    let Some(mut asked) = read(words) else {
        return show_usage();
    };
    asked.sessions = sessions;
    match asked.seed {
        Some(seed) => replay(seed, &asked),
        None => search(&asked),
    }
}

fn show_usage() -> io::Result<ExitCode> {
    writeln!(io::stderr(), "{USAGE}")?;
    Ok(ExitCode::from(2))
}

fn read_log(mut words: impl Iterator<Item = String>, many: &str) -> Option<(u64, u64)> {
    let (mut count, mut seed) = (None, 0);
    while let Some(word) = words.next() {
        let number = words.next()?.parse::<u64>().ok()?;
        match word.as_str() {
            "--seed" => seed = number,
            word if word == many => count = Some(number),
            _ => return None,
        }
    }
    Some((count?, seed))
}

fn damage_logs(wanted: u64, seed: u64) -> io::Result<ExitCode> {
    let mut out = io::stdout().lock();
    let (mut tried, mut reported, mut at) = (0, 0, seed);
    while tried < wanted {
        let damages = damage_drawn(at, OF_ONE_LOG, LogSetup::default());
        if let Some(violation) = &damages.violation {
            writeln!(io::stderr(), "seed {at} of the damages broke {violation}")?;
            return Ok(ExitCode::FAILURE);
        }
        tried += damages.tried;
        reported += damages.reported;
        at += 1;
    }
    writeln!(
        out,
        "{tried} damages of logs from seed {seed} on, {reported} of them reported: no record was wrong or missing"
    )?;
    Ok(ExitCode::SUCCESS)
}

fn crash_logs(points: u64, seed: u64) -> io::Result<ExitCode> {
    let mut out = io::stdout().lock();
    let (mut small, mut tried) = (0, seed);
    while small < points / EXHAUSTED {
        let run = exhaust_log(tried, WAYS, LogSetup::default());
        small += run.points;
        tried += 1;
        if run.violation.is_some() {
            return show_lost("exhausted", &run);
        }
    }
    writeln!(
        out,
        "{small} crashes: every way of {} small histories",
        tried - seed
    )?;
    let mut shown = 0;
    let campaign = LogCampaign::run(
        seed,
        points - small.min(points),
        LogSetup::default(),
        |so_far| {
            if so_far.points / 100_000 > shown {
                shown = so_far.points / 100_000;
                let _ = writeln!(
                    out,
                    "{} crashes of {} histories",
                    so_far.points, so_far.runs
                );
            }
        },
    );
    if let Some(run) = &campaign.failed {
        return show_lost("drawn", run);
    }
    for (what, count) in &campaign.seen {
        writeln!(out, "  {what}: {count}")?;
    }
    writeln!(
        out,
        "{} simulated crashes of the log from seed {seed} on: nothing acknowledged was lost",
        small + campaign.points
    )?;
    if campaign.runs >= WHOLE && !campaign.missing().is_empty() {
        writeln!(io::stderr(), "never reached: {:?}", campaign.missing())?;
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

fn show_lost(how: &str, run: &LogRun) -> io::Result<ExitCode> {
    if let Some(violation) = &run.violation {
        let seed = run.seed;
        writeln!(
            io::stderr(),
            "seed {seed} of the log ({how}) broke {violation}"
        )?;
        writeln!(
            io::stderr(),
            "again: cargo run -p loom-sim --release -- log --points 1 --seed {seed}"
        )?;
    }
    Ok(ExitCode::FAILURE)
}

fn replay(seed: u64, asked: &Asked) -> io::Result<ExitCode> {
    let traced = asked.traced;
    let run = if asked.sessions {
        let setup = SessionSetup {
            traced,
            ..SessionSetup::default()
        };
        simulate_sessions(seed, setup)
    } else {
        let setup = Setup {
            traced,
            ..Setup::default()
        };
        simulate(seed, setup)
    };
    let mut out = io::stdout().lock();
    for line in &run.lines {
        writeln!(out, "{line}")?;
    }
    writeln!(out, "seed {seed}: trace {:016x}", run.hash)?;
    show_failure(&run, asked)
}

fn search(asked: &Asked) -> io::Result<ExitCode> {
    let step = (asked.seeds / 10).max(1);
    let mut done = 0;
    let tell = |run: &Run| {
        done += 1;
        if done % step == 0 {
            let _ = writeln!(
                io::stdout(),
                "{done} of {} seeds, at seed {}",
                asked.seeds,
                run.seed
            );
        }
    };
    let seeds = asked.from..asked.from + asked.seeds;
    let (campaign, rare) = if asked.sessions {
        let campaign = Campaign::run_sessions(seeds, SessionSetup::default(), tell);
        (campaign, RARE_IN_SESSIONS)
    } else {
        (Campaign::run(seeds, Setup::default(), tell), RARE)
    };
    if let Some(run) = &campaign.failed {
        return show_failure(run, asked);
    }
    let missing = campaign.seen.missing_of(rare);
    if asked.seeds >= WHOLE && !missing.is_empty() {
        writeln!(
            io::stderr(),
            "these seeds prove little, they never reached: {missing:?}"
        )?;
        return Ok(ExitCode::FAILURE);
    }
    writeln!(io::stdout(), "{} seeds kept every promise", campaign.runs)?;
    Ok(ExitCode::SUCCESS)
}

fn show_failure(run: &Run, asked: &Asked) -> io::Result<ExitCode> {
    let Some(violation) = &run.violation else {
        return Ok(ExitCode::SUCCESS);
    };
    let seed = run.seed;
    writeln!(io::stderr(), "seed {seed} broke {violation}")?;
    writeln!(
        io::stderr(),
        "again: cargo run -p loom-sim --release -- {}--seed {seed} --trace",
        if asked.sessions { "sessions " } else { "" }
    )?;
    Ok(ExitCode::FAILURE)
}

//! `loom-sim --seeds N [--from S]` runs many seeds; `loom-sim --seed S [--trace]` runs one again.

use std::io::{self, Write};
use std::process::ExitCode;

use loom_sim::{Campaign, Run, Setup, simulate};

const USAGE: &str = "usage: loom-sim --seeds N [--from S] | --seed S [--trace]";
/// A campaign of fewer seeds may miss rare states by chance.
const WHOLE: u64 = 2_000;

#[derive(Default)]
struct Asked {
    seeds: u64,
    from: u64,
    seed: Option<u64>,
    traced: bool,
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
    let Some(asked) = read(std::env::args().skip(1)) else {
        writeln!(io::stderr(), "{USAGE}")?;
        return Ok(ExitCode::from(2));
    };
    match asked.seed {
        Some(seed) => replay(seed, asked.traced),
        None => search(&asked),
    }
}

fn replay(seed: u64, traced: bool) -> io::Result<ExitCode> {
    let run = simulate(
        seed,
        Setup {
            traced,
            ..Setup::default()
        },
    );
    let mut out = io::stdout().lock();
    for line in &run.lines {
        writeln!(out, "{line}")?;
    }
    writeln!(out, "seed {seed}: trace {:016x}", run.hash)?;
    show_failure(&run)
}

fn search(asked: &Asked) -> io::Result<ExitCode> {
    let step = (asked.seeds / 10).max(1);
    let mut done = 0;
    let campaign = Campaign::run(
        asked.from..asked.from + asked.seeds,
        Setup::default(),
        |run| {
            done += 1;
            if done % step == 0 {
                let _ = writeln!(
                    io::stdout(),
                    "{done} of {} seeds, at seed {}",
                    asked.seeds,
                    run.seed
                );
            }
        },
    );
    if let Some(run) = &campaign.failed {
        return show_failure(run);
    }
    let missing = campaign.seen.missing();
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

fn show_failure(run: &Run) -> io::Result<ExitCode> {
    let Some(violation) = &run.violation else {
        return Ok(ExitCode::SUCCESS);
    };
    let seed = run.seed;
    writeln!(io::stderr(), "seed {seed} broke {violation}")?;
    writeln!(
        io::stderr(),
        "again: cargo run -p loom-sim --release -- --seed {seed} --trace"
    )?;
    Ok(ExitCode::FAILURE)
}

//! Turns, their steps, and what these cost.

use loom_core::Position;
use loom_core::record::{Step, Turn, TurnEnd};
use rusqlite::{OptionalExtension, params};
use serde::Deserialize;

use super::{Changed, Rows, code_name, filled, text, turn_number};
use crate::errors::{Failure, Subject};

/// What a step says that it used.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Spent {
    input_tokens: u64,
    output_tokens: u64,
    cost: f64,
}

impl Spent {
    fn is_something(&self) -> bool {
        self.input_tokens > 0 || self.output_tokens > 0 || self.cost > 0.0
    }
}

impl Rows<'_> {
    pub(super) fn turn(&mut self, at: Position, it: &Turn) -> Changed {
        let (event, run) = (text(it.event), text(it.run));
        if let Some(run) = &run {
            let is_again = it.attempt > 1 && {
                let sql = "SELECT 1 FROM turns WHERE event = ?1 AND agent = ?2";
                self.db
                    .prepare_cached(sql)?
                    .exists(params![event, it.agent])?
            };
            let totals = self.totals.run(run, at.n);
            totals.turns += u64::from(!is_again);
            totals.seen(it.at_ms);
        }
        self.run(
            "INSERT OR REPLACE INTO turns (epoch, turn, n, agent, version, event, run, attempt, started_ms, waited_micros)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            params![
                at.epoch,
                turn_number(it.turn),
                at.n,
                it.agent,
                filled(&it.version),
                event,
                run,
                it.attempt,
                it.at_ms,
                it.waited_micros,
            ],
        )
        .map(drop)
    }

    pub(super) fn turn_end(&mut self, at: Position, it: &TurnEnd) -> Changed {
        let code = code_name(it.code);
        let sql =
            "UPDATE turns SET ended_ms = ?3, code = ?4, message = ?5 WHERE epoch = ?1 AND turn = ?2
                   RETURNING agent, run, event";
        let values = params![
            at.epoch,
            turn_number(it.turn),
            it.at_ms,
            code,
            filled(&it.message)
        ];
        let ended = self
            .db
            .prepare_cached(sql)?
            .query_row(values, |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)));
        let Some((agent, run, event)) = ended.optional()? else {
            return Ok(());
        };
        let (agent, run, event): (String, Option<String>, Option<String>) = (agent, run, event);
        if let Some(run) = &run {
            self.totals.run(run, at.n).seen(it.at_ms);
        }
        if it.code == 0 {
            return Ok(());
        }
        let sql = "SELECT topic, thread FROM events WHERE id = ?1";
        let of: Option<(String, String)> = self
            .db
            .prepare_cached(sql)?
            .query_row([&event], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let failure = Failure {
            subject: Subject::Turn(event.as_deref().unwrap_or_default(), &agent),
            code,
            message: &it.message,
            agent: Some(&agent),
            name: of.as_ref().map(|(topic, _)| topic.as_str()),
            event: event.as_deref(),
            run: run.as_deref(),
            thread: of.as_ref().map(|(_, thread)| thread.as_str()),
            time_ms: it.at_ms,
            is_event: false,
        };
        failure.write(self.db, at.n, self.totals)
    }

    pub(super) fn step(&mut self, at: Position, it: &Step) -> Changed {
        self.run(
            "INSERT INTO steps (n, epoch, turn, kind, name, time_ms, micros, code, facts)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            params![
                at.n,
                at.epoch,
                turn_number(it.turn),
                it.kind,
                it.name,
                it.at_ms,
                it.micros,
                code_name(it.code),
                filled(&it.facts),
            ],
        )?;
        let facts: Option<Spent> = filled(&it.facts).and_then(|f| serde_json::from_str(f).ok());
        match facts {
            Some(spent) if spent.is_something() => self.cost(at, it, &spent),
            _ => Ok(()),
        }
    }

    fn cost(&mut self, at: Position, it: &Step, spent: &Spent) -> Changed {
        let sql = "SELECT run, agent FROM turns WHERE epoch = ?1 AND turn = ?2";
        let of: Option<(Option<String>, String)> = self
            .db
            .prepare_cached(sql)?
            .query_row(params![at.epoch, turn_number(it.turn)], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .optional()?;
        let (run, agent) = of.map_or((None, None), |(run, agent)| (run, Some(agent)));
        self.run(
            "INSERT INTO costs (n, run, agent, name, time_ms, input_tokens, output_tokens, cost)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            params![
                at.n,
                run,
                agent,
                it.name,
                it.at_ms,
                spent.input_tokens,
                spent.output_tokens,
                spent.cost,
            ],
        )?;
        if let Some(run) = &run {
            let totals = self.totals.run(run, at.n);
            totals.input_tokens += spent.input_tokens;
            totals.output_tokens += spent.output_tokens;
            totals.cost += spent.cost;
        }
        Ok(())
    }
}

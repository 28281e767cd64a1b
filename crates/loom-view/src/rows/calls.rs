//! Calls, the requests among them, and the effects behind them.

use loom_core::record::{Dispatched, Ended, Intent, Outcome, Settled};
use loom_core::{Detail, EffectClass, Position};
use rusqlite::{OptionalExtension, params};

use super::{Changed, Rows, code_name, filled, five, kept, name_of, text, turn_number};
use crate::errors::{Failure, Subject};

const fn class_name(class: EffectClass) -> &'static str {
    match class {
        EffectClass::Pure => "pure",
        EffectClass::Idempotent => "idempotent",
        EffectClass::Probeable => "probeable",
        EffectClass::Unsafe => "unsafe",
    }
}

/// How an effect stands, by its number in the log.
const fn state_name(number: u32) -> &'static str {
    match number {
        1 => "planned",
        2 => "dispatched",
        3 => "confirmed",
        4 => "failed",
        6 => "reconciled",
        _ => "unknown",
    }
}

impl Rows<'_> {
    pub(super) fn intent(&mut self, at: Position, it: &Intent, arguments: &[u8]) -> Changed {
        let (call, effect, run) = (text(it.call), text(it.effect), text(it.run));
        let class = u8::try_from(it.class).ok();
        let class = class.and_then(|class| EffectClass::from_number(class).ok());
        let is_new = self.run(
            "INSERT OR IGNORE INTO calls (call, kind, n, epoch, effect, name, version, class, key, caller, run, thread, event,
                turn, started_ms, arguments)
             VALUES (?1, 'capability', ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
            params![
                call.as_deref().or(effect.as_deref()).unwrap_or_default(),
                at.n,
                at.epoch,
                effect,
                it.capability,
                filled(&it.version),
                class.map(class_name),
                filled(&it.key),
                it.caller,
                run,
                filled(&it.thread),
                text(it.event),
                (it.turn > 0).then_some(turn_number(it.turn)),
                it.at_ms,
                kept(arguments),
            ],
        )?;
        if let (Some(run), 1) = (&run, is_new) {
            let totals = self.totals.run(run, at.n);
            totals.calls += 1;
            totals.seen(it.at_ms);
        }
        if class == Some(EffectClass::Pure) || effect.is_none() {
            return Ok(());
        }
        self.run(
            "INSERT INTO effects (effect, name, version, class, key, state, calls, caller, run, n, planned_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, 'planned', 1, ?6, ?7, ?8, ?9)
             ON CONFLICT (effect) DO UPDATE SET calls = calls + 1, state = 'planned'",
            params![
                effect,
                it.capability,
                filled(&it.version),
                class.map_or("unsafe", class_name),
                filled(&it.key),
                it.caller,
                run,
                at.n,
                it.at_ms,
            ],
        )
        .map(drop)
    }

    pub(super) fn dispatched(&self, it: &Dispatched) -> Changed {
        let effect = text(it.effect);
        self.run(
            "UPDATE calls SET attempts = max(attempts, ?2), provider = ?3 WHERE call = ?1",
            params![
                text(it.call).or_else(|| effect.clone()),
                it.attempt,
                it.provider
            ],
        )?;
        self.run(
            "UPDATE effects SET attempts = attempts + 1,
                state = CASE state WHEN 'planned' THEN 'dispatched' ELSE state END WHERE effect = ?1",
            params![effect],
        )
        .map(drop)
    }

    pub(super) fn outcome(&mut self, at: Position, it: &Outcome, result: &[u8]) -> Changed {
        let effect = text(it.effect);
        let call = text(it.call).or_else(|| effect.clone()).unwrap_or_default();
        let code = code_name(it.code);
        let detail: Detail = serde_json::from_str(&it.detail).unwrap_or_default();
        // What comes late changes what became of the effect, and no more how the call ended.
        let ended = self.run(
            "UPDATE calls SET ended_ms = ?2, micros = ?3, code = ?4, message = ?5, result = ?6
             WHERE call = ?1 AND code IS NULL",
            params![
                call,
                it.at_ms,
                it.micros,
                code,
                filled(&detail.message),
                kept(result)
            ],
        )?;
        let state = match code {
            "OK" => "confirmed",
            "INDETERMINATE" => "unknown",
            _ => "failed",
        };
        self.run(
            "UPDATE effects SET ended_ms = ?2, note = ?4,
                state = CASE state WHEN 'unknown' THEN 'reconciled' ELSE ?3 END
             WHERE effect = ?1 AND state NOT IN ('confirmed', 'reconciled')",
            params![effect, it.at_ms, state, filled(&detail.message)],
        )?;
        if ended == 0 || it.code == 0 {
            return Ok(());
        }
        let sql = "SELECT name, caller, run, thread, event FROM calls WHERE call = ?1";
        let about: [Option<String>; 5] = self.db.prepare_cached(sql)?.query_row([&call], five)?;
        let [name, caller, run, thread, event] = &about;
        let failure = Failure {
            subject: Subject::Call(&call),
            code,
            message: &detail.message,
            agent: caller.as_deref().map(name_of),
            name: name.as_deref(),
            event: event.as_deref(),
            run: run.as_deref(),
            thread: thread.as_deref(),
            time_ms: it.at_ms,
            is_event: false,
        };
        failure.write(self.db, at.n, self.totals)
    }

    pub(super) fn settled(&self, it: &Settled) -> Changed {
        let effect = text(it.effect);
        let state = state_name(it.state);
        self.run(
            "UPDATE effects SET state = ?2, settled_by = ?3, note = ?4, ended_ms = ?5 WHERE effect = ?1",
            params![effect, state, it.by, filled(&it.note), it.at_ms],
        )?;
        // A call that a crash cut off has ended: nobody knows how.
        self.run(
            "UPDATE calls SET code = 'INDETERMINATE', message = ?2, ended_ms = ?3 WHERE effect = ?1 AND code IS NULL
                AND ?4 = 'unknown'",
            params![effect, filled(&it.note), it.at_ms, state],
        )
        .map(drop)
    }

    pub(super) fn ended(&mut self, at: Position, it: &Ended) -> Changed {
        let Some(event) = text(it.event) else {
            return Ok(());
        };
        let sql = "SELECT e.topic, e.sender, e.run, e.thread, CAST(e.time_ms AS TEXT) FROM events e WHERE e.id = ?1";
        let found = self
            .db
            .prepare_cached(sql)?
            .query_row([&event], five)
            .optional()?;
        let [name, sender, run, thread, began] = found.unwrap_or_default();
        let began = began
            .and_then(|began| began.parse().ok())
            .unwrap_or(it.at_ms);
        let detail: Detail = serde_json::from_str(&it.detail).unwrap_or_default();
        let code = code_name(it.code);
        let is_new = self.run(
            "INSERT OR IGNORE INTO calls (call, kind, n, epoch, name, caller, run, thread, event, turn, started_ms, ended_ms, micros,
                code, message)
             VALUES (?1, 'request', ?2, ?3, ?4, ?5, ?6, ?7, ?1, ?8, ?9, ?10, ?11, ?12, ?13)",
            params![
                event,
                at.n,
                at.epoch,
                name.as_deref().unwrap_or_default(),
                sender.as_deref().unwrap_or_default(),
                run,
                thread,
                (it.turn > 0).then_some(turn_number(it.turn)),
                began,
                it.at_ms,
                it.at_ms.saturating_sub(began) * 1000,
                code,
                filled(&detail.message),
            ],
        )?;
        if is_new == 0 {
            return Ok(());
        }
        if let Some(run) = &run {
            let totals = self.totals.run(run, at.n);
            totals.requests += 1;
            totals.seen(it.at_ms);
        }
        if it.code == 0 {
            return Ok(());
        }
        let failure = Failure {
            subject: Subject::Request(&event),
            code,
            message: &detail.message,
            agent: sender.as_deref().map(name_of),
            name: name.as_deref(),
            event: Some(&event),
            run: run.as_deref(),
            thread: thread.as_deref(),
            time_ms: it.at_ms,
            is_event: false,
        };
        failure.write(self.db, at.n, self.totals)
    }
}

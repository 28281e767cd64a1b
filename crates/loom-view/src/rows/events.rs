//! Events: what was published, and what the engine says in events of its own.

use std::collections::BTreeMap;

use loom_core::{Envelope, Position, show_uuid};
use rusqlite::{OptionalExtension, Result, params};
use serde::Deserialize;

use super::{Changed, Rows, json, kept, name_of, turn_number};
use crate::errors::{Failure, Subject};

/// What the engine's own events say.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Told {
    code: Option<String>,
    message: String,
    who: Option<String>,
    topic: Option<String>,
    capability: Option<String>,
    event_id: Option<String>,
    call: Option<String>,
    subscription: Option<String>,
}

/// What an event under `loom.` means.
struct Sense {
    level: String,
    told: Told,
}

/// Reads what the engine, or an agent's logger, says in an event under `loom.`.
fn sense(env: &Envelope) -> Option<Sense> {
    let rest = env.topic.strip_prefix("loom.")?;
    let (what, detail) = rest.split_once('.').unwrap_or((rest, ""));
    let level = match what {
        "error" | "dead" => "error",
        "dropped" => "warning",
        "log" => detail,
        _ => return None,
    };
    Some(Sense {
        level: level.to_owned(),
        told: serde_json::from_slice(&env.payload).unwrap_or_default(),
    })
}

fn kept_data(env: &Envelope) -> Option<&str> {
    let kind = env.extra.as_deref().and_then(|e| e.content_type.as_deref());
    let readable = kind.is_none_or(|kind| kind.contains("json") || kind.starts_with("text/"));
    readable.then(|| kept(&env.payload)).flatten()
}

impl Rows<'_> {
    pub(super) fn event(&mut self, at: Position, env: &Envelope, turn: Option<u64>) -> Changed {
        let extra = env.extra.as_deref();
        let said = sense(env);
        let told = said.as_ref().map(|said| &said.told);
        let agent = told
            .and_then(|told| told.who.as_deref().or(told.subscription.as_deref()))
            .unwrap_or_else(|| name_of(&env.origin.sender));
        let (id, run) = (show_uuid(env.id), show_uuid(env.run));
        let thread = env.thread.to_string();
        let labels = extra
            .filter(|e| !e.labels.is_empty())
            .map(|e| json(&e.labels));
        let headers = extra.filter(|e| !e.headers.is_empty()).map(|e| {
            let pairs = e.headers.iter().map(|(name, value)| (name, value));
            json(&pairs.collect::<BTreeMap<_, _>>())
        });
        self.run(
            "INSERT INTO events (n, epoch, id, topic, agent, sender, thread, run, correlation, causation, key, time_ms,
                hop, qos, durable, turn, level, code, content_type, labels, headers, dedup, bytes, data)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21,
                ?22, ?23, ?24)",
            params![
                at.n,
                at.epoch,
                id,
                env.topic,
                agent,
                env.origin.sender,
                thread,
                run,
                env.correlation.map(show_uuid),
                env.causation.map(show_uuid),
                env.key.as_ref().map(ToString::to_string),
                env.time_ms,
                env.hop,
                env.qos.name(),
                turn.is_none(),
                turn.filter(|turn| *turn > 0).map(turn_number),
                said.as_ref().map_or("info", |said| said.level.as_str()),
                told.and_then(|told| told.code.as_deref()),
                extra.and_then(|e| e.content_type.as_deref()),
                labels,
                headers,
                extra.and_then(|e| e.dedup.as_deref()),
                env.payload.len(),
                kept_data(env),
            ],
        )?;
        self.totals.event(at.n, env, (&run, &thread, agent));
        match said {
            Some(said) if env.topic.starts_with("loom.error.") => {
                self.told_error(at, env, &said.told)
            }
            _ => Ok(()),
        }
    }

    fn told_error(&mut self, at: Position, env: &Envelope, told: &Told) -> Changed {
        let (own, run, thread) = (
            show_uuid(env.id),
            show_uuid(env.run),
            env.thread.to_string(),
        );
        let code = told.code.as_deref().unwrap_or("UNKNOWN");
        let (event, who) = (told.event_id.as_deref(), told.who.as_deref());
        let whose = match (event, who) {
            (Some(event), Some(who)) => self.whose_turn(event, who, code)?,
            _ => None,
        };
        let subject = match (event, whose.as_deref().or(who)) {
            (Some(event), _) if told.capability.is_some() => Subject::Call(event),
            (Some(event), _) if told.call.is_some() => Subject::Request(event),
            (Some(event), Some(agent)) => Subject::Turn(event, agent),
            _ => Subject::Other(&own),
        };
        let failure = Failure {
            subject,
            code,
            message: &told.message,
            agent: who,
            name: told.capability.as_deref().or(told.topic.as_deref()),
            event,
            run: Some(&run),
            thread: Some(&thread),
            time_ms: env.time_ms,
            is_event: true,
        };
        failure.write(self.db, at.n, self.totals)
    }

    /// Whose turn an error was told of: an error that a handler let through names who failed first.
    fn whose_turn(&self, event: &str, who: &str, code: &str) -> Result<Option<String>> {
        let sql =
            "SELECT agent FROM turns WHERE event = ?1 AND (agent = ?2 OR code IS NULL OR code = ?3)
                   ORDER BY agent = ?2 DESC, n DESC LIMIT 1";
        let mut turns = self.db.prepare_cached(sql)?;
        turns
            .query_row([event, who, code], |row| row.get(0))
            .optional()
    }
}

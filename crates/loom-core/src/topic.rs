//! Topics, filters and names: dotted tokens, read once at the border and trusted from there on.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::limits::Limits;

fn is_token(token: &str) -> bool {
    !token.is_empty()
        && token
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

fn check_size(field: &str, text: &str, limits: &Limits) -> Result<()> {
    if text.is_empty() {
        return Err(
            Error::invalid(field, format!("a {field} must not be empty"))
                .hint("give dotted tokens, such as order.created"),
        );
    }
    if text.len() > limits.topic_bytes {
        let message = format!(
            "this {field} has {} bytes of at most {}",
            text.len(),
            limits.topic_bytes
        );
        return Err(Error::invalid(field, message).limit("topic_bytes"));
    }
    let tokens = text.split('.').count();
    if tokens > limits.topic_tokens {
        let message = format!(
            "this {field} has {tokens} tokens of at most {}",
            limits.topic_tokens
        );
        return Err(Error::invalid(field, message).limit("topic_tokens"));
    }
    Ok(())
}

/// Says whether a text is a topic to publish to.
///
/// # Errors
/// `INVALID_PARAMS` that names the token or the limit.
pub fn check_topic(text: &str, limits: &Limits) -> Result<()> {
    check_size("topic", text, limits)?;
    let Some(bad) = text.split('.').find(|token| !is_token(token)) else {
        return Ok(());
    };
    let message = format!("the token {bad:?} of topic {text:?} is not one of [A-Za-z0-9_-]+");
    let hint = if matches!(bad, "*" | ">") {
        "wildcards stand in filters only; publish to one topic"
    } else {
        "join tokens of letters, digits, _ and - with single dots"
    };
    Err(Error::invalid("topic", message).hint(hint))
}

/// Which topics a subscription asks for: `*` stands for one token, a last `>` for one or more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    text: Arc<str>,
}

impl Filter {
    /// Reads a filter.
    ///
    /// # Errors
    /// `INVALID_PARAMS` that names the token or the limit.
    pub fn parse(text: &str, limits: &Limits) -> Result<Self> {
        check_size("filter", text, limits)?;
        let last = text.split('.').count() - 1;
        for (at, token) in text.split('.').enumerate() {
            if token == ">" && at != last {
                let message = format!("in filter {text:?} the > is not the last token");
                return Err(
                    Error::invalid("filter", message).hint("use * for a token in the middle")
                );
            }
            if token != "*" && token != ">" && !is_token(token) {
                let message = format!(
                    "the token {token:?} of filter {text:?} is neither *, > nor [A-Za-z0-9_-]+"
                );
                return Err(Error::invalid("filter", message));
            }
        }
        Ok(Self { text: text.into() })
    }

    /// Reads a filter over the names of capabilities and agents, in which `server:tool` is two tokens.
    ///
    /// # Errors
    /// `INVALID_PARAMS` that names the token or the limit.
    pub fn parse_names(text: &str, limits: &Limits) -> Result<Self> {
        let read = Self::parse(&text.replacen(':', ".", 1), limits)?;
        if text.contains(':') {
            return Ok(Self { text: text.into() });
        }
        Ok(read)
    }

    /// The filter for everything.
    pub(crate) fn everything() -> Self {
        Self { text: ">".into() }
    }

    /// The filter for all that is the engine's own.
    pub(crate) fn own() -> Self {
        Self {
            text: "loom.>".into(),
        }
    }

    /// The text it was read from.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub(crate) fn tokens(&self) -> impl Iterator<Item = &str> {
        self.text.split('.')
    }

    /// Whether a topic is one it asks for, token by token; the trie's answers are held against this.
    pub fn matches(&self, topic: &str) -> bool {
        let mut tokens = topic.split('.');
        for wanted in self.tokens() {
            match (wanted, tokens.next()) {
                (">", Some(_)) => return true,
                ("*", Some(_)) => {}
                (wanted, Some(token)) if wanted == token => {}
                _ => return false,
            }
        }
        tokens.next().is_none()
    }

    /// Whether a name of a capability or an agent is one it asks for. A colon parts tokens as a dot does, and is none: only
    /// what begins with a wildcard passes over it unasked.
    pub fn names(&self, name: &str) -> bool {
        let mut parts = parts(name);
        for (at, (colon, wanted)) in self::parts(&self.text).enumerate() {
            match (wanted, parts.next()) {
                (">", Some((same, _))) => return at == 0 || same == colon,
                (wanted, Some((same, token))) if same == colon => {
                    if wanted != "*" && wanted != token {
                        return false;
                    }
                }
                _ => return false,
            }
        }
        parts.next().is_none()
    }

    /// The filter for the topics that both ask for; none: there are none.
    pub(crate) fn meet(&self, other: &Self) -> Option<Self> {
        let (mut mine, mut theirs) = (self.tokens(), other.tokens());
        let mut both: Vec<&str> = Vec::new();
        loop {
            match (mine.next(), theirs.next()) {
                (None, None) => break,
                (Some(">"), Some(token)) => {
                    both.push(token);
                    both.extend(theirs);
                    break;
                }
                (Some(token), Some(">")) => {
                    both.push(token);
                    both.extend(mine);
                    break;
                }
                (Some("*"), Some(token)) | (Some(token), Some("*")) => both.push(token),
                (Some(token), Some(same)) if token == same => both.push(token),
                _ => return None,
            }
        }
        Some(Self {
            text: both.join(".").into(),
        })
    }

    /// Whether it asks for all that another one asks for.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        self.meet(other).is_some_and(|both| both == *other)
    }
}

/// The tokens of a name, each with whether a colon stands before it.
fn parts(text: &str) -> impl Iterator<Item = (bool, &str)> {
    let mut colon = false;
    text.split_inclusive(['.', ':']).map(move |part| {
        let before = std::mem::replace(&mut colon, part.ends_with(':'));
        (before, part.trim_end_matches(['.', ':']))
    })
}

/// Reads the name of an agent, a session, a group or a namespace: tokens joined by dots.
///
/// # Errors
/// `INVALID_PARAMS`, naming the field.
pub fn check_name(field: &str, text: &str, limits: &Limits) -> Result<()> {
    if text.len() > limits.name_bytes {
        let message = format!(
            "this {field} has {} bytes of at most {}",
            text.len(),
            limits.name_bytes
        );
        return Err(Error::invalid(field, message).limit("name_bytes"));
    }
    if text.split('.').count() > limits.topic_tokens - 1 {
        return Err(
            Error::invalid(field, format!("{field} {text:?} has too many parts"))
                .limit("topic_tokens"),
        );
    }
    if text.split('.').all(is_token) {
        return Ok(());
    }
    let message = format!("{field} {text:?} is not made of parts [A-Za-z0-9_-]+ joined by dots");
    Err(Error::invalid(field, message))
}

/// Reads the name of a capability: lower case parts joined by dots, or `server:tool`.
pub(crate) fn check_capability(text: &str, limits: &Limits) -> Result<()> {
    let (server, tool) = text
        .split_once(':')
        .map_or((text, None), |(server, tool)| (server, Some(tool)));
    let lower = server.bytes().all(|byte| !byte.is_ascii_uppercase());
    if text.len() <= limits.name_bytes
        && lower
        && server.split('.').all(is_token)
        && tool.is_none_or(|tool| tool.split('.').all(is_token))
    {
        return Ok(());
    }
    let message =
        format!("capability {text:?} is not made of lower case parts [a-z0-9_-]+ joined by dots");
    Err(Error::invalid("capability", message)
        .hint("like notes.search, or server:tool for a tool of an MCP server"))
}

/// Reads a thread's id: one token, since it stands in topics.
pub(crate) fn check_thread(text: &str, limits: &Limits) -> Result<()> {
    if text.len() > limits.thread_bytes {
        let message = format!(
            "this thread id has {} bytes of at most {}",
            text.len(),
            limits.thread_bytes
        );
        return Err(Error::invalid("thread_id", message).limit("thread_bytes"));
    }
    if is_token(text) {
        return Ok(());
    }
    Err(Error::invalid(
        "thread_id",
        format!("thread id {text:?} is not one token [A-Za-z0-9_-]+"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(text: &str) -> Filter {
        Filter::parse(text, &Limits::default()).unwrap()
    }

    #[test]
    fn a_star_stands_for_one_token_and_a_tail_for_one_or_more() {
        assert!(filter("a.*.c").matches("a.b.c"));
        assert!(!filter("a.*").matches("a.b.c"));
        assert!(!filter("a.*").matches("a"));
        assert!(filter("a.>").matches("a.b.c"));
        assert!(!filter("a.>").matches("a"));
        assert!(filter(">").matches("a"));
    }

    // requirement: TOPIC-GRAMMAR
    #[test]
    fn bad_topics_name_their_field_and_their_limit() {
        let limits = Limits::default();
        let long = "a".repeat(257);
        let deep = vec!["a"; 17].join(".");
        for (text, limit) in [
            ("", None),
            ("a..b", None),
            ("a b", None),
            ("a.*", None),
            ("ä", None),
            (long.as_str(), Some("topic_bytes")),
            (deep.as_str(), Some("topic_tokens")),
        ] {
            let error = check_topic(text, &limits).unwrap_err();
            assert_eq!(
                (error.field.as_deref(), error.limit),
                (Some("topic"), limit)
            );
        }
    }

    #[test]
    fn a_filter_may_end_but_not_go_on_with_a_tail() {
        let limits = Limits::default();
        assert!(Filter::parse("a.>.b", &limits).is_err());
        assert!(Filter::parse("a.b*", &limits).is_err());
        assert!(Filter::parse("a.", &limits).is_err());
    }

    #[test]
    fn a_capability_may_be_a_tool_of_a_server() {
        let limits = Limits::default();
        assert!(check_capability("web.search", &limits).is_ok());
        assert!(check_capability("files:readText", &limits).is_ok());
        assert!(check_capability("Web.search", &limits).is_err());
        assert!(check_capability("a:b:c", &limits).is_err());
        assert!(check_capability("", &limits).is_err());
    }
}

//! Who is attached, and how a newer agent takes the place of an older one.

use std::sync::Arc;

use serde::Serialize;

use crate::arena::{LeaseId, SessionId, SubId};
use crate::books::Reason;
use crate::core::{Core, Holding, Kind};
use crate::directory::DirectoryKind;
use crate::error::Error;
use crate::input::AgentSpec;
use crate::notice::Notice;
use crate::report::Subject;
use crate::space::SpaceId;
use crate::time::Moment;

/// One session, as `loom.node.sessions` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "docs/stats.md says what each is")]
pub struct SessionInfo {
    #[serde(skip)]
    pub session: SessionId,
    pub namespace: String,
    pub name: String,
    /// What the client calls itself; 0: it has no name of its own.
    #[serde(skip)]
    pub client: u128,
    pub agents: Vec<String>,
    pub capabilities: Vec<String>,
    pub streams: usize,
    pub pending: usize,
    pub queued: usize,
    pub leased: usize,
}

impl Core {
    /// The sessions of a namespace, or of all, in no order that means anything.
    pub fn sessions(&self, namespace: Option<&str>) -> Vec<SessionInfo> {
        let all = self
            .sessions
            .iter()
            .filter_map(|(id, _)| self.session_info(id));
        all.filter(|info| namespace.is_none_or(|wanted| *info.namespace == *wanted))
            .collect()
    }

    /// What is known of one session; none: it has ended.
    pub fn session_info(&self, session: SessionId) -> Option<SessionInfo> {
        let found = self.sessions.get(session)?;
        let root = self.handles.get(found.root)?;
        let mut info = SessionInfo {
            session,
            namespace: root.origin.namespace.to_string(),
            name: root.name.to_string(),
            client: found.client,
            agents: Vec::new(),
            capabilities: Vec::new(),
            streams: 0,
            pending: found.pending,
            queued: 0,
            leased: 0,
        };
        for handle in found.handles.iter().filter_map(|it| self.handles.get(*it)) {
            match handle.kind {
                Kind::Root => {}
                Kind::Subscription(sub) => {
                    let Some(sub) = self.subs.get(sub) else {
                        continue;
                    };
                    if sub.is_stream() {
                        info.streams += 1;
                    } else {
                        info.agents.push(handle.name.to_string());
                    }
                    info.queued += sub.lanes.items() + sub.claimed.len();
                    info.leased += sub.leased as usize - sub.claimed.len();
                }
                Kind::Provider(provider) => {
                    let Some(provider) = self.providers.get(provider) else {
                        continue;
                    };
                    info.capabilities.push(handle.name.to_string());
                    info.queued += provider.queue.len();
                    info.leased += provider.held.len();
                }
            }
        }
        Some(info)
    }

    /// Whether an agent of this name is registered in a session: its state is the session's to read.
    pub fn is_agent_of(&self, session: SessionId, name: &str) -> bool {
        self.sessions
            .get(session)
            .is_some_and(|found| found.agents.contains(name))
    }

    /// The agents of other sessions whose place a new one takes.
    pub(crate) fn fenced_by(
        &self,
        space: SpaceId,
        session: SessionId,
        spec: &AgentSpec<'_>,
    ) -> Vec<SubId> {
        let handles = self.entered(space, DirectoryKind::Agent, spec.name);
        let subs = handles
            .into_iter()
            .filter_map(|handle| match self.handles.get(handle)?.kind {
                Kind::Subscription(sub) => Some(sub),
                _ => None,
            });
        let is_older = |id: &SubId| {
            self.subs
                .get(*id)
                .is_some_and(|sub| sub.session != session && (sub.exclusive || spec.exclusive))
        };
        subs.filter(is_older).collect()
    }

    /// A newer agent of its name is there: the older one is removed, and what it does from now on is refused.
    pub(crate) fn fence_agent(&mut self, id: SubId, at: Moment) {
        let Some(sub) = self.subs.get(id) else { return };
        let (space, session, handle) = (sub.space, sub.session, sub.handle);
        let who = Arc::clone(&sub.origin.sender);
        let message = format!("a newer agent {who:?} was registered, and it is exclusive");
        let error = Error::fenced(message)
            .hint("run it in one place, or leave exclusive out to share its events");
        self.tell_error(space, error.code, &error.detail(), &Subject::group(who));
        self.remove_subscription(id, Reason::Unsubscribed, at);
        let held = self
            .leases
            .iter()
            .filter(|(_, lease)| matches!(lease.holding, Holding::Turn { sub, .. } if sub == id));
        let held: Vec<LeaseId> = held.map(|(id, _)| id).collect();
        self.cut_leases(held, "a newer agent of its name came", at);
        self.notify(session, Notice::Removed(handle, error));
    }
}

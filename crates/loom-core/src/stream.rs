//! Streamed calls: chunks under credit. Credit is an absolute total, so that one that comes twice does no harm.

use crate::arena::{CallId, LeaseId, SessionId};
use crate::bus::Keeper;
use crate::core::{Core, Holding, Wanted};
use crate::error::{Error, Result};
use crate::job::Stage;
use crate::notice::Notice;
use crate::planted::Planted;
use crate::time::Moment;

impl Core {
    /// Sends one chunk to the caller. `false`: no credit; a [`Notice::Credit`] says when there is some.
    ///
    /// # Errors
    /// `INVALID_PARAMS` where the caller does not read chunks, and over the limit of a payload; `EXHAUSTED` for one from
    /// elsewhere without credit: it was sent, so the stream would lack it; `FENCED`.
    pub fn chunk(
        &mut self,
        session: SessionId,
        lease: LeaseId,
        payload: Box<[u8]>,
    ) -> Result<bool> {
        self.check_payload(&payload, Keeper::Nobody)?;
        let Some(found) = self.own_lease(session, lease, false)? else {
            return Ok(false);
        };
        let Holding::Work { job, .. } = found.holding else {
            return Err(Error::invalid("lease", "a turn has no chunks"));
        };
        let current = self
            .jobs
            .get_mut(job)
            .filter(|job| job.stage == Stage::Leased(lease));
        let Some(found) = current else {
            self.totals.calls.late += 1;
            return Ok(false);
        };
        let Some(credit) = &mut found.credit else {
            return Err(Error::invalid(
                "lease",
                "the caller of this does not read chunks",
            ));
        };
        if !credit.spend() {
            let most = credit.granted();
            // One elsewhere counts its chunks itself, and is never seen to wait.
            if self.is_elsewhere(session) {
                let message = format!("more chunks came than the {most} that the caller granted");
                return Err(Error::exhausted("stream_chunks", message)
                    .field("credit")
                    .hint("the provider sends a chunk only while its grant is not used up"));
            }
            return Ok(false);
        }
        // A streamed job is joined by nobody.
        let caller = found.waiters.first().copied();
        if let Some((call, pending)) = caller.and_then(|call| Some((call, self.calls.get(call)?))) {
            let session = pending.session;
            self.tape_chunk(call, &payload);
            self.notify(session, Notice::Chunk(call, payload));
        }
        Ok(true)
    }

    /// Grants `total` chunks in all to a streamed call; less than before changes nothing.
    ///
    /// # Errors
    /// `FENCED` for a call of another session; `EXHAUSTED` for more ahead than the limit.
    pub fn grant(
        &mut self,
        session: SessionId,
        call: CallId,
        total: u64,
        at: Moment,
    ) -> Result<()> {
        let most = self.limits.stream_chunks_max as u64;
        let adds = self.has(Planted::CreditAsDelta);
        let Some(pending) = self.calls.get(call) else {
            return Ok(());
        };
        if pending.session != session {
            return Err(Error::fenced("this call is of another session"));
        }
        let Wanted::Call(job) = pending.wanted else {
            return Err(Error::invalid("call", "a request has no chunks"));
        };
        let Some(job) = self.jobs.get_mut(job) else {
            return Ok(());
        };
        let Some(credit) = &mut job.credit else {
            return Err(Error::invalid("call", "this call reads no chunks"));
        };
        let ahead = credit.ahead(total);
        if ahead > most {
            let message = format!("{ahead} chunks ahead of at most {most}");
            return Err(Error::exhausted("stream_chunks", message));
        }
        let before = if adds { credit.granted() } else { 0 };
        let waiting = credit.grant(before + total);
        if let Stage::Leased(lease) = job.stage
            && let Some(provider) = job.provider.and_then(|id| self.providers.get(id))
        {
            let session = provider.session;
            if waiting || self.is_elsewhere(session) {
                self.notify(session, Notice::Credit(lease, total));
            }
        }
        self.flush(at);
        Ok(())
    }
}

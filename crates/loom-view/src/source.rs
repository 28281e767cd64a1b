//! The log of a namespace on disk, as the view reads it: read-only, without a lock, up to the durable mark.

use std::path::Path;

use loom_core::spec::limits as spec;
use loom_core::{Position, Record};
use loom_log::{Batch, LogError, ReadLimit, Reader};

use crate::Result;
use crate::follow::Source;

/// The log of one namespace in a data directory.
#[derive(Debug)]
pub struct LogSource {
    reader: Reader,
    namespace: String,
    /// It was read to its end: what came since must be looked for.
    is_stale: bool,
}

impl LogSource {
    /// Opens a data directory. The namespace need not be there yet.
    ///
    /// # Errors
    /// What the log says: a path that is no log, a newer format, no permission.
    pub fn open(data: &Path, namespace: &str) -> Result<Self> {
        Ok(Self {
            reader: Reader::open(data)?,
            namespace: namespace.to_owned(),
            is_stale: false,
        })
    }

    fn is_there(&self) -> bool {
        let namespaces = self.reader.namespaces();
        namespaces.contains(&self.namespace)
    }
}

impl Source for LogSource {
    fn first(&mut self) -> Result<u64> {
        if !self.is_there() {
            return Ok(0);
        }
        Ok(self.reader.bounds(&self.namespace)?.0)
    }

    fn read(&mut self, from: Option<u64>) -> Result<Batch> {
        if self.is_stale {
            self.reader.refresh()?;
        }
        if !self.is_there() {
            self.is_stale = true;
            return Ok(Batch {
                records: Vec::new(),
                next: from.unwrap_or(0),
                at_end: true,
            });
        }
        let most = ReadLimit {
            records: spec::VIEW_PORTION,
            bytes: spec::VIEW_PORTION_BYTES,
            only: None,
        };
        let batch = match self.reader.read(&self.namespace, from.unwrap_or(0), most) {
            Err(LogError::Expired { first, .. }) if from.is_none() => {
                self.reader.read(&self.namespace, first, most)?
            }
            other => other?,
        };
        self.is_stale = batch.at_end;
        Ok(batch)
    }

    fn get(&mut self, n: u64) -> Result<Option<(Position, Record)>> {
        if !self.is_there() {
            return Ok(None);
        }
        Ok(self.reader.get(&self.namespace, n)?)
    }
}

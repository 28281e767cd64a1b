//! Selection tables: how the calls of a capability are spread over its providers. Policies write them, the broker reads.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use crate::arena::SessionId;
use crate::core::Core;
use crate::error::{Error, Result};
use crate::topic::{check_capability, check_name};

/// Weights count in thousandths.
const UNIT: u32 = 1_000;

/// The weights of one capability's providers, by name.
#[derive(Debug, Default)]
pub(crate) struct Table {
    weights: BTreeMap<Arc<str>, u32>,
    /// What each has saved up for its next turn; only of those that could be chosen last time.
    saved: BTreeMap<Arc<str>, i64>,
}

impl Table {
    /// The weight of a provider: 1 for one that is not named, 0 for one that is drained.
    pub(crate) fn weight(&self, provider: &str) -> u32 {
        self.weights.get(provider).copied().unwrap_or(UNIT)
    }

    /// Whose turn it is: smooth weighted round robin over these names, as nginx does it. Each saves its weight, who has most
    /// has the turn and pays what all have saved. The same name may come more than once.
    pub(crate) fn next<'a>(
        &mut self,
        names: impl Iterator<Item = &'a Arc<str>>,
    ) -> Option<Arc<str>> {
        let mut before = std::mem::take(&mut self.saved);
        let mut total = 0;
        for name in names {
            if self.saved.contains_key(name) {
                continue;
            }
            let weight = i64::from(self.weight(name));
            total += weight;
            let saved = before.remove(name).unwrap_or(0) + weight;
            self.saved.insert(Arc::clone(name), saved);
        }
        let most = self.saved.values().max().copied()?;
        let (name, saved) = self.saved.iter_mut().find(|(_, saved)| **saved == most)?;
        *saved -= total;
        Some(Arc::clone(name))
    }
}

/// Weights by provider, as they are shown.
#[derive(Debug, Serialize, PartialEq)]
#[serde(transparent)]
pub struct Weights<'a>(pub BTreeMap<&'a str, f64>);

impl Core {
    /// Writes the selection table of a capability in the session's namespace; none removes it.
    ///
    /// # Errors
    /// `INVALID_PARAMS` for a name or a weight that is none; `EXHAUSTED` for one table, or one provider in it, too many; `DENIED` without
    /// an admin grant.
    pub fn weigh(
        &mut self,
        session: SessionId,
        capability: &str,
        weights: Option<&[(&str, f64)]>,
    ) -> Result<()> {
        let space = self.session(session)?.space;
        check_capability(capability, &self.limits)?;
        self.check_admin(session, capability)?;
        let table = weights
            .map(|weights| self.read_weights(weights))
            .transpose()?;
        let most = self.limits.routes;
        let Some(found) = self.space_mut(space) else {
            return Ok(());
        };
        let Some(table) = table else {
            found.tables.remove(capability);
            return Ok(());
        };
        if found.tables.len() >= most && !found.tables.contains_key(capability) {
            let message = format!("this namespace has {most} selection tables already");
            return Err(Error::exhausted("routes", message).hint("remove one that is not needed"));
        }
        found.tables.insert(capability.into(), table);
        Ok(())
    }

    fn read_weights(&self, given: &[(&str, f64)]) -> Result<Table> {
        let most = self.limits.route_providers;
        if given.len() > most {
            let message = format!("{} providers of at most {most}", given.len());
            return Err(Error::invalid("weights", message).limit("route_providers"));
        }
        let mut weights = BTreeMap::new();
        for (provider, weight) in given {
            check_name("provider", provider, &self.limits)?;
            weights.insert(Arc::from(*provider), self.read_weight(provider, *weight)?);
        }
        Ok(Table {
            weights,
            saved: BTreeMap::new(),
        })
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "the weight was checked to lie in a small range"
    )]
    fn read_weight(&self, provider: &str, weight: f64) -> Result<u32> {
        let most = self.limits.route_weight;
        if !(0.0..=most as f64).contains(&weight) {
            let message = format!("the weight of {provider:?} is {weight}, not one of 0 to {most}");
            return Err(Error::invalid("weights", message).limit("route_weight"));
        }
        let thousandths = (weight * f64::from(UNIT)).round() as u32;
        if thousandths == 0 && weight > 0.0 {
            let message = format!("the weight of {provider:?} is {weight}, less than a thousandth");
            return Err(Error::invalid("weights", message)
                .hint("0 drains a provider; weights count in thousandths"));
        }
        Ok(thousandths)
    }

    /// The selection tables of a namespace, by capability; nothing for an unknown one.
    pub fn routes(&self, namespace: &str) -> BTreeMap<&str, Weights<'_>> {
        let space = self
            .space_index
            .get(namespace)
            .and_then(|space| self.space(*space));
        let tables = space.into_iter().flat_map(|space| &space.tables);
        tables
            .map(|(capability, table)| {
                let weights = table.weights.iter().map(|(provider, thousandths)| {
                    (&**provider, f64::from(*thousandths) / f64::from(UNIT))
                });
                (&**capability, Weights(weights.collect()))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests;

// SPDX-License-Identifier: Apache-2.0
//! What a session asks of the engine; tests put a recorder of their own in its place.

use crate::budget::Excess;
use crate::engine::{
    CollectorOutcome, Engine, EngineError, SessionSpec, TableCounters, TargetCoverage, TargetSpec,
};

/// What records: the engine.
pub trait Recorder: Send {
    /// See [`Engine::open`].
    ///
    /// # Errors
    /// As there.
    fn open(&mut self, spec: SessionSpec) -> Result<Vec<CollectorOutcome>, EngineError>;
    /// See [`Engine::set_targets`].
    ///
    /// # Errors
    /// As there.
    fn set_targets(&mut self, session: &str, targets: &[TargetSpec]) -> Result<(), EngineError>;
    /// See [`Engine::mend`].
    ///
    /// # Errors
    /// As there.
    fn mend(&mut self) -> Result<(), EngineError>;
    /// See [`Engine::govern`].
    fn govern(&mut self) -> Vec<(String, Excess)> {
        Vec::new()
    }
    /// See [`Engine::close`].
    fn close(&mut self, session: &str, names: bool);
    /// See [`Engine::learn`].
    fn learn(&mut self, targets: &[TargetSpec]);
    /// See [`Engine::counters`].
    fn counters(&self, session: &str) -> Vec<TableCounters>;
    /// See [`Engine::coverage`].
    fn coverage(&self, session: &str) -> Vec<TargetCoverage>;
    /// See [`Engine::unattributed`].
    fn unattributed(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

impl Recorder for Engine {
    fn open(&mut self, spec: SessionSpec) -> Result<Vec<CollectorOutcome>, EngineError> {
        Engine::open(self, spec)
    }

    fn set_targets(&mut self, session: &str, targets: &[TargetSpec]) -> Result<(), EngineError> {
        Engine::set_targets(self, session, targets)
    }

    fn mend(&mut self) -> Result<(), EngineError> {
        Engine::mend(self)
    }

    fn govern(&mut self) -> Vec<(String, Excess)> {
        Engine::govern(self)
    }

    fn close(&mut self, session: &str, names: bool) {
        Engine::close(self, session, names);
    }

    fn learn(&mut self, targets: &[TargetSpec]) {
        Engine::learn(self, targets);
    }

    fn counters(&self, session: &str) -> Vec<TableCounters> {
        Engine::counters(self, session)
    }

    fn coverage(&self, session: &str) -> Vec<TargetCoverage> {
        Engine::coverage(self, session)
    }

    fn unattributed(&self) -> Vec<(&'static str, u64)> {
        Engine::unattributed(self)
    }
}

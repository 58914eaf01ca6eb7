// SPDX-License-Identifier: Apache-2.0
//! Events on objects, as `kubectl describe` shows them. Best effort: they hold up nothing, and the log or the status says the same.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder};

/// The longest note of an Event, in characters.
const NOTE_MAX: usize = 1000;
/// How long the API server may take for one: what happens after it waits so long.
const PATIENCE: Duration = Duration::from_secs(2);

/// Publishes an Event about an object: a warning, or not.
pub async fn publish(
    recorder: &Recorder,
    about: &ObjectReference,
    action: &str,
    warning: bool,
    reason: &str,
    note: &str,
) {
    let note: String = note.chars().take(NOTE_MAX).collect();
    let event = Event {
        type_: if warning { EventType::Warning } else { EventType::Normal },
        reason: reason.to_owned(),
        action: distinct(action, &note),
        note: Some(note),
        secondary: None,
    };
    match tokio::time::timeout(PATIENCE, recorder.publish(&event, about)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "event not published"),
        Err(_) => tracing::warn!(reason, "event not published, the API server takes too long"),
    }
}

/// An action that is another one for another note: within minutes, Events that are alike but for their notes are counted as the first
/// of them, and show its note.
fn distinct(action: &str, note: &str) -> String {
    let mut hasher = DefaultHasher::new();
    note.hash(&mut hasher);
    format!("{action}-{:08x}", hasher.finish() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_with_other_notes_are_other_events() {
        let made = |note| distinct("Reconcile", note);
        assert_ne!(made("made session nightly-1"), made("made session nightly-2"));
        assert_eq!(made("made session nightly-1"), made("made session nightly-1"));
        assert!(made("a note").starts_with("Reconcile-"));
    }
}

// SPDX-License-Identifier: Apache-2.0
//! Events on objects, as `kubectl describe` shows them. Best effort: they hold up nothing, and the log or the status says the same.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder};

/// The longest note of an Event, in characters.
const NOTE_MAX: usize = 1000;

/// Publishes an Event about an object: a warning, or not.
pub async fn publish(
    recorder: &Recorder,
    about: &ObjectReference,
    action: &str,
    warning: bool,
    reason: &str,
    note: &str,
) {
    let event = Event {
        type_: if warning { EventType::Warning } else { EventType::Normal },
        reason: reason.to_owned(),
        note: Some(note.chars().take(NOTE_MAX).collect()),
        action: action.to_owned(),
        secondary: None,
    };
    if let Err(error) = recorder.publish(&event, about).await {
        tracing::warn!(%error, "event not published");
    }
}

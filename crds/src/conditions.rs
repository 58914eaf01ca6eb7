// SPDX-License-Identifier: Apache-2.0
//! Condition types and reasons, and the one way to write a condition.
//!
//! Reasons are API: scripts and alerts match them. A reason is added, never renamed. Messages are for people and
//! may change.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// Types of conditions of a `TraceSession`.
pub mod session {
    /// The spec names known collectors with known parameters.
    pub const ACCEPTED: &str = "Accepted";
    /// The store answered its probe, and the session may use it.
    pub const STORE_READY: &str = "StoreReady";
    /// The selector matched pods.
    pub const TARGETS_RESOLVED: &str = "TargetsResolved";
    /// At least one node records.
    pub const COLLECTING: &str = "Collecting";
    /// Every segment is acknowledged by the store and the manifest is written.
    pub const UPLOADED: &str = "Uploaded";
    /// Some of what was asked for cannot be collected or was lost.
    pub const DEGRADED: &str = "Degraded";
    /// A budget acted.
    pub const BUDGET_EXCEEDED: &str = "BudgetExceeded";

    /// Every type, in the order in which a session passes them.
    pub const TYPES: &[&str] =
        &[ACCEPTED, STORE_READY, TARGETS_RESOLVED, COLLECTING, UPLOADED, DEGRADED, BUDGET_EXCEEDED];

    /// Types that tell of trouble, with the status that does; the others say how far the session is.
    pub const TROUBLES: &[(&str, &str)] = &[
        (ACCEPTED, "False"),
        (STORE_READY, "False"),
        (TARGETS_RESOLVED, "False"),
        (DEGRADED, "True"),
        (BUDGET_EXCEEDED, "True"),
    ];
}

/// Types of conditions of a `TraceSchedule`.
pub mod schedule {
    /// The expression, the time zone and the template can be used.
    pub const ACCEPTED: &str = "Accepted";
    /// The newest session that was due began.
    pub const ON_TIME: &str = "OnTime";

    /// Every type.
    pub const TYPES: &[&str] = &[ACCEPTED, ON_TIME];
}

/// Types of conditions of a `TraceStore` and a `ClusterTraceStore`.
pub mod store {
    /// The operator put, read, refused to overwrite, and deleted an object there.
    pub const READY: &str = "Ready";

    /// Every type.
    pub const TYPES: &[&str] = &[READY];
}

/// Reasons of all conditions, by the condition that carries them.
pub mod reason {
    /// `Accepted=True`: the spec is valid.
    pub const VALID: &str = "Valid";
    /// `Accepted=False`: no such collector; the message lists the known ones.
    pub const UNKNOWN_COLLECTOR: &str = "UnknownCollector";
    /// `Accepted=False`: a parameter is unknown or its value is out of range; the message says what is accepted.
    pub const INVALID_PARAMETER: &str = "InvalidParameter";

    /// `Accepted=False`: the session asks for more than any session of the cluster may have; the message says how much that is.
    pub const LIMIT_EXCEEDED: &str = "LimitExceeded";

    /// A schedule's `Accepted=False`: the expression is none; the message says what is wrong with it.
    pub const INVALID_SCHEDULE: &str = "InvalidSchedule";
    /// A schedule's `Accepted=False`: no such time zone.
    pub const UNKNOWN_TIME_ZONE: &str = "UnknownTimeZone";

    /// `OnTime=False`: an earlier session is not over, and `concurrencyPolicy` is `Forbid`.
    pub const EARLIER_SESSION_ACTIVE: &str = "EarlierSessionActive";
    /// `OnTime=False`: more than `startingDeadlineSeconds` had passed before the session could begin.
    pub const MISSED_SCHEDULE: &str = "MissedSchedule";
    /// `OnTime=False`: the API server refused the session; the message says why.
    pub const SESSION_NOT_CREATED: &str = "SessionNotCreated";

    /// `StoreReady=True`, `Ready=True`: the probe succeeded.
    pub const PROBE_SUCCEEDED: &str = "ProbeSucceeded";
    /// `StoreReady=False`: no store of that kind and name.
    pub const STORE_NOT_FOUND: &str = "StoreNotFound";
    /// `StoreReady=False`: the session names no store and the operator has no default one.
    pub const NO_DEFAULT_STORE: &str = "NoDefaultStore";
    /// `StoreReady=False`: the store's `allowedNamespaces` does not list the session's.
    pub const NAMESPACE_NOT_ALLOWED: &str = "NamespaceNotAllowed";
    /// `StoreReady=False`: the store is being deleted and takes no new session.
    pub const STORE_DELETED: &str = "StoreDeleted";
    /// The store's Secret does not exist.
    pub const SECRET_NOT_FOUND: &str = "SecretNotFound";
    /// The store's Secret lacks a key or holds one that is not text.
    pub const SECRET_INVALID: &str = "SecretInvalid";
    /// The operator may not read Secrets in the store's namespace; the chart's `secretNamespaces` lists where it may.
    pub const SECRET_FORBIDDEN: &str = "SecretForbidden";
    /// Ambient credentials were asked for and the operator's pod has none.
    pub const NO_AMBIENT_CREDENTIALS: &str = "NoAmbientCredentials";
    /// The endpoint is not on the operator's allow-list for tenants' stores.
    pub const ENDPOINT_NOT_ALLOWED: &str = "EndpointNotAllowed";
    /// The endpoint's name resolves to an address that is refused (loopback, link-local, pods, Services).
    pub const ENDPOINT_ADDRESS_REFUSED: &str = "EndpointAddressRefused";
    /// The store's specification cannot be used, for example its CA bundle is not PEM.
    pub const STORE_INVALID: &str = "StoreInvalid";
    /// The store answered `AccessDenied`: the key is known and may not do that.
    pub const ACCESS_DENIED: &str = "AccessDenied";
    /// The store does not know the access key.
    pub const INVALID_ACCESS_KEY_ID: &str = "InvalidAccessKeyId";
    /// The secret key is wrong.
    pub const SIGNATURE_DOES_NOT_MATCH: &str = "SignatureDoesNotMatch";
    /// The session token of the credentials is no longer valid.
    pub const EXPIRED_TOKEN: &str = "ExpiredToken";
    /// The clocks of operator and store are too far apart.
    pub const REQUEST_TIME_TOO_SKEWED: &str = "RequestTimeTooSkewed";
    /// The bucket does not exist.
    pub const NO_SUCH_BUCKET: &str = "NoSuchBucket";
    /// The bucket is in another region or behind another endpoint: the store answered with a redirect.
    pub const WRONG_REGION: &str = "WrongRegion";
    /// The store does not answer: name, connection, TLS, time-out, or 5xx.
    pub const STORE_UNAVAILABLE: &str = "StoreUnavailable";
    /// The store answered something that the probe does not accept; the message has its code.
    pub const STORE_ERROR: &str = "StoreError";
    /// The store accepts a create-only write over an object that exists.
    pub const CONDITIONAL_PUT_UNSUPPORTED: &str = "ConditionalPutUnsupported";
    /// The store has not been probed yet.
    pub const PROBING: &str = "Probing";

    /// `TargetsResolved=True`.
    pub const PODS_FOUND: &str = "PodsFound";
    /// `TargetsResolved=False`: nothing matches yet; the session keeps waiting until its end.
    pub const NO_PODS: &str = "NoPods";
    /// `TargetsResolved=False`: the workload named by `workloadRef` does not exist.
    pub const WORKLOAD_NOT_FOUND: &str = "WorkloadNotFound";

    /// `Collecting=True`.
    pub const RECORDING: &str = "Recording";
    /// `Collecting=False`: waiting for the store, pods or nodes.
    pub const WAITING: &str = "Waiting";
    /// `Collecting=False`: the window has passed, or `stop` is set.
    pub const WINDOW_ENDED: &str = "WindowEnded";
    /// `Collecting=False`, and of `failingNodes`: no node can run what was asked for.
    pub const UNSUPPORTED: &str = "Unsupported";
    /// `Collecting=False`: no store became ready, or no place in the namespace free, before `startDeadline`.
    pub const START_DEADLINE_EXCEEDED: &str = "StartDeadlineExceeded";
    /// `Collecting=False`, and of `failingNodes`: every place for a session on the node is taken.
    pub const NODE_CAPACITY: &str = "NodeCapacity";
    /// `Collecting=False`: as many sessions of the namespace record as may at the same time; it waits for one to end.
    pub const NAMESPACE_CAPACITY: &str = "NamespaceCapacity";
    /// `Collecting=False`: `stop` was set.
    pub const STOPPED: &str = "Stopped";

    /// `Uploaded=True`: every node acknowledged everything.
    pub const ALL_ACKNOWLEDGED: &str = "AllAcknowledged";
    /// `Uploaded=False`: uploads are under way.
    pub const UPLOADING: &str = "Uploading";
    /// `Uploaded=False`, `Degraded=True`, and of `failingNodes`: `drainTimeout` passed before every node had acknowledged everything.
    pub const DRAIN_TIMEOUT: &str = "DrainTimeout";
    /// `Uploaded=False`: what lies in the store is not what the nodes say they put there.
    pub const OBJECTS_MISSING: &str = "ObjectsMissing";
    /// `Uploaded=False`: the session failed before it recorded anything.
    pub const NOTHING_COLLECTED: &str = "NothingCollected";

    /// `Degraded=True`, and of `failingNodes`: a node with targets does not answer.
    pub const NODE_LOST: &str = "NodeLost";
    /// `Degraded=True`: a node with targets has no agent.
    pub const NO_AGENT: &str = "NoAgent";
    /// `Degraded=True`: some node cannot run a collector that is not optional.
    pub const COLLECTOR_UNSUPPORTED: &str = "CollectorUnsupported";
    /// `Degraded=True`: a node records some of its pods only.
    pub const TARGETS_MISSING: &str = "TargetsMissing";
    /// `Degraded=True`: events were lost; `totals.lost` says how many.
    pub const EVENTS_LOST: &str = "EventsLost";
    /// `Degraded=True`, `Uploaded=False`, `Collecting=False` where all did: a node failed; `failingNodes` says why.
    pub const NODE_FAILED: &str = "NodeFailed";
    /// `Degraded=False`, `BudgetExceeded=False`: nothing to report.
    pub const AS_EXPECTED: &str = "AsExpected";

    /// `BudgetExceeded=True`: events of some node are or were sampled to keep within eventsPerSecond or cpu; the message names it.
    pub const SAMPLING: &str = "Sampling";
    /// `BudgetExceeded=True`: the session was ended by its budget.
    pub const BUDGET_STOPPED: &str = "BudgetStopped";
}

/// Puts one condition into `conditions`: replaces the one of its type, keeps `lastTransitionTime` while `status` is
/// unchanged, and returns whether anything changed (so that an unchanged status costs no write).
pub fn set(
    conditions: &mut Vec<Condition>,
    type_: &str,
    status: Option<bool>,
    reason: &str,
    message: &str,
    observed_generation: Option<i64>,
    now: &Time,
) -> bool {
    let status = match status {
        Some(true) => "True",
        Some(false) => "False",
        None => "Unknown",
    };
    let message: String = message.chars().take(MESSAGE_MAX).collect();
    let position = conditions.iter().position(|c| c.type_ == type_);
    let before = position.map(|at| conditions[at].clone());
    let last_transition_time = match &before {
        Some(old) if old.status == status => old.last_transition_time.clone(),
        _ => now.clone(),
    };
    let after = Condition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message,
        observed_generation,
        last_transition_time,
    };
    if before.as_ref() == Some(&after) {
        return false;
    }
    match position {
        Some(at) => conditions[at] = after,
        None => conditions.push(after),
    }
    true
}

/// The condition of one type.
pub fn get<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.type_ == type_)
}

/// Whether the condition of one type is there and `True`.
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    get(conditions, type_).is_some_and(|c| c.status == "True")
}

/// Longest message, in characters; the rest is cut. The schema's limit is the same.
pub const MESSAGE_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::jiff::Timestamp;

    fn at(second: i64) -> Time {
        Time(Timestamp::from_second(second).unwrap())
    }

    #[test]
    fn the_same_condition_again_is_no_change() {
        let mut conditions = Vec::new();
        let mut set_ready = |status, second| {
            set(&mut conditions, store::READY, status, reason::PROBE_SUCCEEDED, "", Some(1), &at(second))
        };
        assert!(set_ready(Some(true), 1));
        assert!(!set_ready(Some(true), 2));
        assert!(set_ready(None, 3));
        assert_eq!(conditions.len(), 1);
        assert_eq!(conditions[0].last_transition_time, at(3));
    }

    #[test]
    fn a_new_reason_keeps_the_time_of_the_transition() {
        let mut conditions = Vec::new();
        set(&mut conditions, store::READY, Some(false), reason::ACCESS_DENIED, "", None, &at(1));
        assert!(set(&mut conditions, store::READY, Some(false), reason::NO_SUCH_BUCKET, "", None, &at(2)));
        assert_eq!(get(&conditions, store::READY).unwrap().last_transition_time, at(1));
        assert!(!is_true(&conditions, store::READY));
    }
}

// SPDX-License-Identifier: Apache-2.0

//! What the API server's refusals mean for whoever runs a command: its own words, and what to do next.

use anyhow::anyhow;
use kube::Error;
use kube::client::AuthError;
use kube::core::Status;

/// A refusal in the API server's words, with what to do when there is no such thing, or the caller has no right to it.
pub(crate) fn explain(error: Error, what: &str, missing: &str, forbidden: &str) -> anyhow::Error {
    let status = match error {
        Error::Api(status) => status,
        error => return unreachable(&error),
    };
    match status.code {
        404 => anyhow!("there is no {what}: {missing}"),
        403 => anyhow!("{what}: {}; {forbidden}", status.message),
        401 => anyhow!(
            "the API server does not know who you are ({}): log in to the cluster again; `kubectl auth whoami` says who you are \
             to it",
            status.message
        ),
        code @ (429 | 500..) => anyhow!(
            "{what}: the API server has trouble of its own ({code} {}): try again in a while",
            status.message.trim_end()
        ),
        code => anyhow!("{what}: the API server answered {code}: {}", status.message),
    }
}

/// The API server was not reached, or what answered is none.
fn unreachable(error: &Error) -> anyhow::Error {
    anyhow!(
        "the API server does not answer: {}; `kubectl cluster-info` tries the same, --context chooses another cluster",
        cause(error)
    )
}

/// The last of an error's causes, which names what happened; those above say only that something did.
pub(crate) fn cause(error: &Error) -> String {
    if let Error::Api(status) = error {
        return format!("{} {}", status.code, status.message);
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// Whether the same question may be answered later: the API server has trouble of its own, or the way to it has. Who the caller
/// is, and whether an answer can be understood, does not pass.
pub(crate) fn may_pass(error: &Error) -> bool {
    match error {
        Error::Api(status) => status.code == 429 || status.code >= 500,
        Error::HyperError(_) | Error::ReadEvents(_) => true,
        Error::Service(cause) => cause.downcast_ref::<AuthError>().is_none(),
        _ => false,
    }
}

/// Whether there is no such thing, in a cluster that has its kind.
pub(crate) fn is_gone(error: &Error) -> bool {
    matches!(error, Error::Api(status) if status.code == 404) && !is_no_kind(error)
}

/// Whether the API server does not know the kind at all. What has a name is answered with details; a path without a kind is not.
pub(crate) fn is_no_kind(error: &Error) -> bool {
    let Error::Api(status) = error else { return false };
    let kind = |status: &Status| status.details.as_ref().map(|details| details.kind.clone());
    status.code == 404 && kind(status).unwrap_or_default().is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_trouble_of_the_server_and_of_the_way_to_it_passes() {
        let api = |code| Error::Api(Box::new(Status { code, ..Status::default() }));
        let service = |error| Error::Service(error);
        for passes in [api(429), api(500), api(503), service("connection refused".into())] {
            assert!(may_pass(&passes), "{passes:?}");
        }
        let no_json = serde_json::from_str::<Status>("<html>").unwrap_err();
        let no_token = AuthError::AuthExec("aws eks get-token: expired".to_owned());
        for stays in [api(401), api(403), api(404), Error::SerdeError(no_json), service(no_token.into())] {
            assert!(!may_pass(&stays), "{stays:?}");
        }
    }
}

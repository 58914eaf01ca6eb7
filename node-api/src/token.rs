// SPDX-License-Identifier: Apache-2.0
//! Carries the agent's ServiceAccount token in a call's metadata.
//!
//! In: the token as the kubelet projects it into a file. Out: `authorization: Bearer <token>`, and
//! back. The value is marked sensitive, so that no layer logs it.

use tonic::metadata::{Ascii, MetadataMap, MetadataValue};

const HEADER: &str = "authorization";
const SCHEME: &str = "Bearer ";

/// The token cannot be carried in a header.
#[derive(Debug, thiserror::Error)]
#[error("the token is empty or has characters that a header cannot carry")]
pub struct BadToken;

/// Adds `token` to a call's metadata, replacing one already there. White space around it is dropped:
/// a projected file may end with a line feed.
///
/// # Errors
/// [`BadToken`] when it is empty or not printable ASCII.
pub fn attach(metadata: &mut MetadataMap, token: &str) -> Result<(), BadToken> {
    let token = token.trim();
    if token.is_empty() {
        return Err(BadToken);
    }
    let mut value: MetadataValue<Ascii> = format!("{SCHEME}{token}").parse().map_err(|_| BadToken)?;
    value.set_sensitive(true);
    metadata.insert(HEADER, value);
    Ok(())
}

/// The token a call carries; `None` when there is none or the scheme is another.
pub fn bearer(metadata: &MetadataMap) -> Option<&str> {
    let token = metadata.get(HEADER)?.to_str().ok()?.strip_prefix(SCHEME)?.trim();
    (!token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_arrives_as_it_was_attached_and_is_not_printed() {
        let mut metadata = MetadataMap::new();
        attach(&mut metadata, "abc.def.ghi\n").unwrap();
        assert_eq!(bearer(&metadata), Some("abc.def.ghi"));
        assert!(!format!("{metadata:?}").contains("abc.def"));
    }

    #[test]
    fn nothing_and_other_schemes_are_no_token() {
        let mut metadata = MetadataMap::new();
        assert_eq!(bearer(&metadata), None);
        metadata.insert(HEADER, "Basic abc".parse().unwrap());
        assert_eq!(bearer(&metadata), None);
        metadata.insert(HEADER, "Bearer ".parse().unwrap());
        assert_eq!(bearer(&metadata), None);
        assert!(attach(&mut metadata, " \n").is_err());
        assert!(attach(&mut metadata, "a\u{7f}b").is_err());
    }
}

// SPDX-License-Identifier: Apache-2.0
//! Whose identity signs: a Secret's access key, or the operator's own.
//!
//! In: a store's `credentials` and the namespace in which its Secret has to be. Out: a [`Credential`] and the version
//! of the Secret. A message names the Secret and its keys, never what they hold.

use std::fmt;

use crds::Credentials;
use crds::conditions::reason;
use k8s_openapi::api::core::v1::Secret;
use kube::api::Api;
use kube::{Client, ResourceExt};
use node_api::is_name;

use super::StoreProblem;

/// Whose identity signs requests.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// An access key.
    Key {
        /// As the store knows it.
        access_key_id: String,
        /// Signs; never shown.
        secret_access_key: String,
        /// Of temporary credentials.
        session_token: Option<String>,
    },
    /// What the operator's environment gives: web identity, EKS pod identity, instance role.
    Ambient,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key { .. } => f.write_str("Key(..)"),
            Self::Ambient => f.write_str("Ambient"),
        }
    }
}

const ACCESS_KEY_ID: &str = "accessKeyId";
const SECRET_ACCESS_KEY: &str = "secretAccessKey";
const SESSION_TOKEN: &str = "sessionToken";

/// The credential of a store, and the version of the Secret it is from (empty for the operator's own identity).
pub(super) async fn read(
    client: &Client,
    namespace: &str,
    credentials: &Credentials,
    may_be_ambient: bool,
) -> Result<(Credential, String), StoreProblem> {
    let Some(secret_ref) = &credentials.secret_ref else {
        // The API server's rules say the same; this is the last line before the operator's identity is lent out.
        if may_be_ambient && credentials.ambient == Some(true) {
            return Ok((Credential::Ambient, String::new()));
        }
        return Err(StoreProblem::new(
            reason::STORE_INVALID,
            "spec.credentials.secretRef is missing: only a ClusterTraceStore may use ambient credentials",
        ));
    };
    let name = &secret_ref.name;
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let asked = if is_name(name) { api.get_opt(name).await } else { Ok(None) };
    let secret = match asked {
        Ok(Some(secret)) => secret,
        Ok(None) => {
            return Err(StoreProblem::new(
                reason::SECRET_NOT_FOUND,
                format!("there is no Secret {name} in namespace {namespace}"),
            ));
        }
        Err(kube::Error::Api(status)) if status.code == 403 => {
            return Err(StoreProblem::new(
                reason::SECRET_FORBIDDEN,
                format!(
                    "the operator may not read Secrets in namespace {namespace}: an administrator has to add it to the \
                     chart's operator.secretNamespaces"
                ),
            ));
        }
        Err(error) => {
            return Err(StoreProblem::new(
                reason::STORE_UNAVAILABLE,
                format!("the API server did not answer for Secret {namespace}/{name}: {error}"),
            ));
        }
    };
    let version = secret.resource_version().unwrap_or_default();
    parse(&secret, namespace, name).map(|credential| (credential, version))
}

/// The longest value of a Secret: tokens of a session are the longest, and have a few thousand.
const VALUE_MAX: usize = 16 << 10;

fn parse(secret: &Secret, namespace: &str, name: &str) -> Result<Credential, StoreProblem> {
    let text = |key: &str| -> Result<Option<String>, StoreProblem> {
        let Some(value) = secret.data.as_ref().and_then(|data| data.get(key)) else { return Ok(None) };
        // A newline at the end is what `echo` leaves behind; anything else that is not printable is a mistake.
        let text = std::str::from_utf8(&value.0).unwrap_or("\u{0}").trim_end_matches(['\r', '\n']);
        let wrong = if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            "is empty or holds more than printable ASCII".to_owned()
        } else if text.len() > VALUE_MAX {
            format!("has {} bytes, no credential has more than {VALUE_MAX}", text.len())
        } else {
            return Ok(Some(text.to_owned()));
        };
        let message = format!("key {key} of Secret {namespace}/{name} {wrong}");
        Err(StoreProblem::new(reason::SECRET_INVALID, message))
    };
    let required = |key: &str| {
        text(key)?.ok_or_else(|| {
            StoreProblem::new(
                reason::SECRET_INVALID,
                format!("Secret {namespace}/{name} has no key {key}; it needs {ACCESS_KEY_ID} and {SECRET_ACCESS_KEY}"),
            )
        })
    };
    Ok(Credential::Key {
        access_key_id: required(ACCESS_KEY_ID)?,
        secret_access_key: required(SECRET_ACCESS_KEY)?,
        session_token: text(SESSION_TOKEN)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;

    fn secret(pairs: &[(&str, &str)]) -> Secret {
        let data =
            pairs.iter().map(|(key, value)| ((*key).to_owned(), ByteString(value.as_bytes().to_vec())));
        Secret { data: Some(data.collect()), ..Secret::default() }
    }

    #[test]
    fn a_secret_with_a_trailing_newline_is_read() {
        let found =
            parse(&secret(&[("accessKeyId", "id\n"), ("secretAccessKey", "key\n")]), "ns", "s").unwrap();
        let wanted = Credential::Key {
            access_key_id: "id".to_owned(),
            secret_access_key: "key".to_owned(),
            session_token: None,
        };
        assert!(found == wanted);
    }

    #[test]
    fn a_secret_without_a_key_says_which() {
        let problem = parse(&secret(&[("accessKeyId", "id")]), "ns", "s").unwrap_err();
        assert_eq!(problem.reason, reason::SECRET_INVALID);
        assert!(problem.message.contains("secretAccessKey"), "{problem}");
    }

    #[test]
    fn a_message_never_holds_a_value() {
        let problem = parse(&secret(&[("accessKeyId", "hun\u{7}ter2"), ("secretAccessKey", "x")]), "ns", "s")
            .unwrap_err();
        assert!(!problem.message.contains("ter2"), "{problem}");
        let key = Credential::Key {
            access_key_id: "hunter2".to_owned(),
            secret_access_key: "hunter2".to_owned(),
            session_token: None,
        };
        assert!(!format!("{key:?}").contains("hunter2"));
    }
}

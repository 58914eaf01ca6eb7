// SPDX-License-Identifier: Apache-2.0
//! Where the operator may connect to on behalf of a store, and the clients that keep to it.
//!
//! In: a store's `s3`, its credential and, for a tenant's store, the policy. Out: a signer and an HTTP client. Both
//! follow no redirect, trust the public roots that are built in plus the store's CA bundle and the chart's, and, under a policy,
//! refuse addresses after the name was resolved and before anything is sent, so that a name cannot be bent to the API server, a
//! metadata service or another tenant's pod. A proxy would hide that, so none is used then; without a policy it is the
//! environment's (`HTTPS_PROXY` and the like), as agents do with a grant (`node-agent/src/pipeline/upload`).
//!
//! No answer is longer than [`Bounded`] lets it be: a store may be anybody's, and object_store reads lists and errors whole.
//!
//! The public roots are built in because the operator's image is `FROM scratch`: there are no system certificates.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crds::S3;
use crds::conditions::reason;
use dataset::closing::Effort;
use http_body_util::{BodyExt, Limited};
use node_api::egress::{AddressRefused, Guard};
use object_store::ClientOptions;
use object_store::aws::{AmazonS3Builder, S3ConditionalPut};
use object_store::client::{
    ClientConfigKey, HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService,
};

use super::{Connection, Credential, StoreProblem};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Of a whole request: manifests and listings are small.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// A list of 1,000 keys of 1,024 characters, each three times as long in XML, has half of it.
const LIST_MAX: u64 = 8 << 20;
/// Errors in XML are short.
const ERROR_MAX: u64 = 64 << 10;

/// The word that stands for AWS itself on the allow-list: a store without an endpoint.
const AWS: &str = "aws";

/// What tenants' stores may reach.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointPolicy {
    /// Endpoints as `https://minio.example.com:9000`, `https://*.storage.example.com` where buckets have hosts of their own, or `aws`
    /// for stores without one. Empty: none.
    pub allowed: Vec<String>,
    /// What is refused wherever an endpoint's name leads: besides loopback, link-local and the like, pods and Services.
    pub guard: Guard,
}

impl EndpointPolicy {
    /// Whether a tenant's store may name this endpoint; what it resolves to is checked at each connection. Without `path_style` the
    /// bucket's name, which the tenant chooses, is a part of the host.
    ///
    /// # Errors
    /// `EndpointNotAllowed`, or `EndpointAddressRefused` for an address in the place of a name.
    pub fn admit(&self, endpoint: Option<&str>, path_style: bool) -> Result<(), StoreProblem> {
        let wanted = endpoint.map_or_else(|| AWS.to_owned(), normal);
        let wanted = if path_style { wanted } else { wanted.replacen("://", "://*.", 1) };
        if !self.allowed.iter().any(|allowed| normal(allowed) == wanted) {
            return Err(StoreProblem::new(
                reason::ENDPOINT_NOT_ALLOWED,
                format!(
                    "endpoint {wanted} is not one that tenants' stores may use: use a ClusterTraceStore, or have an \
                     administrator add it to the chart's operator.tenantEndpoints"
                ),
            ));
        }
        // An address in the URL is never resolved, so it is checked here.
        self.guard.admit(host(&wanted)).map_err(|address| refused(&address))
    }
}

fn refused(address: &AddressRefused) -> StoreProblem {
    StoreProblem::new(reason::ENDPOINT_ADDRESS_REFUSED, address.to_string())
}

/// Finds an address that was refused among an error's causes.
pub(super) fn find_refused(error: &(dyn std::error::Error + 'static)) -> Option<StoreProblem> {
    AddressRefused::find(error).map(refused)
}

/// One spelling of an endpoint: lower case, no default port, no slash at the end.
fn normal(endpoint: &str) -> String {
    let text = endpoint.trim_end_matches('/').to_ascii_lowercase();
    let default_port = if text.starts_with("https:") { ":443" } else { ":80" };
    text.strip_suffix(default_port).map(str::to_owned).unwrap_or(text)
}

fn host(endpoint: &str) -> &str {
    let authority = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest);
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split(']').next().unwrap_or_default();
    }
    authority.split(':').next().unwrap_or_default()
}

/// What every client for one store has in common.
#[derive(Clone)]
struct Transport {
    roots: Vec<reqwest::Certificate>,
    guard: Option<Guard>,
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport").field("guard", &self.guard).finish_non_exhaustive()
    }
}

impl Transport {
    fn client(&self, https_only: bool) -> Result<reqwest::Client, reqwest::Error> {
        let mut builder = reqwest::Client::builder()
            .https_only(https_only)
            .redirect(reqwest::redirect::Policy::none())
            .tls_certs_only(self.roots.iter().cloned())
            .user_agent(concat!("tracelake-operator/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(REQUEST_TIMEOUT);
        if let Some(guard) = &self.guard {
            builder = builder.no_proxy().dns_resolver(guard.resolver());
        }
        builder.build()
    }
}

impl HttpConnector for Transport {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let allow_http =
            options.get_config_value(&ClientConfigKey::AllowHttp).is_some_and(|value| value == "true");
        let client = self
            .client(!allow_http)
            .map_err(|error| object_store::Error::Generic { store: "S3", source: Box::new(error) })?;
        Ok(HttpClient::new(Bounded(client)))
    }
}

/// Ends answers that are longer than anything that is asked for.
#[derive(Debug)]
struct Bounded(reqwest::Client);

#[tonic::async_trait]
impl HttpService for Bounded {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let is_list = request.uri().query().is_some_and(|query| query.contains("list-type="));
        let has_body = request.method() != http::Method::HEAD;
        let answer = HttpService::call(&self.0, request).await?;
        let most = match (answer.status().is_success(), is_list) {
            (false, _) => ERROR_MAX,
            (true, true) => LIST_MAX,
            // The longest of what is read whole.
            (true, false) => Effort::Large.manifest(),
        };
        let told = answer.headers().get(http::header::CONTENT_LENGTH);
        let told = told.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if told.is_some_and(|told| told > most) && has_body {
            // Room for all of it might be made at once.
            let told = std::io::Error::other(format!("an answer of more than {most} bytes"));
            return Err(HttpError::new(HttpErrorKind::Decode, told));
        }
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        // Too long, or what the connection says.
        let ended = |error: Box<dyn std::error::Error + Send + Sync>| match error.downcast::<HttpError>() {
            Ok(error) => *error,
            Err(error) => HttpError::new_boxed(HttpErrorKind::Decode, error),
        };
        Ok(answer.map(|body| HttpResponseBody::new(Limited::new(body, most).map_err(ended))))
    }
}

/// Makes the clients of one store.
pub(super) fn connect(
    s3: &S3,
    credential: &Credential,
    guard: Option<Guard>,
    extra_ca: Option<&str>,
) -> Result<Connection, StoreProblem> {
    let invalid = |message: String| StoreProblem::new(reason::STORE_INVALID, message);
    let mut roots: Vec<reqwest::Certificate> = webpki_root_certs::TLS_SERVER_ROOT_CERTS
        .iter()
        .map(|root| reqwest::Certificate::from_der(root))
        .collect::<Result<_, _>>()
        .map_err(|error| invalid(format!("the built-in root certificates cannot be used: {error}")))?;
    if let Some(bundle) = &s3.ca_bundle {
        let own = reqwest::Certificate::from_pem_bundle(bundle.as_bytes()).map_err(|error| {
            invalid(format!("spec.s3.caBundle is not a list of certificates in PEM: {error}"))
        })?;
        if own.is_empty() {
            return Err(invalid("spec.s3.caBundle holds no certificate in PEM".to_owned()));
        }
        roots.extend(own);
    }
    if let Some(extra) = extra_ca {
        roots.extend(reqwest::Certificate::from_pem_bundle(extra.as_bytes()).map_err(|error| {
            invalid(format!(
                "the extra CA of the chart's values is not a list of certificates in PEM: {error}"
            ))
        })?);
    }
    // With a line's end between, which a bundle may lack.
    let ca_bundle: Vec<&str> = s3.ca_bundle.as_deref().into_iter().chain(extra_ca).collect();
    let ca_bundle = ca_bundle.join("\n");
    let transport = Transport { roots, guard: guard.clone() };
    let plain = s3.endpoint.as_deref().is_some_and(|endpoint| endpoint.starts_with("http://"));
    let http = transport
        .client(!plain)
        .map_err(|error| invalid(format!("no HTTP client can be made for the store: {error}")))?;

    let ambient = *credential == Credential::Ambient;
    let mut builder = match credential {
        // Web identity, pod identity and instance roles are told to the process by its environment.
        Credential::Ambient => AmazonS3Builder::from_env(),
        Credential::Key { access_key_id, secret_access_key, session_token } => {
            let builder = AmazonS3Builder::new()
                .with_access_key_id(access_key_id)
                .with_secret_access_key(secret_access_key);
            match session_token {
                Some(token) => builder.with_token(token),
                None => builder,
            }
        }
    };
    builder = builder
        .with_bucket_name(&s3.bucket)
        .with_region(&s3.region)
        .with_allow_http(plain)
        .with_virtual_hosted_style_request(!s3.path_style())
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_http_connector(transport);
    if let Some(endpoint) = &s3.endpoint {
        builder = builder.with_endpoint(if s3.path_style() {
            endpoint.clone()
        } else {
            // The builder takes an endpoint of this style as complete.
            endpoint.replacen("://", &format!("://{}.", s3.bucket), 1)
        });
    }
    let s3 = builder
        .build()
        .map_err(|error| invalid(format!("the store's specification cannot be used: {error}")))?;
    Ok(Connection { s3: Arc::new(s3), http, ambient, ca_bundle, guard })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(allowed: &[&str], refused: &[&str]) -> EndpointPolicy {
        EndpointPolicy {
            allowed: allowed.iter().map(|&text| text.to_owned()).collect(),
            guard: Guard { refused: refused.iter().map(|text| text.parse().unwrap()).collect() },
        }
    }

    #[test]
    fn tenants_reach_nothing_by_default() {
        let none = EndpointPolicy::default();
        assert_eq!(none.admit(None, false).unwrap_err().reason, reason::ENDPOINT_NOT_ALLOWED);
        assert_eq!(
            none.admit(Some("https://minio.example.com"), true).unwrap_err().reason,
            reason::ENDPOINT_NOT_ALLOWED
        );
    }

    #[test]
    fn tenants_reach_what_is_listed_in_any_spelling() {
        let some = policy(&["https://MinIO.example.com:443/", "aws"], &[]);
        assert!(some.admit(Some("https://minio.example.com"), true).is_ok());
        assert!(some.admit(None, false).is_ok());
        for other in [
            "http://minio.example.com",
            "https://minio.example.com:9000",
            "https://minio.example.com.evil.org",
        ] {
            assert_eq!(
                some.admit(Some(other), true).unwrap_err().reason,
                reason::ENDPOINT_NOT_ALLOWED,
                "{other}"
            );
        }
    }

    #[test]
    fn a_bucket_is_a_part_of_a_listed_host_only_where_the_list_says_so() {
        let one = policy(&["https://storage.example.com"], &[]);
        let said = one.admit(Some("https://storage.example.com"), false).unwrap_err();
        assert_eq!(said.reason, reason::ENDPOINT_NOT_ALLOWED);
        assert!(said.message.contains("https://*.storage.example.com"), "{}", said.message);
        let any = policy(&["https://*.storage.example.com"], &[]);
        assert!(any.admit(Some("https://storage.example.com"), false).is_ok());
        assert!(any.admit(Some("https://storage.example.com"), true).is_err());
    }

    #[test]
    fn an_address_in_the_place_of_a_name_is_checked_too() {
        let some =
            policy(&["http://127.0.0.1:9000", "http://[::1]:9000", "http://10.96.0.1"], &["10.96.0.0/16"]);
        for endpoint in ["http://127.0.0.1:9000", "http://[::1]:9000", "http://10.96.0.1"] {
            let problem = some.admit(Some(endpoint), true).unwrap_err();
            assert_eq!(problem.reason, reason::ENDPOINT_ADDRESS_REFUSED, "{endpoint}");
        }
    }
}

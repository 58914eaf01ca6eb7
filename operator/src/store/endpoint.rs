// SPDX-License-Identifier: Apache-2.0
//! Where the operator may connect to on behalf of a store, and the clients that keep to it.
//!
//! In: a store's `s3`, its credential and, for a tenant's store, the policy. Out: a signer and an HTTP client. Both
//! follow no redirect, trust the public roots that are built in plus the store's CA bundle, and, under a policy, refuse
//! addresses after the name was resolved and before anything is sent, so that a name cannot be bent to the API server, a
//! metadata service or another tenant's pod (a proxy would hide that, so none is used then).
//!
//! The public roots are built in because the operator's image is `FROM scratch`: there are no system certificates.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crds::S3;
use crds::conditions::reason;
use object_store::ClientOptions;
use object_store::aws::{AmazonS3Builder, S3ConditionalPut};
use object_store::client::{ClientConfigKey, HttpClient, HttpConnector};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::{Connection, Credential, StoreProblem};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Of a whole request: manifests and listings are small.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// The word that stands for AWS itself on the allow-list: a store without an endpoint.
const AWS: &str = "aws";

/// A block of addresses, as `10.244.0.0/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = || format!("{text:?} is not a network such as 10.244.0.0/16 or fd00::/8");
        let (address, bits) = text.split_once('/').ok_or_else(error)?;
        let address: IpAddr = address.parse().map_err(|_| error())?;
        let bits: u8 = bits.parse().map_err(|_| error())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        if bits > most { Err(error()) } else { Ok(Self { address, bits }) }
    }
}

impl Network {
    /// Whether an address is in the block.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(net), IpAddr::V4(address)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.bits)).unwrap_or(0);
                u32::from(net) & mask == u32::from(address) & mask
            }
            (IpAddr::V6(net), IpAddr::V6(address)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.bits)).unwrap_or(0);
                u128::from(net) & mask == u128::from(address) & mask
            }
            _ => false,
        }
    }
}

/// What tenants' stores may reach.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointPolicy {
    /// Endpoints as `https://minio.example.com:9000`, or `aws` for stores without one. Empty: none.
    pub allowed: Vec<String>,
    /// Networks that are refused besides loopback, link-local and the like: pods and Services.
    pub refused: Vec<Network>,
}

impl EndpointPolicy {
    /// Whether a tenant's store may name this endpoint; what it resolves to is checked at each connection.
    ///
    /// # Errors
    /// `EndpointNotAllowed`, or `EndpointAddressRefused` for an address in the place of a name.
    pub fn admit(&self, endpoint: Option<&str>) -> Result<(), StoreProblem> {
        let wanted = endpoint.map_or_else(|| AWS.to_owned(), normal);
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
        match host(&wanted).parse::<IpAddr>() {
            Ok(address) if self.refuses(address) => Err(refused(&wanted, address)),
            _ => Ok(()),
        }
    }

    /// Whether connections to this address are refused.
    pub fn refuses(&self, address: IpAddr) -> bool {
        let address = address.to_canonical(); // ::ffff:127.0.0.1 is 127.0.0.1
        let special = match address {
            IpAddr::V4(v4) => {
                v4.is_loopback()
                    || v4.is_link_local()
                    || v4.is_unspecified()
                    || v4.is_multicast()
                    || v4.is_broadcast()
                    || v4.octets()[0] == 0
                    || v4 == Ipv4Addr::new(100, 100, 100, 200) // a cloud's metadata service outside link-local
            }
            IpAddr::V6(v6) => {
                v6.is_loopback()
                    || v6.is_unicast_link_local()
                    || v6.is_unspecified()
                    || v6.is_multicast()
                    || v6 == Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254) // EC2's metadata service
            }
        };
        special || self.refused.iter().any(|network| network.contains(address))
    }
}

fn refused(endpoint: &str, address: IpAddr) -> StoreProblem {
    StoreProblem::new(
        reason::ENDPOINT_ADDRESS_REFUSED,
        format!(
            "{endpoint} is at {address}, where tenants' stores may not be (loopback, link-local, pods, Services)"
        ),
    )
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

/// An address that the policy refuses, on its way through the HTTP client's errors.
#[derive(Debug)]
pub(super) struct AddressRefused {
    host: String,
    address: IpAddr,
}

impl fmt::Display for AddressRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is at {}, which is refused", self.host, self.address)
    }
}

impl std::error::Error for AddressRefused {}

impl AddressRefused {
    /// Finds it among an error's causes.
    pub(super) fn find(error: &(dyn std::error::Error + 'static)) -> Option<StoreProblem> {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if let Some(found) = error.downcast_ref::<Self>() {
                return Some(refused(&found.host, found.address));
            }
            cause = error.source();
        }
        None
    }
}

/// Resolves names, and refuses a name if any of its addresses is refused.
struct GuardedResolver(EndpointPolicy);

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let policy = self.0.clone();
        Box::pin(async move {
            let host = name.as_str().to_owned();
            let addresses: Vec<_> = tokio::net::lookup_host((host.as_str(), 0)).await?.collect();
            if let Some(bad) = addresses.iter().find(|address| policy.refuses(address.ip())) {
                return Err(AddressRefused { host, address: bad.ip() }.into());
            }
            let addresses: Addrs = Box::new(addresses.into_iter());
            Ok(addresses)
        })
    }
}

/// What every client for one store has in common.
#[derive(Clone)]
struct Transport {
    roots: Vec<reqwest::Certificate>,
    policy: Option<EndpointPolicy>,
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport").field("policy", &self.policy).finish_non_exhaustive()
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
        if let Some(policy) = &self.policy {
            builder = builder.no_proxy().dns_resolver(Arc::new(GuardedResolver(policy.clone())));
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
        Ok(HttpClient::new(client))
    }
}

/// Makes the clients of one store.
pub(super) fn connect(
    s3: &S3,
    credential: &Credential,
    policy: Option<EndpointPolicy>,
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
    let transport = Transport { roots, policy };
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
    Ok(Connection { s3: Arc::new(s3), http, ambient })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(allowed: &[&str], refused: &[&str]) -> EndpointPolicy {
        EndpointPolicy {
            allowed: allowed.iter().map(|&text| text.to_owned()).collect(),
            refused: refused.iter().map(|text| text.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn tenants_reach_nothing_by_default() {
        let none = EndpointPolicy::default();
        assert_eq!(none.admit(None).unwrap_err().reason, reason::ENDPOINT_NOT_ALLOWED);
        assert_eq!(
            none.admit(Some("https://minio.example.com")).unwrap_err().reason,
            reason::ENDPOINT_NOT_ALLOWED
        );
    }

    #[test]
    fn tenants_reach_what_is_listed_in_any_spelling() {
        let some = policy(&["https://MinIO.example.com:443/", "aws"], &[]);
        assert!(some.admit(Some("https://minio.example.com")).is_ok());
        assert!(some.admit(None).is_ok());
        for other in [
            "http://minio.example.com",
            "https://minio.example.com:9000",
            "https://minio.example.com.evil.org",
        ] {
            assert_eq!(some.admit(Some(other)).unwrap_err().reason, reason::ENDPOINT_NOT_ALLOWED, "{other}");
        }
    }

    #[test]
    fn an_address_in_the_place_of_a_name_is_checked_too() {
        let some =
            policy(&["http://127.0.0.1:9000", "http://[::1]:9000", "http://10.96.0.1"], &["10.96.0.0/16"]);
        for endpoint in ["http://127.0.0.1:9000", "http://[::1]:9000", "http://10.96.0.1"] {
            let problem = some.admit(Some(endpoint)).unwrap_err();
            assert_eq!(problem.reason, reason::ENDPOINT_ADDRESS_REFUSED, "{endpoint}");
        }
    }

    #[test]
    fn special_and_listed_addresses_are_refused_in_both_families() {
        let some = policy(&[], &["10.244.0.0/16", "fd00:10::/32"]);
        for address in [
            "127.0.0.1",
            "127.8.8.8",
            "169.254.169.254",
            "0.0.0.0",
            "0.1.2.3",
            "224.0.0.1",
            "::1",
            "fe80::1",
            "::",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "10.244.3.4",
            "fd00:10::7",
            "fd00:ec2::254",
            "100.100.100.200",
        ] {
            assert!(some.refuses(address.parse().unwrap()), "{address}");
        }
        for address in ["10.245.0.1", "192.168.1.1", "8.8.8.8", "2001:db8::1", "fd00:11::7"] {
            assert!(!some.refuses(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn networks_are_read_or_refused() {
        let all: Network = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains("203.0.113.9".parse().unwrap()));
        assert!(!all.contains("::1".parse().unwrap()));
        for text in ["10.0.0.0", "10.0.0.0/33", "fd00::/129", "x/8", "10.0.0.0/-1"] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
    }
}

// SPDX-License-Identifier: Apache-2.0
//! The operator's own CA: kept in a Secret, published in a ConfigMap, used by the running server.
//!
//! In: the Secret [`SECRET`] in the operator's namespace (deleted, or annotated with [`ROTATE`], it asks for a
//! new CA). Out: the ConfigMap [`CA_CONFIG_MAP`] in the agents' namespace, and the certificate that
//! [`Serving`] presents at each handshake; neither streams nor the server are restarted.
//!
//! Order: the Secret is written before anything is published or served, so two operators that overlap during
//! a rollout agree on one CA (the loser of a create or of a replace reads again).

mod material;

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use node_api::CA_CONFIG_MAP;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_util::sync::CancellationToken;

pub use material::{Material, Settings, State};

/// The Secret that holds CA and serving certificate with their keys.
pub const SECRET: &str = "tracelake-operator-tls";
/// Annotation on the Secret that asks for a new CA, whatever its value.
pub const ROTATE: &str = "tracelake.dev/rotate-ca";

const CA: &str = "ca.crt";
const CA_KEY: &str = "ca.key";
const PREVIOUS: &str = "previous-ca.crt";
const TLS: &str = "tls.crt";
const TLS_KEY: &str = "tls.key";
const STATE: &str = "state.json";

/// How often the Secret is read. A replacement asked for begins within this time.
const PERIOD: Duration = Duration::from_secs(10);

/// The certificate in use; the server asks it at each handshake.
#[derive(Debug, Default)]
pub struct Serving {
    current: RwLock<Option<Arc<CertifiedKey>>>,
}

impl Serving {
    fn set(&self, material: &Material) -> anyhow::Result<()> {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(material.tls.as_bytes()).collect();
        let key = PrivateKeyDer::from_pem_slice(material.tls_key.as_bytes()).context("serving key")?;
        let key = rustls::crypto::ring::sign::any_supported_type(&key).context("serving key")?;
        let certified = CertifiedKey::new(chain.context("serving certificate")?, key);
        *self.current.write().expect("no panic while held") = Some(Arc::new(certified));
        Ok(())
    }
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current.read().expect("no panic while held").clone()
    }
}

/// Keeps Secret, ConfigMap and [`Serving`] in step.
pub struct Keeper {
    secrets: Api<Secret>,
    config_maps: Api<ConfigMap>,
    settings: Settings,
    serving: Arc<Serving>,
    held: Option<Material>,
}

impl Keeper {
    /// Keeps the Secret in `namespace` and the ConfigMap in `agent_namespace`.
    pub fn new(client: Client, namespace: &str, agent_namespace: &str, settings: Settings) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), namespace),
            config_maps: Api::namespaced(client, agent_namespace),
            settings,
            serving: Arc::default(),
            held: None,
        }
    }

    /// The certificate in use.
    pub fn serving(&self) -> Arc<Serving> {
        self.serving.clone()
    }

    /// Brings everything to what is due now. The first call makes or loads the CA.
    ///
    /// # Errors
    /// When the API server refuses or cannot be reached; what was served stays served.
    pub async fn step(&mut self, now: Timestamp) -> anyhow::Result<()> {
        let found = self.secrets.get_opt(SECRET).await.with_context(|| format!("read Secret {SECRET}"))?;
        let read = found.as_ref().and_then(read);
        let rotate = found
            .as_ref()
            .and_then(|s| s.metadata.annotations.as_ref())
            .is_some_and(|a| a.contains_key(ROTATE));
        let next = match (&read, &self.held) {
            (Some(read), _) => read.advance(&self.settings, rotate, now)?,
            (None, Some(held)) => held.after_deletion(&self.settings, now)?,
            (None, None) => Material::new(&self.settings, self.published().await?, now)?,
        };
        if read.as_ref() != Some(&next) || rotate {
            self.write(found.as_ref(), &next).await?;
            tracing::info!(replacing = next.state.serve_after.is_some(), "certificates written");
        }
        self.publish(&next).await?;
        if self.held.as_ref().is_none_or(|held| held.tls != next.tls) {
            self.serving.set(&next)?;
            tracing::info!(not_after = %next.state.tls_not_after, "serving certificate in use");
        }
        self.held = Some(next);
        Ok(())
    }

    /// Steps until stopped.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(PERIOD);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            if let Err(error) = self.step(Timestamp::now()).await {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "certificates not brought up to date, will retry"
                );
            }
        }
    }

    async fn published(&self) -> anyhow::Result<Option<String>> {
        let found = self.config_maps.get_opt(CA_CONFIG_MAP).await.context("read the CA ConfigMap")?;
        Ok(found.and_then(|map| map.data?.remove(node_api::CA_KEY)))
    }

    async fn write(&self, found: Option<&Secret>, next: &Material) -> anyhow::Result<()> {
        let mut secret = store(next)?;
        let written = match found {
            None => self.secrets.create(&PostParams::default(), &secret).await,
            Some(found) => {
                secret.metadata.resource_version.clone_from(&found.metadata.resource_version);
                secret.metadata.labels.clone_from(&found.metadata.labels);
                self.secrets.replace(SECRET, &PostParams::default(), &secret).await
            }
        };
        written.map(drop).with_context(|| format!("write Secret {SECRET}"))
    }

    async fn publish(&self, next: &Material) -> anyhow::Result<()> {
        let wanted = next.published();
        let found = self.config_maps.get_opt(CA_CONFIG_MAP).await.context("read the CA ConfigMap")?;
        let held = found.as_ref().and_then(|map| map.data.as_ref()?.get(node_api::CA_KEY));
        if held == Some(&wanted) {
            return Ok(());
        }
        let data = BTreeMap::from([(node_api::CA_KEY.to_owned(), wanted)]);
        let written = match found {
            None => {
                let metadata = ObjectMeta {
                    name: Some(CA_CONFIG_MAP.to_owned()),
                    labels: labels(),
                    ..Default::default()
                };
                let map = ConfigMap { metadata, data: Some(data), ..Default::default() };
                self.config_maps.create(&PostParams::default(), &map).await
            }
            Some(mut map) => {
                map.data = Some(data);
                self.config_maps.replace(CA_CONFIG_MAP, &PostParams::default(), &map).await
            }
        };
        written.map(drop).with_context(|| format!("write ConfigMap {CA_CONFIG_MAP}"))
    }
}

fn labels() -> Option<BTreeMap<String, String>> {
    let labels =
        [("app.kubernetes.io/name", "tracelake"), ("app.kubernetes.io/managed-by", "tracelake-operator")];
    Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into())
}

/// What a Secret holds; none if a part is missing or unreadable (it is then made anew).
fn read(secret: &Secret) -> Option<Material> {
    let data = secret.data.as_ref()?;
    let text = |key: &str| String::from_utf8(data.get(key)?.0.clone()).ok();
    Some(Material {
        ca: text(CA)?,
        ca_key: text(CA_KEY)?,
        tls: text(TLS)?,
        tls_key: text(TLS_KEY)?,
        previous_ca: text(PREVIOUS),
        state: serde_json::from_str(&text(STATE)?).ok()?,
    })
}

fn store(material: &Material) -> anyhow::Result<Secret> {
    let mut data = BTreeMap::from([
        (CA, material.ca.clone()),
        (CA_KEY, material.ca_key.clone()),
        (TLS, material.tls.clone()),
        (TLS_KEY, material.tls_key.clone()),
        (STATE, serde_json::to_string(&material.state)?),
    ]);
    if let Some(previous) = &material.previous_ca {
        data.insert(PREVIOUS, previous.clone());
    }
    let data =
        data.into_iter().map(|(key, value)| (key.to_owned(), ByteString(value.into_bytes()))).collect();
    let metadata = ObjectMeta { name: Some(SECRET.to_owned()), labels: labels(), ..Default::default() };
    Ok(Secret { metadata, data: Some(data), type_: Some("Opaque".to_owned()), ..Default::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_read_back_as_it_was_written_and_a_broken_one_is_not() {
        let settings = Settings { names: vec!["operator".to_owned()], propagation: Duration::from_secs(1) };
        let now = Timestamp::from_second(1_790_000_000).unwrap();
        let material = Material::new(&settings, Some("old".to_owned()), now).unwrap();
        let mut secret = store(&material).unwrap();
        assert_eq!(read(&secret), Some(material.clone()));
        secret.data.as_mut().unwrap().remove(TLS_KEY);
        assert_eq!(read(&secret), None);
        let serving = Serving::default();
        serving.set(&material).unwrap();
        assert!(serving.current.read().unwrap().is_some());
    }
}

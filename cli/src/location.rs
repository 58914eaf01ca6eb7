// SPDX-License-Identifier: Apache-2.0

//! Where a dataset is: a folder, an `s3://bucket/prefix` URL, or a session of a cluster.
//!
//! S3 is reached with the caller's own credentials, in the way other tools do: `AWS_ACCESS_KEY_ID`,
//! `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, `AWS_ENDPOINT_URL`, a [profile](crate::profile), or the machine's role. For a session that a
//! cluster names, what the environment leaves out is as its status says, and what that leaves out as the profile does. With
//! `--via-operator` no credentials of the store are needed.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use dataset::key::{Key, SessionPrefix};
use dataset::reader::{self, Contents, ReadError};
use node_api::is_name;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::local::LocalFileSystem;
use object_store::{ClientConfigKey, ObjectStore};

use crate::cluster::{Cluster, Dataset, SYSTEM};
use crate::profile::{self, Profile};
use crate::program;
use crate::sessions::Sessions;
use crate::via::{Source, ViaOperator};

/// What the commands that read are told about a place.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Place {
    /// A folder, an s3://bucket/prefix, or a session of the cluster: NAMESPACE/NAME, or NAME in the context's namespace. A folder of
    /// that name goes first.
    place: String,
    /// The session's namespace; PLACE is then its name.
    #[arg(short, long)]
    namespace: Option<String>,
    /// Context of the kubeconfig.
    #[arg(long)]
    context: Option<String>,
    #[command(flatten)]
    access: Access,
}

/// How long a request may take that writes a file, where `AWS_TIMEOUT` does not say otherwise: 64 MiB at 1 Mbit/s.
const WRITING: &str = "600s";

/// What a store is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Read,
    Write,
    /// By the agent, which gives requests up and repeats them itself.
    #[cfg(target_os = "linux")]
    Record,
}

/// How the data of a session of the cluster are read.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Access {
    /// Read a session of the cluster by URLs that the operator signs, without credentials of its store.
    #[arg(long)]
    pub(crate) via_operator: bool,
    /// ServiceAccount in the session's namespace whose right to read is used; a token of it is made for this command.
    #[arg(long, value_name = "NAME", default_value = "tracelake-reader", requires = "via_operator")]
    service_account: String,
    /// HOST:PORT where the store is reached from here, if not under the name that the cluster knows: a forwarded port.
    #[arg(long, value_name = "HOST:PORT", requires = "via_operator")]
    store_address: Option<String>,
    /// Where the chart is installed.
    #[arg(long, value_name = "NAMESPACE", default_value = SYSTEM)]
    operator_namespace: String,
}

/// What a place is, before anybody is asked.
#[derive(Debug, PartialEq)]
enum Kind {
    /// A folder or a URL.
    Direct,
    /// Namespace, if it is not that of the context, and name.
    Session(Option<String>, String),
}

impl Place {
    /// A session of the cluster.
    #[cfg(feature = "sql")]
    pub(crate) fn session(namespace: &str, name: &str, context: Option<String>, access: Access) -> Self {
        Self { place: name.to_owned(), namespace: Some(namespace.to_owned()), context, access }
    }

    /// Another one, reached in the same way.
    #[cfg(feature = "sql")]
    pub(crate) fn elsewhere(&self, place: String) -> Self {
        Self { place, ..self.clone() }
    }

    fn kind(&self) -> Result<Kind> {
        let text = &self.place;
        if let Some(namespace) = &self.namespace {
            if !is_name(namespace) || !is_name(text) {
                bail!("with --namespace, {text:?} has to be the name of a session");
            }
            return Ok(Kind::Session(Some(namespace.clone()), text.clone()));
        }
        let (namespace, name) = match text.split_once('/') {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, text.as_str()),
        };
        let named = is_name(name) && namespace.is_none_or(is_name);
        if named && (self.access.via_operator || !Path::new(text).exists()) {
            return Ok(Kind::Session(namespace.map(str::to_owned), name.to_owned()));
        }
        if self.access.via_operator {
            bail!(
                "--via-operator reads a session of the cluster: name it as NAMESPACE/NAME, not as {text:?}"
            );
        }
        Ok(Kind::Direct)
    }

    /// Opens it.
    ///
    /// # Errors
    /// As [`Location::open`], and when the cluster or the operator refuses.
    pub(crate) async fn open(&self) -> Result<Location> {
        let Kind::Session(namespace, session) = self.kind()? else { return Location::open(&self.place) };
        let (cluster, namespace) = self.connect(namespace).await?;
        self.access.open(&cluster, &namespace, &session).await
    }

    /// Opens it for a command that writes, always with the caller's own credentials.
    ///
    /// # Errors
    /// As [`open`](Self::open), and with `--via-operator`.
    pub(crate) async fn open_to_write(&self) -> Result<Location> {
        if self.access.via_operator {
            bail!(
                "what the operator signs is for reading alone: leave --via-operator out, and let the AWS_* variables name \
                 credentials that may read, write and delete at {}",
                self.place
            );
        }
        let Kind::Session(namespace, session) = self.kind()? else {
            return Location::open_for(&self.place, Use::Write);
        };
        let (cluster, namespace) = self.connect(namespace).await?;
        let dataset = cluster.dataset(&namespace, &session).await?;
        Location::open_s3(&dataset.uri, Some(&dataset), Use::Write)
    }

    /// The cluster, and a namespace of it: the context's where none was named.
    async fn connect(&self, namespace: Option<String>) -> Result<(Cluster, String)> {
        let cluster = self.access.connect(self.context.as_deref()).await;
        let cluster = cluster.with_context(|| {
            format!("{} is no folder here, so it is looked for in the cluster", self.place)
        })?;
        let namespace = Sessions::of(&cluster, namespace.as_deref())?.namespace;
        Ok((cluster, namespace))
    }
}

impl Access {
    /// The cluster of a context, or of the current one.
    ///
    /// # Errors
    /// As [`Cluster::connect`].
    pub(crate) async fn connect(&self, context: Option<&str>) -> Result<Cluster> {
        Cluster::connect(context, &self.operator_namespace).await
    }

    /// Opens a session of the cluster.
    ///
    /// # Errors
    /// When there is none, it has no data yet, or the cluster or the operator refuses.
    pub(crate) async fn open(&self, cluster: &Cluster, namespace: &str, session: &str) -> Result<Location> {
        if !self.via_operator {
            let dataset = cluster.dataset(namespace, session).await?;
            return Location::open_s3(&dataset.uri, Some(&dataset), Use::Read);
        }
        let channel = cluster.operator().await?;
        let (account, of) = (self.service_account.clone(), namespace.to_owned());
        let cluster = cluster.clone();
        let tokens: crate::via::Tokens = Box::new(move || {
            let (cluster, account, of) = (cluster.clone(), account.clone(), of.clone());
            Box::pin(async move { cluster.token(&of, &account).await })
        });
        let store_address = self.store_address.clone();
        let (namespace, session) = (namespace.to_owned(), session.to_owned());
        let patience = crate::via::ANSWER_TIMEOUT;
        let source = Source { channel, tokens, namespace, session, store_address, patience };
        let (store, uri) = ViaOperator::open(source).await?;
        Ok(Location {
            store: Arc::new(store),
            prefix: SessionPrefix::root("")?,
            root: uri.clone(),
            name: uri,
            is_folder: false,
            is_session: true,
        })
    }
}

/// Whether the environment has credentials, or names a profile that has: somebody means a store by them. A default profile may be of
/// any, and a machine's role is found by asking for it, which takes long where there is none.
pub(crate) fn has_credentials() -> bool {
    profile::environment_has_credentials() || profile::named_has_key()
}

/// A store, and the folder in it that holds one session.
pub(crate) struct Location {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) prefix: SessionPrefix,
    /// As the user wrote it.
    pub(crate) name: String,
    /// Where the store's own root is: with a path below it, a place that these commands open.
    pub(crate) root: String,
    /// On this machine.
    pub(crate) is_folder: bool,
    /// One session and nothing else.
    pub(crate) is_session: bool,
}

impl Location {
    /// Opens a place that exists.
    ///
    /// # Errors
    /// When it is no folder and no S3 URL, or the environment's S3 settings are not complete.
    pub(crate) fn open(text: &str) -> Result<Self> {
        Self::open_for(text, Use::Read)
    }

    fn open_for(text: &str, use_: Use) -> Result<Self> {
        if text.starts_with("s3://") {
            return Self::open_s3(text, None, use_);
        }
        if text.contains("://") {
            bail!("{text} is neither a folder nor an s3:// URL");
        }
        let store = LocalFileSystem::new_with_prefix(text).with_context(|| {
            format!("the folder {text} cannot be opened; a session of a cluster is named NAMESPACE/NAME")
        })?;
        // What a file is written from goes when it is there: it has to be on the disk by then.
        let store = store.with_fsync(use_ != Use::Read);
        Ok(Self {
            store: Arc::new(store),
            prefix: SessionPrefix::root("")?,
            name: text.to_owned(),
            root: text.trim_end_matches('/').to_owned(),
            is_folder: true,
            is_session: false,
        })
    }

    /// Opens a URL with the environment's settings, and those of a session's status where the environment has none.
    fn open_s3(url: &str, dataset: Option<&Dataset>, use_: Use) -> Result<Self> {
        let rest = url.strip_prefix("s3://").with_context(|| format!("{url} is no s3:// URL"))?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let profile = Profile::of_environment()?;
        let mut builder = settings(AmazonS3Builder::from_env(), &profile, bucket, dataset);
        if use_ == Use::Write && std::env::var_os("AWS_TIMEOUT").is_none() {
            builder = builder.with_config(AmazonS3ConfigKey::Client(ClientConfigKey::Timeout), WRITING);
        }
        let store = profile
            .build(builder)
            .with_context(|| format!("the settings for {url} are not complete (AWS_* variables)"))?;
        Ok(Self {
            store: Arc::new(store),
            prefix: SessionPrefix::root(prefix.trim_end_matches('/'))?,
            name: url.to_owned(),
            root: format!("s3://{bucket}"),
            is_folder: false,
            is_session: dataset.is_some(),
        })
    }

    /// Opens a session by what its status said of its data: it may be gone from the cluster.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(crate) fn of_dataset(dataset: &Dataset) -> Result<Self> {
        Self::open_s3(&dataset.uri, Some(dataset), Use::Read)
    }

    /// Opens the session that lies there, which has to be over.
    ///
    /// # Errors
    /// When there is none, it has no manifest, or it cannot be read.
    pub(crate) async fn contents(&self) -> Result<Contents> {
        self.try_contents().await.map_err(|error| self.explained(error))
    }

    /// The same, with the error as it is.
    ///
    /// # Errors
    /// As [`contents`](Self::contents).
    pub(crate) async fn try_contents(&self) -> Result<Contents, ReadError> {
        reader::open(&self.store, &self.prefix).await
    }

    /// Why it cannot be opened, under the name that the user knows.
    pub(crate) fn explained(&self, error: ReadError) -> anyhow::Error {
        match error {
            ReadError::NotADataset { missing, .. } if missing == Key::Session.relative() => self.no_session(),
            ReadError::NotADataset { missing, .. } => anyhow!(
                "the session at {} has no {missing}: it is not over, or what is here is not whole",
                self.name
            ),
            ReadError::Store {
                source:
                    object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. },
                ..
            } => anyhow::Error::from(error).context(format!(
                "the store refuses these credentials at {}: others may be meant (AWS_ACCESS_KEY_ID, AWS_PROFILE), and a session of a \
                 cluster can also be read with --via-operator",
                self.name
            )),
            error => error.into(),
        }
    }

    /// Opens the session that lies there, over or not.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub(crate) async fn contents_so_far(&self) -> Result<Contents> {
        let loaded = reader::load(self.store.as_ref(), &self.prefix).await;
        let contents = loaded.map_err(|error| self.explained(error))?;
        contents.session.is_some().then_some(contents).ok_or_else(|| self.no_session())
    }

    fn no_session(&self) -> anyhow::Error {
        let (name, file, program) = (&self.name, Key::Session, program());
        anyhow!("no session lies at {name}: it has no {file}; `{program} ls` finds those below a place")
    }

    /// Opens a place for a recording, making the folder if it is not there.
    ///
    /// # Errors
    /// As [`open`](Self::open), and when the folder cannot be made.
    #[cfg(target_os = "linux")]
    pub(crate) fn create(text: &str) -> Result<Self> {
        if !text.contains("://") {
            std::fs::create_dir_all(Path::new(text)).with_context(|| {
                format!("the output folder {text} cannot be made; choose another one with -o")
            })?;
        }
        Self::open_for(text, Use::Record)
    }
}

/// A store's settings: those of the environment, for a session what its status says, then the profile's.
fn settings(
    environment: AmazonS3Builder,
    profile: &Profile,
    bucket: &str,
    dataset: Option<&Dataset>,
) -> AmazonS3Builder {
    let mut builder = profile.sign(environment.with_bucket_name(bucket));
    let unset = |builder: &AmazonS3Builder, key| builder.get_config_value(&key).is_none();
    if let Some(dataset) = dataset {
        if unset(&builder, AmazonS3ConfigKey::Region)
            && let Some(region) = &dataset.region
        {
            builder = builder.with_region(region);
        }
        if unset(&builder, AmazonS3ConfigKey::Endpoint)
            && unset(&builder, AmazonS3ConfigKey::S3Endpoint)
            && let Some(endpoint) = &dataset.endpoint
        {
            builder = builder.with_virtual_hosted_style_request(!dataset.path_style);
            builder = builder.with_endpoint(if dataset.path_style {
                endpoint.clone()
            } else {
                // As the operator does: the builder takes an endpoint of this style as complete.
                endpoint.replacen("://", &format!("://{bucket}."), 1)
            });
        }
    }
    builder = profile.fill(builder);
    // Whoever names such an endpoint means it: object_store wants AWS_ALLOW_HTTP besides, and says nothing of that.
    let plain = |key| builder.get_config_value(&key).is_some_and(|endpoint| endpoint.starts_with("http://"));
    if plain(AmazonS3ConfigKey::Endpoint) || plain(AmazonS3ConfigKey::S3Endpoint) {
        builder = builder.with_allow_http(true);
    }
    builder
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(args: &[&str]) -> Result<Kind, String> {
        #[derive(clap::Parser)]
        struct Only {
            #[command(flatten)]
            place: Place,
        }
        let parsed = <Only as clap::Parser>::try_parse_from([&["tracelake"], args].concat());
        parsed.map_err(|error| error.to_string())?.place.kind().map_err(|error| error.to_string())
    }

    #[test]
    fn a_sessions_store_is_asked_by_the_host_that_the_operator_asks() {
        let dataset = |path_style| Dataset {
            uri: "s3://traces/shop/checkout/uid".to_owned(),
            endpoint: Some("https://s3.example.com:9000".to_owned()),
            region: Some("r".to_owned()),
            path_style,
        };
        let endpoint = |environment: AmazonS3Builder, path_style| {
            let builder = settings(environment, &Profile::default(), "traces", Some(&dataset(path_style)));
            builder.get_config_value(&AmazonS3ConfigKey::Endpoint).unwrap()
        };
        assert_eq!(endpoint(AmazonS3Builder::new(), true), "https://s3.example.com:9000");
        assert_eq!(endpoint(AmazonS3Builder::new(), false), "https://traces.s3.example.com:9000");
        // What the caller says is meant so.
        let own = AmazonS3Builder::new().with_endpoint("http://localhost:9000");
        assert_eq!(endpoint(own, false), "http://localhost:9000");
    }

    #[test]
    fn what_is_written_to_a_folder_is_on_its_disk_when_it_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        let store = |use_| format!("{:?}", Location::open_for(path, use_).unwrap().store);
        assert!(store(Use::Write).contains("fsync: true"), "{}", store(Use::Write));
        assert!(store(Use::Read).contains("fsync: false"));
    }

    #[test]
    fn a_place_is_a_folder_a_url_or_a_session() {
        let session = Ok(Kind::Session(Some("shop".to_owned()), "checkout".to_owned()));
        assert_eq!(kind(&["shop/checkout"]), session);
        assert_eq!(kind(&["checkout", "-n", "shop"]), session);
        assert_eq!(kind(&["shop/checkout", "--via-operator"]), session);
        for args in [&["checkout"][..], &["checkout", "--via-operator"]] {
            assert_eq!(kind(args), Ok(Kind::Session(None, "checkout".to_owned())));
        }
        for direct in
            ["s3://bucket/shop/checkout", "./shop/checkout", "/shop/checkout", "./trace", "a/b/c", "Shop/x"]
        {
            assert_eq!(kind(&[direct]), Ok(Kind::Direct), "{direct}");
            let refused = kind(&[direct, "--via-operator"]).unwrap_err();
            assert!(refused.contains("NAMESPACE/NAME"), "{refused}");
        }
        // A folder that is there goes first, but for --via-operator, which cannot mean one.
        let there = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        std::env::set_current_dir(there).unwrap();
        assert_eq!(kind(&["cli/src"]), Ok(Kind::Direct));
        assert_eq!(kind(&["cli"]), Ok(Kind::Direct));
        assert_eq!(
            kind(&["cli/src", "--via-operator"]),
            Ok(Kind::Session(Some("cli".to_owned()), "src".to_owned()))
        );
        assert!(kind(&["a/b", "-n", "shop"]).is_err());
        assert!(
            kind(&["shop/checkout", "--store-address", "localhost:8333"]).is_err(),
            "of --via-operator alone"
        );
    }
}

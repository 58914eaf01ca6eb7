// SPDX-License-Identifier: Apache-2.0

//! Credentials and settings of an AWS profile, from the files that the AWS command line writes.
//!
//! In: `AWS_PROFILE`, `~/.aws/credentials` and `~/.aws/config`, or what `AWS_SHARED_CREDENTIALS_FILE` and `AWS_CONFIG_FILE` name.
//! Out: a key, a region, an endpoint, as far as the profile has them. Keys that a program or a service makes anew (SSO, roles,
//! `credential_process`) are not made here: the AWS command line does it, and an error says how.
//!
//! A profile that somebody named has to be usable. The default one, which is there for other programs, takes nothing away: where it
//! cannot be used, the machine's role is asked as if it were not there, and only if that fails its trouble is told.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, AwsCredential, AwsCredentialProvider};
use object_store::{CredentialProvider, Error};

/// Used where none is named.
const DEFAULT: &str = "default";
/// A profile with one of these has its keys made by somebody.
const MADE: [&str; 5] = ["role_arn", "sso_session", "sso_start_url", "credential_process", "login_session"];
/// Credentials that the environment tells of: they go before a profile that nobody named.
const OTHERS: [&str; 3] = [
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
];

/// A machine that has a role tells it in milliseconds.
const ROLE: Duration = Duration::from_secs(5);

/// What a profile says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Profile {
    settings: BTreeMap<String, String>,
    /// Why the default profile is not used, though it is there.
    unusable: Option<String>,
}

/// The profile that somebody named.
fn named() -> Option<String> {
    std::env::var("AWS_PROFILE").ok().filter(|name| !name.is_empty())
}

/// Whether requests are not to be signed, in `object_store`'s words; it refuses those that mean neither.
fn unsigned() -> bool {
    std::env::var("AWS_SKIP_SIGNATURE")
        .is_ok_and(|value| !["0", "false", "off", "no", "n"].contains(&value.to_ascii_lowercase().as_str()))
}

/// Whether the environment has a key, or tells who makes one.
pub(crate) fn environment_has_credentials() -> bool {
    ["AWS_ACCESS_KEY_ID"].iter().chain(&OTHERS).any(|name| std::env::var_os(name).is_some())
}

/// Whether somebody named a profile that has a key. One that cannot be used counts: opening a store says why.
pub(crate) fn named_has_key() -> bool {
    named().is_some() && Profile::of_environment().map_or(true, |profile| profile.key().is_some())
}

impl Profile {
    /// The profile of this environment; an empty one where the environment has a key itself or wants no signatures, or nobody named
    /// a profile and the default one is not there, cannot be used, or somebody else has credentials.
    ///
    /// # Errors
    /// When somebody named a profile and the files cannot be read, it is not in them, or its keys are to be made by somebody.
    pub(crate) fn of_environment() -> Result<Self> {
        let named = named();
        let key = std::env::var_os("AWS_ACCESS_KEY_ID").is_some();
        if key || unsigned() || (named.is_none() && environment_has_credentials()) {
            return Ok(Self::default());
        }
        let found = || {
            let credentials = read("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials")?;
            let config = read("AWS_CONFIG_FILE", ".aws/config")?;
            Self::find(named.as_deref(), &credentials, &config)
        };
        match found() {
            Err(error) if named.is_none() => {
                Ok(Self { unusable: Some(format!("{error:#}")), ..Self::default() })
            }
            found => found,
        }
    }

    fn find(named: Option<&str>, credentials: &str, config: &str) -> Result<Self> {
        let name = named.unwrap_or(DEFAULT);
        let in_config = |section: &str| match section.split_once(char::is_whitespace) {
            Some(("profile", profile)) => profile.trim() == name,
            _ => section == DEFAULT && name == DEFAULT,
        };
        // What both files have is as the credentials' file says.
        let mut settings = section(config, in_config);
        let of_credentials = section(credentials, |section| section == name);
        if settings.is_none() && of_credentials.is_none() {
            return match named {
                None => Ok(Self::default()),
                Some(name) => Err(anyhow!(
                    "there is no AWS profile {name:?} (AWS_PROFILE): `aws configure list-profiles` lists those that there are"
                )),
            };
        }
        settings.get_or_insert_default().extend(of_credentials.into_iter().flatten());
        let profile = Self { settings: settings.unwrap_or_default(), unusable: None };
        let made = MADE.iter().find(|made| profile.get(made).is_some());
        if let Some(made) = made.filter(|made| **made == "role_arn" || profile.key().is_none()) {
            bail!(
                "the AWS profile {name:?} has {made}, by which the AWS command line makes keys: \
                 `eval \"$(aws configure export-credentials --profile {name} --format env)\"` brings them here"
            );
        }
        Ok(profile)
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.settings.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Key and secret.
    fn key(&self) -> Option<(&str, &str)> {
        self.get("aws_access_key_id").zip(self.get("aws_secret_access_key"))
    }

    /// A store's settings with its key.
    pub(crate) fn sign(&self, builder: AmazonS3Builder) -> AmazonS3Builder {
        let Some((id, secret)) = self.key() else { return builder };
        let builder = builder.with_access_key_id(id).with_secret_access_key(secret);
        match self.get("aws_session_token") {
            Some(token) => builder.with_token(token),
            None => builder,
        }
    }

    /// A store's settings with its region and endpoint, where they have none.
    pub(crate) fn fill(&self, mut builder: AmazonS3Builder) -> AmazonS3Builder {
        for (key, name) in
            [(AmazonS3ConfigKey::Region, "region"), (AmazonS3ConfigKey::Endpoint, "endpoint_url")]
        {
            if builder.get_config_value(&key).is_none()
                && let Some(value) = self.get(name)
            {
                builder = builder.with_config(key, value);
            }
        }
        builder
    }

    /// The store; where nobody has given it credentials, one that says so if this machine has no role.
    ///
    /// # Errors
    /// When its settings are not complete.
    pub(crate) fn build(&self, builder: AmazonS3Builder) -> object_store::Result<AmazonS3> {
        use AmazonS3ConfigKey as Setting;
        // Who else makes keys, as `object_store` looks for them: it wants both of some.
        let others: [&[Setting]; 5] = [
            &[Setting::AccessKeyId],
            &[Setting::SecretAccessKey],
            &[Setting::WebIdentityTokenFile, Setting::RoleArn],
            &[Setting::ContainerCredentialsRelativeUri],
            &[Setting::ContainerCredentialsFullUri, Setting::ContainerAuthorizationTokenFile],
        ];
        let is_set = |setting: &Setting| builder.get_config_value(setting).is_some();
        let has_others = others.iter().any(|settings| settings.iter().all(is_set));
        let store = builder.clone().build()?;
        if has_others || unsigned() {
            return Ok(store);
        }
        let role = Role { found: store.credentials().clone(), unusable: self.unusable.clone() };
        builder.with_credentials(Arc::new(role)).build()
    }
}

/// The role of this machine, of whom nobody knows whether it has one: what asks for it would try again for minutes.
#[derive(Debug)]
struct Role {
    found: AwsCredentialProvider,
    /// Why the default profile is not used, though it is there.
    unusable: Option<String>,
}

impl Role {
    /// What to do, first; then why there is nothing.
    fn missing(&self, why: &str) -> Error {
        let unusable = self.unusable.as_ref().map(|unusable| format!("; {unusable}")).unwrap_or_default();
        let said = format!(
            "neither the environment nor a profile has credentials of the store (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or \
             AWS_PROFILE; a session of a cluster can also be read with --via-operator), and this machine's role was not found: {why}{unusable}"
        );
        Error::Generic { store: "S3", source: said.into() }
    }
}

#[tonic::async_trait]
impl CredentialProvider for Role {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        match tokio::time::timeout(ROLE, self.found.get_credential()).await {
            Ok(Err(Error::Generic { source, .. })) => Err(self.missing(&source.to_string())),
            Ok(found) => found,
            Err(_) => Err(self.missing(&format!("nothing answered within {} s", ROLE.as_secs()))),
        }
    }
}

/// A file that an environment variable names, or one of the home folder, which need not be there.
fn read(variable: &str, at_home: &str) -> Result<String> {
    let named = std::env::var_os(variable).filter(|path| !path.is_empty()).map(PathBuf::from);
    let Some(path) = named.or_else(|| Some(std::env::home_dir()?.join(at_home))) else {
        return Ok(String::new());
    };
    match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        read => read.with_context(|| format!("the AWS settings in {} cannot be read", path.display())),
    }
}

/// What stands below a heading; none where there is none. Lines that are set in belong to the setting above them, which none of
/// those that are read here has.
fn section(text: &str, is_it: impl Fn(&str) -> bool) -> Option<BTreeMap<String, String>> {
    let mut found: Option<BTreeMap<String, String>> = None;
    let mut inside = false;
    for line in text.lines() {
        let heading = line.trim().strip_prefix('[').and_then(|rest| rest.split_once(']'));
        if let Some((heading, _)) = heading {
            inside = is_it(heading.trim());
            if inside {
                found.get_or_insert_default();
            }
            continue;
        }
        let is_setting = inside && !line.starts_with([' ', '\t', '#', ';']);
        if let Some((name, value)) = line.split_once('=').filter(|_| is_setting) {
            // A comment after a value has a space before it.
            let end = [" #", " ;", "\t#", "\t;"].iter().filter_map(|mark| value.find(mark)).min();
            let value = value[..end.unwrap_or(value.len())].trim();
            let settings = found.get_or_insert_default();
            settings.insert(name.trim().to_ascii_lowercase(), value.to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREDENTIALS: &str = "
# aws_access_key_id = commented
[default]
aws_access_key_id = AKIDEFAULT
aws_secret_access_key=secret/with=sign # mine
[traces]
aws_access_key_id = AKITRACES
aws_secret_access_key = other
aws_session_token = token
";
    const CONFIG: &str = "
[default]
region = eu-central-1
s3 =
    region = not-this
    endpoint_url = http://not.this
[profile traces]
region = us-east-1
endpoint_url = http://localhost:8333
aws_access_key_id = of-the-other-file
[profile work]
sso_session = corp
region = eu-west-1
[profile role]
role_arn = arn:aws:iam::1:role/x
source_profile = default
[profile tool]
credential_process = /opt/keys
[traces]
region = no-profile
";

    fn settings(named: Option<&str>) -> [Option<String>; 5] {
        let profile = Profile::find(named, CREDENTIALS, CONFIG).unwrap();
        let builder = profile.fill(profile.sign(AmazonS3Builder::new()));
        [
            AmazonS3ConfigKey::AccessKeyId,
            AmazonS3ConfigKey::SecretAccessKey,
            AmazonS3ConfigKey::Token,
            AmazonS3ConfigKey::Region,
            AmazonS3ConfigKey::Endpoint,
        ]
        .map(|key| builder.get_config_value(&key))
    }

    #[test]
    fn a_profile_has_what_both_files_say_of_it() {
        let text = |value: &str| Some(value.to_owned());
        assert_eq!(
            settings(None),
            [text("AKIDEFAULT"), text("secret/with=sign"), None, text("eu-central-1"), None]
        );
        let traces = ["AKITRACES", "other", "token", "us-east-1", "http://localhost:8333"].map(text);
        assert_eq!(settings(Some("traces")), traces);
        assert_eq!(Profile::find(None, "", "").unwrap(), Profile::default());
        assert_eq!(Profile::find(None, "", CONFIG).unwrap().key(), None);
        // What is set already stays.
        let profile = Profile::find(Some("traces"), CREDENTIALS, CONFIG).unwrap();
        let builder = profile.fill(AmazonS3Builder::new().with_region("mine"));
        assert_eq!(builder.get_config_value(&AmazonS3ConfigKey::Region), text("mine"));
    }

    #[test]
    fn keys_that_are_made_by_somebody_and_profiles_that_are_not_there_are_errors_that_say_what_to_do() {
        for (name, made) in [("work", "sso_session"), ("role", "role_arn"), ("tool", "credential_process")] {
            let error = Profile::find(Some(name), CREDENTIALS, CONFIG).unwrap_err().to_string();
            let next = format!("aws configure export-credentials --profile {name} --format env");
            assert!(error.contains(made) && error.contains(&next), "{error}");
        }
        let error = Profile::find(Some("gone"), CREDENTIALS, CONFIG).unwrap_err().to_string();
        assert!(error.contains("\"gone\"") && error.contains("list-profiles"), "{error}");
    }
}

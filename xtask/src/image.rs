// SPDX-License-Identifier: Apache-2.0

//! Builds the container images: the product's, and those that tests and demos run beside it.
//!
//! In: Dockerfiles that start `FROM scratch` and static binaries, which are put beside them in a folder of
//! their own. Out: archives that `cargo xtask cluster load` and `docker load` read, in the cache, keyed by
//! content. Docker builds where it runs, and installs an image's Debian packages in a container; elsewhere
//! buildah and mmdebstrap do, and no registry of images is needed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context, Result, bail};

use crate::{cache, cluster, debian, exec, tools};

/// What `tracelake/shop:dev` holds: the workloads of tests and demos.
const SHOP_PACKAGES: &[&str] =
    &["iperf3", "netcat-openbsd", "nginx-light", "procps", "redis-server", "redis-tools"];

/// What the images and the demo run.
const STATIC_BINARIES: &[&str] =
    &["demo", "latency", "tracelake", "tracelake-node-agent", "tracelake-operator", "workload"];

/// The profile that the workspace's binaries are built with, unless users get them.
pub(crate) const PROFILE: &str = "image";

/// The tag of what this checkout builds.
pub(crate) const TAG: &str = "dev";

/// What the product needs in a cluster, and its tests and demos.
const PRODUCT: [Name; 4] = [Name::Operator, Name::NodeAgent, Name::DevStore, Name::Shop];

/// Arguments of `cargo xtask image`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which to build; all when none is named.
    #[arg(value_enum)]
    names: Vec<Name>,
    /// Optimised as for users; without it the binaries are compiled in a fraction of the time, for tests and demos.
    #[arg(long)]
    release: bool,
}

/// The images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Name {
    /// The operator.
    Operator,
    /// The node agent.
    NodeAgent,
    /// An S3 server for tests and demos.
    DevStore,
    /// Workloads for tests and demos.
    Shop,
    /// DNS of the VM cluster.
    Coredns,
    /// Holder of pods' namespaces in the VM cluster.
    Pause,
    /// The servers of Kubernetes, for a kind cluster in a VM.
    Kubernetes,
}

/// One built image.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    /// The name that pods use.
    pub(crate) name: String,
    /// The archive.
    pub(crate) archive: PathBuf,
}

/// `cargo xtask image`.
pub(crate) fn main(args: &Args) -> Result<()> {
    let profile = if args.release { "release" } else { PROFILE };
    let names = if args.names.is_empty() { &PRODUCT[..] } else { &args.names[..] };
    for name in names {
        let image = build_with(*name, profile)?;
        println!("{:<28} {}", image.name, image.archive.display());
    }
    Ok(())
}

/// Installs what the cluster needs, and compiles the product meanwhile: Go and Rust each leave a core idle for a good part of
/// their time.
pub(crate) fn prepare(choice: Option<cluster::Choice>) -> Result<()> {
    tools::packages()?;
    std::thread::scope(|scope| {
        let rust = scope.spawn(|| static_binary("demo"));
        cluster::prepare(choice)?;
        rust.join().expect("a build fails without a panic").map(drop)
    })
}

/// Builds what the product and its tests and demos need in a cluster.
pub(crate) fn build_all() -> Result<Vec<Image>> {
    PRODUCT.into_iter().map(build).collect()
}

/// Builds one image.
pub(crate) fn build(name: Name) -> Result<Image> {
    build_with(name, PROFILE)
}

fn build_with(name: Name, profile: &'static str) -> Result<Image> {
    let static_binary = |binary: &str| compiled(binary, profile);
    let repository = cache::repository();
    let assets = repository.join("e2e/cluster/images");
    match name {
        Name::Operator => {
            let binary = static_binary("tracelake-operator")?;
            archive(
                ("operator", TAG),
                &repository.join("operator/Dockerfile"),
                &[(binary, "tracelake-operator")],
            )
        }
        Name::NodeAgent => {
            let binary = static_binary("tracelake-node-agent")?;
            archive(
                ("node-agent", TAG),
                &repository.join("node-agent/Dockerfile"),
                &[(binary, "tracelake-node-agent")],
            )
        }
        Name::DevStore => {
            archive(("dev-store", TAG), &assets.join("dev-store/Dockerfile"), &[(tools::weed()?, "weed")])
        }
        Name::Coredns => {
            archive(("coredns", TAG), &assets.join("coredns/Dockerfile"), &[(tools::coredns()?, "coredns")])
        }
        Name::Pause => archive(("pause", TAG), &assets.join("pause/Dockerfile"), &[(pause()?, "pause")]),
        Name::Kubernetes => {
            let (kubernetes, node) = (tools::kubernetes()?, cluster::kind_node_packages()?);
            let script = repository.join("e2e/cluster/kind/pod-root.sh");
            let key = cache::Key::default().file(&script)?.text(&node.to_string_lossy());
            let root = cache::entry("rootfs", "kind-pod", key, |path| {
                exec::quiet(exec::command("sh", [&script, &node]).arg(path))
            })?;
            archive(
                ("kubernetes", TAG),
                &assets.join("kubernetes/Dockerfile"),
                &[
                    (root, "rootfs.tar"),
                    (kubernetes.join("kubernetes"), "kubernetes"),
                    (kubernetes.join("etcd"), "etcd"),
                    (assets.join("kubernetes/cni.sh"), "cni.sh"),
                ],
            )
        }
        Name::Shop => {
            let key = cache::Key::default().text(debian::SUITE).text(&SHOP_PACKAGES.join(" "));
            // mmdebstrap needs no registry of images; where machines are emulated it is there.
            let root = if has_docker() && !exec::succeeds(&mut exec::command("mmdebstrap", ["--version"])) {
                let make = |path: &Path| debian::archive_by_docker(SHOP_PACKAGES, path);
                cache::entry("rootfs", "shop", key.text(debian::IN_CONTAINER), make)?
            } else {
                cache::entry("rootfs", "shop", key, |path| debian::archive(SHOP_PACKAGES, path))?
            };
            let workload = static_binary("workload")?;
            archive(
                ("shop", TAG),
                &assets.join("shop/Dockerfile"),
                &[(root, "rootfs.tar"), (workload, "workload")],
            )
        }
    }
}

/// Compiles the workspace's binaries for the images, static and optimised, and returns one of them.
///
/// All in one build of the whole workspace: a build of one package resolves features of dependencies
/// in its own way, and would compile most of them again.
pub(crate) fn static_binary(binary: &str) -> Result<PathBuf> {
    compiled(binary, PROFILE)
}

/// The same of one binary as users get it.
pub(crate) fn release(binary: &str) -> Result<PathBuf> {
    build_static(&[binary], "release")?;
    Ok(built(binary, "release"))
}

fn compiled(binary: &str, profile: &'static str) -> Result<PathBuf> {
    static BUILT: Mutex<&str> = Mutex::new("");
    let mut last = BUILT.lock().expect("nobody panics while building");
    if *last != profile {
        build_static(STATIC_BINARIES, profile)?;
        *last = profile;
    }
    Ok(built(binary, profile))
}

fn build_static(binaries: &[&str], profile: &str) -> Result<()> {
    tools::packages()?;
    tools::rust()?;
    let mut cargo = cache::cargo()?;
    cargo.args(["build", "--locked", "--profile", profile, "--target", tools::MUSL_TARGET, "--workspace"]);
    cargo.args(["--exclude", "tracelake-node-agent-ebpf"]);
    cargo.args(binaries.iter().flat_map(|name| ["--bin", name]));
    if profile == PROFILE {
        // `tracelake sql` and `report`, which no pod and no cluster test runs: their engine takes longer to compile than all the rest.
        cargo.arg("--no-default-features");
    }
    tools::bpf_linker()?;
    exec::loud(&mut cargo)
}

fn built(binary: &str, profile: &str) -> PathBuf {
    cache::target_dir().join(tools::MUSL_TARGET).join(profile).join(binary)
}

/// Whether a Docker engine runs here.
pub(crate) fn has_docker() -> bool {
    exec::succeeds(&mut exec::command("docker", ["info"]))
}

/// Why `docker` is of no use, as it says itself; nothing where it is of use, or not installed.
pub(crate) fn docker_fails() -> Option<String> {
    let done = exec::command("docker", ["info"]).output().ok().filter(|done| !done.status.success())?;
    let text = String::from_utf8_lossy(&done.stderr);
    Some(text.lines().find(|line| !line.trim().is_empty()).unwrap_or("it gives no reason").to_owned())
}

/// Builds `tracelake/NAME:TAG` of a Dockerfile and the files beside it.
pub(crate) fn archive(
    (name, tag): (&str, &str),
    dockerfile: &Path,
    files: &[(PathBuf, &str)],
) -> Result<Image> {
    let image = format!("tracelake/{name}:{tag}");
    let builder = if has_docker() { "docker" } else { "buildah" };
    let mut key = cache::Key::default().text(&image).text(builder).file(dockerfile)?;
    for (path, to) in files {
        // Not hashed here: in a debug build of xtask that takes seconds.
        key = key.text(to).text(
            exec::output(exec::command("sha256sum", ["--"]).arg(path))?.split(' ').next().unwrap_or(""),
        );
    }
    let archive = cache::entry("images", &format!("{name}-{tag}"), key, |archive| {
        let context = archive.with_added_extension("context");
        fs::create_dir_all(&context)?;
        fs::copy(dockerfile, context.join("Dockerfile"))?;
        for (path, to) in files {
            fs::copy(path, context.join(to)).with_context(|| format!("cannot copy {}", path.display()))?;
        }
        if builder == "docker" {
            with_docker(&image, &context, archive)
        } else {
            with_buildah(&image, &context, archive)
        }?;
        cache::remove(&context)
    })?;
    Ok(Image { name: image, archive })
}

fn with_docker(image: &str, context: &Path, archive: &Path) -> Result<()> {
    let mut build = exec::command("docker", ["build", "--quiet", "--tag", image]);
    // With BuildKit's attestations it would be an index of two, which `kind load` cannot import.
    exec::quiet(build.arg(context).env("BUILDX_NO_DEFAULT_ATTESTATIONS", "1"))?;
    exec::quiet(exec::command("docker", ["save", "--output"]).arg(archive).arg(image))
}

fn with_buildah(image: &str, context: &Path, archive: &Path) -> Result<()> {
    tools::machines()?;
    let storage = cache::dir().join("buildah");
    fs::create_dir_all(&storage)?;
    let _lock = cache::lock("buildah")?;
    // Nothing is pulled, so nothing has to be verified.
    let policy = storage.join("policy.json");
    // Without the registry's name buildah would add a second name, below "localhost".
    let tag = format!("docker.io/{image}");
    fs::write(&policy, r#"{"default": [{"type": "insecureAcceptAnything"}]}"#)?;
    let buildah = || -> Command {
        let mut buildah = exec::command("buildah", ["--storage-driver", "vfs", "--root"]);
        buildah.arg(storage.join("root")).arg("--runroot").arg(storage.join("run"));
        buildah
    };
    let build = [
        "build",
        "--isolation",
        "chroot",
        "--layers=false",
        "--timestamp",
        "0",
        "--tag",
        &tag,
        "--signature-policy",
    ];
    exec::quiet(buildah().args(build).arg(&policy).arg(context))?;
    let target = format!("docker-archive:{}:{tag}", archive.display());
    exec::quiet(buildah().args(["push", "--signature-policy"]).arg(&policy).args([&tag, &target]))?;
    exec::quiet(buildah().args(["rmi", &tag]))
}

fn pause() -> Result<PathBuf> {
    let source = cache::repository().join("e2e/cluster/images/pause/pause.c");
    tools::packages()?;
    cache::entry("tools", "pause", cache::Key::default().file(&source)?, |path| {
        exec::quiet(
            exec::command("musl-gcc", ["-static", "-Os", "-s", "-Wall", "-o"]).arg(path).arg(&source),
        )?;
        if !path.exists() {
            bail!("musl-gcc made nothing");
        }
        Ok(())
    })
}

// SPDX-License-Identifier: Apache-2.0

//! Debian's kernels for VMs: image and modules of each supported line, unpacked, never installed.
//!
//! Old versions leave Debian's mirrors, so no version is pinned: the newest of a line is read from the
//! package index. Packages come from the mirror that this machine's apt uses, through an apt state of
//! our own, so that the machine's package lists stay as they are.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use crate::{cache, exec, tools};

/// An unpacked kernel is used this long before the index is asked for a newer one.
const FRESH: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// The supported kernel lines, oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kernel {
    /// Debian 12.
    #[value(name = "6.1")]
    V6_1,
    /// Debian 13.
    #[value(name = "6.12")]
    V6_12,
    /// Debian 13 backports.
    #[value(name = "6.18")]
    V6_18,
    /// The newest 7.x of Debian 13 backports.
    #[value(name = "7")]
    V7,
}

/// One unpacked kernel.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    /// As `uname -r` prints it.
    pub(crate) release: String,
    /// The bootable image.
    pub(crate) image: PathBuf,
    /// The folder that `modules.dep` describes (`lib/modules/RELEASE`).
    pub(crate) modules: PathBuf,
}

impl Kernel {
    /// As on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::V6_18 => "6.18",
            Self::V7 => "7",
        }
    }

    /// The newest kernel of this line, fetched when the cache has none or an old one.
    pub(crate) fn files(self) -> Result<Files> {
        let folder = cache::dir().join("kernels").join(self.name());
        let _lock = cache::lock(&format!("kernel-{}", self.name()))?;
        let age = folder.metadata().and_then(|metadata| metadata.modified()).ok();
        let fresh =
            age.and_then(|time| SystemTime::now().duration_since(time).ok()).is_some_and(|age| age < FRESH);
        if !fresh {
            cache::step(&format!("kernel: {}", self.name()), || self.fetch(&folder))?;
        }
        let release = fs::read_to_string(folder.join("release"))?;
        Ok(Files {
            modules: folder.join("lib/modules").join(&release),
            image: folder.join("vmlinuz"),
            release,
        })
    }

    fn fetch(self, folder: &Path) -> Result<()> {
        tools::machines()?;
        let apt = PrivateApt::open()?;
        let names = apt.package_names()?;
        let prefix = format!("{}.", self.name());
        let releases = |kind: &'static str| {
            names
                .iter()
                .filter_map(move |name| name.strip_prefix(kind)?.strip_suffix("-cloud-amd64"))
                .filter(|version| version.starts_with(&prefix))
                .max_by_key(|version| numbers(version))
        };
        // From 6.19 on linux-image-* is only a shell around these two.
        let (version, packages) = if let Some(version) = releases("linux-binary-") {
            (
                version,
                vec![
                    format!("linux-binary-{version}-cloud-amd64"),
                    format!("linux-modules-{version}-cloud-amd64"),
                ],
            )
        } else if let Some(version) = releases("linux-image-") {
            (version, vec![format!("linux-image-{version}-cloud-amd64")])
        } else {
            bail!("no cloud kernel {} in Debian's package index: has the line left the mirror?", self.name());
        };
        let release = format!("{version}-cloud-amd64");

        let temporary = folder.with_added_extension("tmp");
        cache::remove(&temporary)?;
        let unpacked = temporary.join("unpacked");
        fs::create_dir_all(&unpacked)?;
        for package in apt.download(&packages, &temporary)? {
            exec::quiet(exec::command("dpkg", ["-x"]).arg(&package).arg(&unpacked))?;
            fs::remove_file(package)?;
        }
        fs::create_dir_all(temporary.join("lib/modules"))?;
        let modules = temporary.join("lib/modules").join(&release);
        let place = [unpacked.join("usr/lib/modules"), unpacked.join("lib/modules")]
            .into_iter()
            .map(|place| place.join(&release))
            .find(|place| place.is_dir())
            .with_context(|| format!("{packages:?} hold no modules of {release}"))?;
        fs::rename(place, &modules)?;
        let image = [unpacked.join(format!("boot/vmlinuz-{release}")), modules.join("vmlinuz")]
            .into_iter()
            .find(|image| image.is_file())
            .with_context(|| format!("{packages:?} hold no kernel image"))?;
        fs::rename(image, temporary.join("vmlinuz"))?;
        fs::remove_dir_all(unpacked)?;
        exec::quiet(exec::command("/usr/sbin/depmod", ["-b"]).arg(&temporary).arg(&release))?;
        fs::write(temporary.join("release"), &release)?;
        cache::remove(folder)?;
        fs::rename(&temporary, folder)?;
        Ok(())
    }
}

impl Files {
    /// The files of these modules and of what they need, each after its dependencies; modules that the
    /// kernel has built in, or lacks, are left out.
    pub(crate) fn modules_in_order(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        let path = self.modules.join("modules.dep");
        let list = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut order: Vec<PathBuf> = Vec::new();
        for name in names {
            let line = list
                .lines()
                .filter_map(|line| line.split_once(':'))
                .find(|(file, _)| module_name(file) == *name);
            let Some((file, needs)) = line else { continue };
            // modules.dep lists what is needed deepest last.
            for file in needs.split_whitespace().rev().chain([file]) {
                let file = self.modules.join(file);
                if !order.contains(&file) {
                    order.push(file);
                }
            }
        }
        Ok(order)
    }
}

/// A module's content, as `insmod` of busybox takes it.
pub(crate) fn read_module(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_some_and(|extension| extension == "xz") {
        let done = exec::command("xz", ["-dc"]).arg(path).output().context("cannot start xz")?;
        if !done.status.success() {
            bail!("cannot decompress {}", path.display());
        }
        return Ok(done.stdout);
    }
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// `kernel/drivers/net/veth.ko.xz` is `veth`.
pub(crate) fn module_name(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.split(".ko").next().unwrap_or(name).replace('-', "_")
}

/// The numbers of a version, for comparing.
fn numbers(version: &str) -> Vec<u32> {
    // `+deb13` is the same in all versions of a suite.
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

/// apt with package lists of its own, for the three suites that kernels come from; one at a time, as apt itself has it.
struct PrivateApt(PathBuf, #[expect(dead_code, reason = "held while apt runs")] File);

impl PrivateApt {
    fn open() -> Result<Self> {
        let apt = Self(cache::dir().join("apt"), cache::lock("apt")?);
        fs::create_dir_all(apt.0.join("lists/partial"))?;
        let mirror = tools::debian_mirror()?;
        let sources: String = ["bookworm", "trixie", "trixie-backports"]
            .map(|suite| format!("deb [signed-by={}] {mirror} {suite} main\n", tools::DEBIAN_KEYRING))
            .concat();
        fs::write(apt.0.join("sources.list"), sources)?;
        exec::quiet(apt.command("apt-get").arg("update")).context("cannot read Debian's package index")?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let folder = self.0.display();
        let options = [
            format!("Dir::Etc::sourcelist={folder}/sources.list"),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            format!("Dir::State::lists={folder}/lists"),
            "Dir::State::status=/dev/null".to_owned(),
            format!("Dir::Cache={folder}"),
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
        ];
        exec::command(program, options.iter().flat_map(|option| ["-o", option]))
    }

    fn package_names(&self) -> Result<Vec<String>> {
        Ok(exec::output(self.command("apt-cache").arg("pkgnames"))?.lines().map(str::to_owned).collect())
    }

    fn download(&self, packages: &[String], folder: &Path) -> Result<Vec<PathBuf>> {
        exec::quiet(self.command("apt-get").arg("download").args(packages).current_dir(folder))?;
        let files = fs::read_dir(folder)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(files
            .into_iter()
            .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .collect())
    }
}

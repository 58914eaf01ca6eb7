// SPDX-License-Identifier: Apache-2.0
//! How kubelet and runtimes name the cgroups of pods and containers.
//!
//! Pods: `pod<uid>` (cgroupfs), `kubepods-burstable-pod<uid with _>.slice` (systemd), static pods with the hash of their
//! configuration in place of the UID. Containers below them: `<64 hex digits>` or `<runtime>-<64 hex digits>.scope`.

use node_agent_common::target::pod_key;

/// The UID (with `-`) or hash in the name of a pod's cgroup; `None` for other names.
pub fn name_key(name: &str) -> Option<String> {
    let name = name.strip_suffix(".slice").unwrap_or(name);
    let key = [36, 32].into_iter().find_map(|digits| {
        let (before, key) = name.split_at_checked(name.len().checked_sub(digits)?)?;
        before.ends_with("pod").then(|| pod_key(key))?
    })?;
    let end = key.iter().position(|&byte| byte == 0).unwrap_or(key.len());
    String::from_utf8(key[..end].to_vec()).ok()
}

/// The container's id in the name of a cgroup below a pod's.
pub fn container_id(name: &str) -> Option<&str> {
    let name = name.strip_suffix(".scope").unwrap_or(name);
    // CRI-O's monitor runs beside the container, in a cgroup named after it.
    if name.contains("conmon-") {
        return None;
    }
    let id = name.rsplit(['-', ':']).next()?;
    (id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_every_driver_and_runtime_are_understood() {
        const UID: &str = "0a1b2c3d-0000-4111-8222-0123456789ab";
        let scope = "ab".repeat(32);
        for name in [
            format!("pod{UID}"),
            format!("kubepods-burstable-pod{}.slice", UID.replace('-', "_")),
            format!("kubelet-kubepods-besteffort-pod{}.slice", UID.replace('-', "_")),
        ] {
            assert_eq!(name_key(&name).as_deref(), Some(UID), "{name}");
        }
        assert_eq!(name_key(&format!("pod{}", "0f".repeat(16))).as_deref(), Some(&*"0f".repeat(16)));
        for name in ["kubepods.slice", "system.slice", "pod", "init.scope", &scope] {
            assert_eq!(name_key(name), None, "{name}");
        }
        for name in [scope.clone(), format!("cri-containerd-{scope}.scope"), format!("crio-{scope}.scope")] {
            assert_eq!(container_id(&name), Some(&*scope), "{name}");
        }
        assert_eq!(container_id("nested"), None);
        assert_eq!(container_id(&format!("crio-conmon-{scope}.scope")), None);
    }
}

// SPDX-License-Identifier: Apache-2.0
//! Step 1 (client required): follows the session's references to the pods they mean.
//!
//! In: the selection and the namespace's pods. Out: the pods that match. A Deployment owns its pods through its
//! ReplicaSets and a CronJob through its Jobs; those are looked up once each by UID and remembered, because an
//! object's controller does not change; one without a controller may be adopted. A ReplicaSet made by a rolling update in
//! the window is simply a new UID to look up.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crds::{WorkloadKind, WorkloadRef};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use kube::core::{NamespaceResourceScope, PartialObjectMeta, SelectorExt};
use kube::{Api, Client, Resource, ResourceExt};
use node_api::is_name;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::pod::{Owner, Pod};
use super::validate::Selection;

/// Remembered owners above this many are forgotten all at once; each costs one request to learn again.
const REMEMBERED_MAX: usize = 20_000;

/// An owner that had no controller is looked up again after this time.
pub const ORPHAN: Duration = Duration::from_secs(300);

/// The longest UID that is looked up; Kubernetes' have 36 bytes.
const UID_MAX: usize = 64;

/// The pods that a session means.
#[derive(Clone, Debug, Default)]
pub struct Matched {
    /// They match, scheduled or not.
    pub pods: Vec<Arc<Pod>>,
    /// The workload named by `workloadRef` does not exist.
    pub workload_missing: bool,
    /// Some pod's owner has no controller, and may come to have the workload as such, of which no pod tells.
    pub has_orphans: bool,
}

impl Selection {
    /// Whether it means this pod; none where the pod does not tell, but its owner's owner does.
    pub fn means(&self, pod: &Pod) -> Option<bool> {
        match self {
            Self::Labels(selector) => Some(selector.matches(&pod.labels)),
            Self::Names(names) => Some(names.contains(&*pod.name)),
            Self::Workload(workload) => {
                let Some(owner) = controller(pod.controller.as_deref()) else { return Some(false) };
                match (workload.kind, owner.kind.as_str()) {
                    (WorkloadKind::Deployment, "ReplicaSet") | (WorkloadKind::CronJob, "Job") => None,
                    (wanted, kind) => Some(kind == format!("{wanted:?}") && owner.name == workload.name),
                }
            }
        }
    }
}

/// What is above a pod's owner.
#[derive(Clone, Debug)]
enum Above {
    /// A controller of this kind and name.
    Controller(String, String),
    /// Nothing, of an owner that is there: it may be adopted.
    Nothing,
    /// Nothing that could be asked for, ever.
    Other,
}

/// Looks up the owners of owners.
pub struct Owners {
    client: Client,
    /// A ReplicaSet or a Job, as a pod's reference in a namespace has it, to kind and name of its controller, if it had one then.
    remembered: Mutex<HashMap<String, (Instant, Above)>>,
}

impl Owners {
    /// Asks with this client; needs `get` on the six kinds of workloads.
    pub fn new(client: Client) -> Self {
        Self { client, remembered: Mutex::default() }
    }

    /// Those of `pods` that the selection means.
    ///
    /// # Errors
    /// When the API server cannot be asked for an owner.
    pub async fn matching(
        &self,
        namespace: &str,
        selection: &Selection,
        pods: Vec<Arc<Pod>>,
        now: Instant,
    ) -> Result<Matched, kube::Error> {
        let mut matched = Matched::default();
        for pod in pods {
            let is_meant = match (selection.means(&pod), selection) {
                (None, Selection::Workload(workload)) => {
                    let above = self.owned(namespace, &pod, workload, now).await?;
                    matched.has_orphans |= matches!(above, Above::Nothing);
                    let kind = format!("{:?}", workload.kind);
                    matches!(above, Above::Controller(of, name) if of == kind && name == workload.name)
                }
                (known, _) => known == Some(true),
            };
            if is_meant {
                matched.pods.push(pod);
            }
        }
        if let Selection::Workload(workload) = selection {
            matched.workload_missing = matched.pods.is_empty() && !self.exists(namespace, workload).await?;
        }
        Ok(matched)
    }

    /// What is above the owner of a pod that a workload of this kind may own.
    async fn owned(
        &self,
        namespace: &str,
        pod: &Pod,
        workload: &WorkloadRef,
        now: Instant,
    ) -> Result<Above, kube::Error> {
        let Some(owner) = controller(pod.controller.as_deref()) else { return Ok(Above::Other) };
        match workload.kind {
            WorkloadKind::CronJob => self.above::<Job>(namespace, owner, now).await,
            _ => self.above::<ReplicaSet>(namespace, owner, now).await,
        }
    }

    async fn above<K>(&self, namespace: &str, owner: &Owner, now: Instant) -> Result<Above, kube::Error>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug,
    {
        // A reference may hold any text, and the UID of something elsewhere: what comes of it is true of it alone.
        if !is_name(&owner.name) || owner.uid.len() > UID_MAX {
            return Ok(Above::Other);
        }
        let reference = format!("{namespace}/{}/{}/{}", owner.kind, owner.name, owner.uid);
        if let Some((at, known)) = self.remembered.lock().expect("no panic while held").get(&reference)
            && (!matches!(known, Above::Nothing) || now < *at + ORPHAN)
        {
            return Ok(known.clone());
        }
        let found = self.metadata::<K>(namespace, &owner.name).await?;
        // Gone, or another of the same name: what has this UID does not come back, if it ever was there.
        let found = found.filter(|found| found.uid().as_deref() == Some(&owner.uid));
        let above = match found.map(|found| Owner::managing(found.metadata.owner_references)) {
            None => Above::Other,
            Some(None) => Above::Nothing,
            Some(Some(above)) => match controller(Some(&above)) {
                Some(above) => Above::Controller(above.kind.clone(), above.name.clone()),
                None => Above::Other,
            },
        };
        let mut remembered = self.remembered.lock().expect("no panic while held");
        if remembered.len() >= REMEMBERED_MAX {
            remembered.clear();
        }
        remembered.insert(reference, (now, above.clone()));
        Ok(above)
    }

    async fn metadata<K>(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<PartialObjectMeta<K>>, kube::Error>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug,
    {
        // From a session's spec, or from a pod, whose owner may be any text.
        if !is_name(name) {
            return Ok(None);
        }
        Api::<K>::namespaced(self.client.clone(), namespace).get_metadata_opt(name).await
    }

    async fn exists(&self, namespace: &str, workload: &WorkloadRef) -> Result<bool, kube::Error> {
        let name = &workload.name;
        Ok(match workload.kind {
            WorkloadKind::Deployment => self.metadata::<Deployment>(namespace, name).await?.is_some(),
            WorkloadKind::StatefulSet => self.metadata::<StatefulSet>(namespace, name).await?.is_some(),
            WorkloadKind::DaemonSet => self.metadata::<DaemonSet>(namespace, name).await?.is_some(),
            WorkloadKind::ReplicaSet => self.metadata::<ReplicaSet>(namespace, name).await?.is_some(),
            WorkloadKind::Job => self.metadata::<Job>(namespace, name).await?.is_some(),
            WorkloadKind::CronJob => self.metadata::<CronJob>(namespace, name).await?.is_some(),
        })
    }
}

/// The one that manages something, if it is of Kubernetes: others have kinds of the same names, whose objects are not what
/// is asked for.
fn controller(owner: Option<&Owner>) -> Option<&Owner> {
    owner.filter(|owner| ["apps/v1", "batch/v1"].contains(&owner.api_version.as_str()))
}

// SPDX-License-Identifier: Apache-2.0
//! What a session recorded, for users without credentials of its store: a listing, and URLs that read for some minutes.
//!
//! In: a token and a session's name, on the agents' port. Out: what lies in that session's own folder, a page at a time, or a
//! [`Denial`], which is counted. Three questions are asked each time and no answer is kept: whose token it is (TokenReview for
//! an audience of its own, so that neither an agent's token nor one for the API server does), whether that user may `get`
//! `tracesessions/data` of this session (SubjectAccessReview), and where the session's data are (its status and store, as for
//! agents). The caller says nothing about the place: the folder comes from the session, the keys from the store's listing.
//!
//! Whether a session exists is told only to who may read it. Data never pass through here, and URLs are never logged.
//!
//! Readers are many and may be slow. What one page takes is bounded ([`PAGE_BYTES`]), and who is answered holds one of few
//! [`Place`]s until the last byte has left for the connection ([`Held`]); of those no namespace may take all.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use crds::TraceSession;
use futures::StreamExt;
use k8s_openapi::api::authentication::v1::UserInfo;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt};
use node_api::data::data_server::{Data, DataServer};
use node_api::data::{ListRequest, ListResponse, Object};
use node_api::is_name;
use node_api::lanes::{Lanes, Place};
use object_store::path::Path;
use strum::{EnumIter, IntoStaticStr};
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::{Request, Response, Status};
use tower::Service;

use crate::held::Held;
use crate::metrics::Metrics;
use crate::store::{ResolvedStore, Stores};
use crate::token::{ApiReview, Places, Review, TOKEN_MAX};

/// Objects of one answer ...
const PAGE: usize = 1_000;
/// ... and what their keys and URLs, of some 600 bytes each, may take.
const PAGE_BYTES: usize = 1 << 20;
/// S3 has no longer keys.
const KEY_MAX: usize = 1_024;
/// Pages at once that are listed or on their way: they are kept apart from the agents' work by their number.
const LISTINGS: usize = 8;
/// Three names and a key.
const REQUEST_MAX: usize = 8 << 10;
/// For all of one answer.
const ANSWERED: Duration = Duration::from_secs(30);

/// Why nothing is read; the name in snake_case is the metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, IntoStaticStr, EnumIter)]
#[strum(serialize_all = "snake_case")]
pub enum Denial {
    /// No bearer token in the call.
    NoToken,
    /// The API server does not accept it for this audience.
    InvalidToken,
    /// Its user may not read this session's data.
    NotAllowed,
    /// Names or key cannot be those of a session.
    InvalidRequest,
    /// There is no such session, or it is another one by now.
    NoSession,
    /// The session has no store yet.
    NoData,
    /// The store cannot be resolved or does not answer.
    StoreNotReady,
    /// The API server could not be asked.
    ReviewFailed,
    /// Others are being answered.
    Busy,
}

impl Denial {
    /// As in the metric.
    pub fn label(self) -> &'static str {
        self.into()
    }
}

/// A denial and the sentence that says what to do.
type Denied = (Denial, String);

/// The service.
pub struct Readers {
    client: Client,
    stores: Arc<Stores>,
    reviews: ApiReview,
    /// Not the agents' places: users who ask much keep no agent waiting.
    reviewing: Places,
    listings: Lanes,
    metrics: Metrics,
    page: usize,
    page_bytes: usize,
}

impl Readers {
    /// Asks with `client`, which needs `create` on `tokenreviews` and `subjectaccessreviews`.
    pub fn new(client: Client, stores: Arc<Stores>, metrics: Metrics) -> Self {
        let reviews = ApiReview::new(client.clone(), node_api::DATA_AUDIENCE);
        let (reviewing, listings) = (Places::default(), Lanes::new(LISTINGS));
        Self { client, stores, reviews, reviewing, listings, metrics, page: PAGE, page_bytes: PAGE_BYTES }
    }

    /// The same with pages of so many objects, or bytes of keys and URLs: for tests of what follows the first.
    #[must_use]
    pub fn with_page(mut self, page: usize, page_bytes: usize) -> Self {
        (self.page, self.page_bytes) = (page, page_bytes);
        self
    }

    async fn answer(
        &self,
        token: Option<&str>,
        request: &ListRequest,
    ) -> Result<(ListResponse, Place), Denied> {
        let token = token.ok_or_else(|| (Denial::NoToken, "the call carries no bearer token".to_owned()))?;
        let ListRequest { namespace, session: name, uid, after } = request;
        if !is_name(namespace) || !is_name(name) {
            return Err((Denial::InvalidRequest, "namespace or name cannot be a session's".to_owned()));
        }
        let after = inside(after).ok_or_else(|| {
            (Denial::InvalidRequest, "after is not a key in the session's folder".to_owned())
        })?;
        let user = self.authenticate(token).await?;
        self.authorize(&user, namespace, name).await?;
        let (session, store) = {
            let _place = self.reviewing.take().await;
            let session = self.session(namespace, name, uid).await?;
            let store = self.stores.resolve(&session).await;
            (session, store.map_err(|problem| (Denial::StoreNotReady, problem.to_string()))?)
        };
        // No share by store: it is the reader who may be slow, and a store may be everybody's.
        let Some(place) = store.place_of_namespace(&self.listings) else {
            return Err((Denial::Busy, "others are being answered, ask again".to_owned()));
        };
        let mut page = self.list(&store, after).await?;
        page.uid = session.uid().unwrap_or_default();
        page.uri = store.dataset().uri;
        let reader = user.username.unwrap_or_default();
        tracing::info!(
            namespace,
            session = name,
            reader,
            objects = page.objects.len(),
            "read by the operator"
        );
        Ok((page, place))
    }

    async fn authenticate(&self, token: &str) -> Result<UserInfo, Denied> {
        let invalid = || {
            let audience = node_api::DATA_AUDIENCE;
            (
                Denial::InvalidToken,
                format!("the API server does not accept the token for audience {audience}"),
            )
        };
        if token.len() > TOKEN_MAX {
            return Err(invalid());
        }
        let _place = self.reviewing.take().await;
        let status = Places::answer("token", self.reviews.review(token)).await.ok_or_else(unasked)?;
        let ours = status.audiences.iter().flatten().any(|audience| audience == node_api::DATA_AUDIENCE);
        let user = status.user.filter(|user| user.username.as_ref().is_some_and(|name| !name.is_empty()));
        user.filter(|_| ours && status.authenticated == Some(true)).ok_or_else(invalid)
    }

    async fn authorize(&self, user: &UserInfo, namespace: &str, name: &str) -> Result<(), Denied> {
        let resource = ResourceAttributes {
            group: Some("tracelake.dev".to_owned()),
            resource: Some("tracesessions".to_owned()),
            subresource: Some("data".to_owned()),
            verb: Some("get".to_owned()),
            namespace: Some(namespace.to_owned()),
            name: Some(name.to_owned()),
            ..ResourceAttributes::default()
        };
        let spec = SubjectAccessReviewSpec {
            user: user.username.clone(),
            uid: user.uid.clone(),
            groups: user.groups.clone(),
            extra: user.extra.clone(),
            resource_attributes: Some(resource),
            ..SubjectAccessReviewSpec::default()
        };
        let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let _place = self.reviewing.take().await;
        let reviews: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let params = PostParams::default();
        let answer = Places::answer("access", reviews.create(&params, &review)).await.ok_or_else(unasked)?;
        let status = answer.status.unwrap_or_default();
        if status.allowed && status.denied != Some(true) {
            return Ok(());
        }
        let who = user.username.as_deref().unwrap_or_default();
        Err((
            Denial::NotAllowed,
            format!(
                "{who} may not read the data of {namespace}/{name}: it needs the verb get on tracesessions/data there \
                 (ClusterRole tracelake-data)"
            ),
        ))
    }

    async fn session(&self, namespace: &str, name: &str, uid: &str) -> Result<TraceSession, Denied> {
        let api: Api<TraceSession> = Api::namespaced(self.client.clone(), namespace);
        let found = Places::answer("session", api.get_opt(name)).await.ok_or_else(unasked)?;
        let Some(session) = found else {
            let message = format!("there is no TraceSession {namespace}/{name}");
            return Err((Denial::NoSession, message));
        };
        if !uid.is_empty() && session.uid().as_deref() != Some(uid) {
            let message = format!("TraceSession {namespace}/{name} is another one by now, with another UID");
            return Err((Denial::NoSession, message));
        }
        if session.status.as_ref().is_none_or(|status| status.dataset.is_none()) {
            let message = format!("TraceSession {namespace}/{name} has no data yet: its status says why");
            return Err((Denial::NoData, message));
        }
        Ok(session)
    }

    async fn list(&self, store: &ResolvedStore, after: Option<Path>) -> Result<ListResponse, Denied> {
        let folder = store.prefix().path();
        let objects = store.object_store();
        let mut listing = match after {
            Some(after) => {
                objects.list_with_offset(Some(folder), &folder.parts().chain(after.parts()).collect())
            }
            None => objects.list(Some(folder)),
        };
        let mut page = ListResponse {
            seconds: u32::try_from(store.grant_seconds()).unwrap_or(u32::MAX),
            ca_bundle: store.ca_bundle(),
            ..ListResponse::default()
        };
        let mut bytes = page.ca_bundle.len();
        while let Some(object) = listing.next().await {
            // A store's answer may hold anything.
            let object = object.map_err(|error| {
                let kind = crate::store::kind(&error);
                (Denial::StoreNotReady, format!("the session's folder cannot be listed: {kind}"))
            })?;
            let url = store.read_url(&object.location).await;
            let url = url.map_err(|problem| (Denial::StoreNotReady, problem.to_string()))?;
            // What is elsewhere has no URL, whatever the store lists.
            let (Some(get_url), Some(key)) = (url, store.prefix().strip(&object.location)) else { continue };
            bytes += key.len() + get_url.len();
            if page.objects.len() == self.page || (bytes > self.page_bytes && !page.objects.is_empty()) {
                page.more = true;
                break;
            }
            page.objects.push(Object { key: key.to_owned(), bytes: object.size, get_url });
        }
        Ok(page)
    }

    fn deny(&self, (denial, message): Denied, request: &ListRequest) -> Status {
        self.metrics.deny(denial);
        // Anybody may ask, and for anything.
        let name = |text: &'_ str| if is_name(text) { text.to_owned() } else { "(no name)".to_owned() };
        let (namespace, session) = (name(&request.namespace), name(&request.session));
        tracing::warn!(reason = denial.label(), namespace, session, "reading denied");
        let message = format!("{}: {message}", denial.label());
        match denial {
            Denial::NoToken | Denial::InvalidToken => Status::unauthenticated(message),
            Denial::NotAllowed => Status::permission_denied(message),
            Denial::InvalidRequest => Status::invalid_argument(message),
            Denial::NoSession => Status::not_found(message),
            Denial::NoData => Status::failed_precondition(message),
            Denial::StoreNotReady | Denial::ReviewFailed | Denial::Busy => Status::unavailable(message),
        }
    }
}

/// A key as a path below the session's folder; none of it for the first page.
#[expect(clippy::option_option, reason = "no key, and no key that may be")]
fn inside(after: &str) -> Option<Option<Path>> {
    if after.is_empty() {
        return Some(None);
    }
    // `parse` takes neither empty parts nor dots.
    let path = (after.len() <= KEY_MAX).then(|| Path::parse(after).ok())??;
    (path.as_ref() == after).then_some(Some(path))
}

fn unasked() -> Denied {
    (Denial::ReviewFailed, "the API server cannot be asked now".to_owned())
}

/// The generated server wants a service by value; this shares one.
#[derive(Clone)]
struct Shared(Arc<Readers>);

#[tonic::async_trait]
impl Data for Shared {
    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let token = node_api::token::bearer(request.metadata()).map(str::to_owned);
        let request = request.into_inner();
        let answered = tokio::time::timeout(ANSWERED, self.0.answer(token.as_deref(), &request)).await;
        let late = || Err((Denial::StoreNotReady, "no answer in time, ask again".to_owned()));
        match answered.unwrap_or_else(|_| late()) {
            Ok((page, place)) => {
                self.0.metrics.reads.inc();
                let mut page = Response::new(page);
                page.extensions_mut().insert(Arc::new(place));
                Ok(page)
            }
            Err(denied) => Err(self.0.deny(denied, &request)),
        }
    }
}

/// The server of `readers`, as the agents' port has it.
pub fn server(
    readers: Arc<Readers>,
) -> impl Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible, Future: Send>
+ NamedService
+ Clone
+ Send
+ Sync
+ 'static {
    Held(DataServer::new(Shared(readers)).max_decoding_message_size(REQUEST_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_begins_after_a_key_of_the_folder_only() {
        assert_eq!(inside(""), Some(None));
        let key = "processes/node-1_0123456789abcdef0123456789abcdef_000001.parquet";
        assert_eq!(inside(key), Some(Some(Path::from(key))));
        let long = "a".repeat(KEY_MAX + 1);
        for outside in ["../other/session", "processes/../../x", "/processes", "a//b", "a/", ".", &long] {
            assert_eq!(inside(outside), None, "{outside}");
        }
    }
}

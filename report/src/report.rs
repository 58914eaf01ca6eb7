// SPDX-License-Identifier: Apache-2.0

//! The report of one session: every section, in the order in which it is read.
//!
//! In: the session and an engine. Out: [`Report`], whose JSON is the format `tracelake-report/2`, and its [`View`]s.

use dataset::reader::Contents;
use dataset::render::utc;
use serde::Serialize;

use crate::account::Account;
use crate::drops::{self, Drops};
use crate::engine::{Engine, ReportError};
use crate::format::{Unit, things};
use crate::memory::{self, Memory};
use crate::page_faults::{self, PageFaults};
use crate::processes::{self, Processes};
use crate::retransmits::{self, Retransmits};
use crate::scheduling::{self, Scheduling};
use crate::scope::{Scope, Section};
use crate::tcp_health::{self, TcpHealth};
use crate::throughput::{self, Throughput};
use crate::view::View;

/// The version of the JSON: fields may be added to it, none changes its meaning.
pub const FORMAT: &str = "tracelake-report/2";

/// What a session says.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// [`FORMAT`].
    pub format: &'static str,
    /// Which session.
    pub session: SessionName,
    /// What was lost and not covered.
    pub account: Account,
    /// How well TCP does.
    pub tcp_health: Section<TcpHealth>,
    /// Who had how much memory.
    pub memory: Section<Memory>,
    /// What ran.
    pub processes: Section<Processes>,
    /// Who needed pages.
    pub page_faults: Section<PageFaults>,
    /// Who waited for a CPU.
    pub scheduling: Section<Scheduling>,
    /// What was dropped.
    pub drops: Section<Drops>,
    /// What was sent again.
    pub retransmits: Section<Retransmits>,
    /// Who moved how much.
    pub throughput: Section<Throughput>,
    /// For those who show it.
    #[serde(skip)]
    views: Vec<View>,
}

/// Which session it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionName {
    /// `local` for `tracelake record`.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// When its window opened.
    pub start_time: String,
    /// Beginning of what was traced, microseconds since 1970.
    pub from_us: i64,
    /// Its end.
    pub to_us: i64,
    /// Nodes that took part.
    pub nodes: Vec<String>,
}

impl Report {
    /// Makes the report of a session from its own files and its tables.
    ///
    /// A section of which an object is gone or damaged says so, and the others are made all the same ([`Self::unread`]).
    ///
    /// # Errors
    /// When the engine fails for another reason, such as a store that does not answer: what cannot be read then may well be there. And
    /// when an answer has another shape than its query makes it.
    pub async fn new(contents: &Contents, engine: &impl Engine) -> Result<Self, ReportError> {
        let scope = Scope::new(contents);
        let account = Account::new(&scope);
        let session = contents.session.as_ref();
        let mut nodes: Vec<String> = contents
            .manifest
            .iter()
            .flat_map(|manifest| manifest.nodes.iter().map(|node| node.node.clone()))
            .chain(contents.parts().map(|(_, node)| node.node.clone()))
            .collect();
        nodes.sort();
        nodes.dedup();
        let name = SessionName {
            namespace: session.map(|session| session.namespace.clone()).unwrap_or_default(),
            name: session.map(|session| session.session.clone()).unwrap_or_default(),
            uid: session.map(|session| session.uid.clone()).unwrap_or_default(),
            start_time: session.map(|session| session.start_time.clone()).unwrap_or_default(),
            from_us: scope.from_us,
            to_us: scope.to_us,
            nodes,
        };
        let mut report = Self {
            format: FORMAT,
            session: name,
            account,
            tcp_health: or_unread(tcp_health::read(engine, &scope).await)?,
            memory: or_unread(memory::read(engine, &scope).await)?,
            processes: or_unread(processes::read(engine, &scope).await)?,
            page_faults: or_unread(page_faults::read(engine, &scope).await)?,
            scheduling: or_unread(scheduling::read(engine, &scope).await)?,
            drops: or_unread(drops::read(engine, &scope).await)?,
            retransmits: or_unread(retransmits::read(engine, &scope).await)?,
            throughput: or_unread(throughput::read(engine, &scope).await)?,
            views: Vec::new(),
        };
        report.views = report.show(&scope);
        Ok(report)
    }

    /// As it is shown, section by section.
    pub fn views(&self) -> &[View] {
        &self.views
    }

    /// Titles of sections that could not be read because an object is gone or damaged.
    pub fn unread(&self) -> impl Iterator<Item = &str> {
        self.views.iter().filter(|view| view.unread).map(|view| view.title.as_str())
    }

    /// Which session.
    pub fn title(&self) -> String {
        format!("{}/{}", self.session.namespace, self.session.name)
    }

    /// On how many nodes, for how long, from when.
    pub fn subtitle(&self) -> String {
        let session = &self.session;
        let nodes = things(session.nodes.len() as u64, "node", "nodes");
        if session.to_us <= session.from_us {
            return format!("{nodes}, nothing was traced");
        }
        let length = Unit::Nanoseconds.format((session.to_us - session.from_us) as f64 * 1e3);
        let from = utc(session.from_us);
        format!("{nodes}, {length} from {}Z", from.split('.').next().unwrap_or_default())
    }

    fn show(&self, scope: &Scope<'_>) -> Vec<View> {
        vec![
            self.account.view(),
            self.tcp_health.view("tcp-health", "TCP health", TcpHealth::view),
            self.memory.view("memory", "Memory over time", Memory::view),
            self.processes.view("processes", "Processes", |processes, view| processes.view(scope, view)),
            self.page_faults.view("page-faults", "Page faults", PageFaults::view),
            self.scheduling.view("scheduling", "Scheduling latency", Scheduling::view),
            self.drops.view("drops", "Dropped packets", Drops::view),
            self.retransmits.view("retransmits", "Retransmissions", Retransmits::view),
            self.throughput.view("throughput", "Throughput", |throughput, view| throughput.view(scope, view)),
        ]
    }
}

/// A section of which an object cannot be read ends no report.
fn or_unread<T>(section: Result<Section<T>, ReportError>) -> Result<Section<T>, ReportError> {
    match section {
        Err(error @ ReportError::Object(_)) => Ok(Section::Unread(error.to_string())),
        section => section,
    }
}

// SPDX-License-Identifier: Apache-2.0
//! Names of the running kernel's enumerators, for columns that show why the kernel did something.
//!
//! Numbers of reasons change from kernel to kernel, names rarely do: rows hold names. A value without a name in this
//! kernel's BTF is shown as its number.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::btf::Btf;
use crate::pipeline::batch::Row;

/// Values of one enum and what a column calls them.
#[derive(Clone, Debug)]
pub struct Names(Arc<BTreeMap<i64, String>>);

/// Enums that were read already: parsing the kernel's types takes 15 ms.
static READ: Mutex<BTreeMap<&str, Names>> = Mutex::new(BTreeMap::new());

impl Names {
    /// The enumerators of `enum_name`, without `prefix`.
    pub fn of(enum_name: &'static str, prefix: &str) -> Names {
        let mut read = READ.lock().unwrap_or_else(PoisonError::into_inner);
        read.entry(enum_name)
            .or_insert_with(|| {
                let found = Btf::running().and_then(|btf| btf.enumerators(enum_name)).unwrap_or_default();
                let short = |name: String| name.strip_prefix(prefix).map_or(name.clone(), str::to_owned);
                // Markers such as `..._MAX` share a value with nothing; of two names for one value the first counts.
                let mut names = BTreeMap::new();
                for (name, value) in found {
                    names.entry(value).or_insert_with(|| short(name));
                }
                Names(Arc::new(names))
            })
            .clone()
    }

    /// The name of a value, if it has one.
    pub fn get(&self, value: i64) -> Option<&str> {
        self.0.get(&value).map(String::as_str)
    }

    /// Sets a column to the name of a value.
    pub fn set(&self, row: &mut Row<'_>, column: usize, value: i64) {
        match self.get(value) {
            Some(name) => row.text(column, name),
            None => row.text(column, &value.to_string()),
        }
    }
}

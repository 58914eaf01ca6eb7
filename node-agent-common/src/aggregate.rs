// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Layout of what the kernel side adds up in maps, and the macro that declares it.
//!
//! In: one [`aggregate!`](crate::aggregate) per table. Out: the key and the value of a map's entry, and the record that the
//! two make when the entry is taken out: the same kind of record as comes through a ring, with the same decoder.
//!
//! A key begins with a [`Header`](crate::event::Header) whose `ts_ns` is the number of the window. A value is words of 64
//! bits, the first of which counts events; every word says how it joins the same word of another entry ([`Merge`]). So
//! user space can add up what it took out without knowing what it is.

use crate::event::Event;

/// Slots of a histogram: slot i counts values from 2^i to below 2^(i+1), the first also 0, the last also what is above.
pub const SLOTS: usize = 40;

/// A histogram's slots.
pub type Histogram = [u64; SLOTS];

/// How a word joins the same word of another entry with the same key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merge {
    /// Both are added; a word that stands for sampled events counts as many times as each of them stands for.
    Sum,
    /// The larger one stays.
    Max,
    /// The later one stays.
    Last,
}

impl Merge {
    /// The joined word; `weight` is what each event behind `new` stands for.
    pub const fn join(self, old: u64, new: u64, weight: u64) -> u64 {
        match self {
            Merge::Sum => old.saturating_add(new.saturating_mul(weight)),
            Merge::Max => {
                if new > old {
                    new
                } else {
                    old
                }
            }
            Merge::Last => new,
        }
    }
}

/// A record that is made of a map's entry: its key, then its value.
///
/// # Safety
/// The type is `Key` followed by `Value`, without padding; `Key` begins with a header, `Value` is of words of 64 bits only.
/// [`aggregate!`](crate::aggregate) proves it, and is the only place that should implement it.
pub unsafe trait Aggregate: Event {
    /// The map's key.
    type Key: Copy + 'static;
    /// The map's value, all zeros at first.
    type Value: Copy + 'static;
    /// How the words of the value join: so many words, and how.
    const MERGES: &'static [(usize, Merge)];
}

/// Declares a table that the kernel side adds up.
///
/// ```ignore
/// aggregate! {
///     /// One row per window and thing.
///     pub struct Things: tag 70, table INDEX, columns after table::AFTER_WINDOW =>
///     key ThingsKey {
///         /// Carried by the key only; user space makes something of it.
///         reason: u64,
///     }
///     value ThingsValue {
///         /// Becomes a column of the same name.
///         Sum bytes: u64 => Int64 "B",
///     }
///     derived {
///         /// Column that user space computes.
///         kind => Dict "",
///     }
/// }
/// ```
/// Besides what [`event!`](crate::event) makes: the structs of key and value. The value has `count` in front. Of a table
/// whose columns another record declares, `columns after`, the columns of fields and `derived` are left out.
#[macro_export]
macro_rules! aggregate {
    (
        $(#[doc = $doc:literal])+
        pub struct $name:ident: tag $tag:literal, table $table:expr, columns after $prefix:expr =>
        key $key:ident {
            $( $(#[doc = $kdoc:literal])+ $kfield:ident: $kty:ty $(=> $kcty:ident $kunit:literal $($knull:ident)?)?, )*
        }
        value $value:ident {
            $( $(#[doc = $vdoc:literal])+ $merge:ident $vfield:ident: $vty:ty
               $(=> $vcty:ident $vunit:literal $($vnull:ident)?)?, )*
        }
        derived {
            $( $(#[doc = $ddoc:literal])+ $dfield:ident => $dcty:ident $dunit:literal $($dnull:ident)?, )*
        }
    ) => {
        $crate::event! {
            $(#[doc = $doc])+
            pub struct $name: tag $tag, table $table, columns after $prefix => {
                $( $(#[doc = $kdoc])+ $kfield: $kty $(=> $kcty $kunit $($knull)?)?, )*
                /// Events.
                count: u64,
                $( $(#[doc = $vdoc])+ $vfield: $vty $(=> $vcty $vunit $($vnull)?)?, )*
            }
            derived {
                $( $(#[doc = $ddoc])+ $dfield => $dcty $dunit $($dnull)?, )*
            }
        }

        $crate::aggregate! {
            @entry $name: key $key { $( $(#[doc = $kdoc])+ $kfield: $kty, )* }
            value $value { $( $(#[doc = $vdoc])+ $merge $vfield: $vty, )* }
        }
    };
    (
        $(#[doc = $doc:literal])+
        pub struct $name:ident: tag $tag:literal, table $table:expr =>
        key $key:ident { $( $(#[doc = $kdoc:literal])+ $kfield:ident: $kty:ty, )* }
        value $value:ident { $( $(#[doc = $vdoc:literal])+ $merge:ident $vfield:ident: $vty:ty, )* }
    ) => {
        $crate::event! {
            $(#[doc = $doc])+
            pub struct $name: tag $tag, table $table => {
                $( $(#[doc = $kdoc])+ $kfield: $kty, )*
                /// Events.
                count: u64,
                $( $(#[doc = $vdoc])+ $vfield: $vty, )*
            }
        }

        $crate::aggregate! {
            @entry $name: key $key { $( $(#[doc = $kdoc])+ $kfield: $kty, )* }
            value $value { $( $(#[doc = $vdoc])+ $merge $vfield: $vty, )* }
        }
    };
    (
        @entry $name:ident:
        key $key:ident { $( $(#[doc = $kdoc:literal])+ $kfield:ident: $kty:ty, )* }
        value $value:ident { $( $(#[doc = $vdoc:literal])+ $merge:ident $vfield:ident: $vty:ty, )* }
    ) => {
        /// What entries of the map are told apart by.
        #[repr(C)]
        #[derive(Clone, Copy, Debug)]
        pub struct $key {
            /// Filled by the function that adds up.
            pub header: $crate::event::Header,
            $( $(#[doc = $kdoc])+ pub $kfield: $kty, )*
        }

        /// What is added up.
        #[repr(C)]
        #[derive(Clone, Copy, Debug)]
        pub struct $value {
            /// Events.
            pub count: u64,
            $( $(#[doc = $vdoc])+ pub $vfield: $vty, )*
        }

        const _: () = assert!(
            size_of::<$key>() % 8 == 0
                && size_of::<$value>() % 8 == 0
                && size_of::<$name>() == size_of::<$key>() + size_of::<$value>(),
            "an entry has padding: order the fields by size, add reserved ones"
        );

        // SAFETY: the same fields in the same order, no padding, words only (asserted here and by `event!`).
        unsafe impl $crate::aggregate::Aggregate for $name {
            type Key = $key;
            type Value = $value;
            const MERGES: &'static [(usize, $crate::aggregate::Merge)] = &[
                (1, $crate::aggregate::Merge::Sum),
                $( (size_of::<$vty>() / 8, $crate::aggregate::Merge::$merge), )*
            ];
        }
    };
}

// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Layout of the records in the kernel's rings, and the macro that declares them.
//!
//! In: one [`event!`](crate::event) per record. Out: a `repr(C)` struct without padding, the columns it becomes, and
//! their positions in the table. Both sides compile this file, so a record cannot be written one way and read another.

use crate::target::SLOTS;

/// What every record starts with; filled by the one function that sends records.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Header {
    /// Which struct follows: its `TAG`.
    pub tag: u16,
    /// CPU that the hook ran on.
    pub cpu: u16,
    /// How the target was found: an [`Attribution`].
    pub attribution: u8,
    /// The set of limits by which it was admitted: see [`LIMIT_SETS`](crate::counters::LIMIT_SETS). 0 for what is not sampled.
    pub limits: u8,
    /// Zero.
    pub reserved: [u8; 2],
    /// Sessions that want the record, one bit per slot.
    pub slots: u64,
    /// Nanoseconds since boot.
    pub ts_ns: u64,
    /// Cgroup (v2) the record was attributed by.
    pub cgroup_id: u64,
    /// Inode of the network namespace; 0 where the hook does not know it.
    pub netns: u64,
}

impl Header {
    /// The header at the beginning of a record; `None` when it is shorter. The bytes need no alignment.
    pub fn of(record: &[u8]) -> Option<Header> {
        let bytes = record.first_chunk::<{ size_of::<Header>() }>()?;
        // SAFETY: as many bytes as the header has; it is made of integers.
        Some(unsafe { bytes.as_ptr().cast::<Header>().read_unaligned() })
    }

    /// Writes the header over the one at the beginning of a record.
    ///
    /// # Panics
    /// When the record is shorter than a header.
    pub fn write(&self, record: &mut [u8]) {
        assert!(record.len() >= size_of::<Header>(), "a record begins with a header");
        // SAFETY: there is room, as asserted; the header has no padding.
        unsafe { record.as_mut_ptr().cast::<Header>().write_unaligned(*self) };
    }
}

const _: () = assert!(SLOTS == u64::BITS, "a record carries its sessions as the bits of one word");

/// How a row's target was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Attribution {
    /// The cgroup of the process.
    Task = 1,
    /// The cgroup that made the socket.
    Socket = 2,
    /// The target that the network namespace belongs to.
    Netns = 3,
    /// Nobody: the row is about the whole node.
    Node = 4,
}

impl Attribution {
    /// The word in the `attribution` column; `None` for a value that no hook writes.
    pub const fn name(value: u8) -> Option<&'static str> {
        match value {
            1 => Some("task"),
            2 => Some("socket"),
            3 => Some("netns"),
            4 => Some("none"),
            _ => None,
        }
    }
}

/// A record that may travel through a ring.
///
/// # Safety
/// The type is `repr(C)`, starts with a [`Header`], has no padding, and every bit pattern is valid.
/// [`event!`](crate::event) proves all but the last, and is the only place that should implement it.
pub unsafe trait Event: Copy {
    /// The value of [`Header::tag`] for this type, unique in the object.
    const TAG: u16;
    /// Position of the table that the record belongs to; [`CONTROL`](crate::target::CONTROL) for none.
    const TABLE: u32;

    /// The record in `bytes`, or `None` when it has another length. The bytes need no alignment.
    fn read(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != size_of::<Self>() {
            return None;
        }
        // SAFETY: the length is that of the type and every bit pattern is valid (contract of the trait).
        Some(unsafe { core::ptr::read_unaligned(bytes.as_ptr().cast()) })
    }

    /// The record's bytes, as they come through a ring.
    fn bytes(&self) -> &[u8] {
        // SAFETY: no padding, and integers only (contract of the trait).
        unsafe { core::slice::from_raw_parts(core::ptr::from_ref(self).cast(), size_of::<Self>()) }
    }
}

/// Documentation as written after `///`, without the space in front.
pub const fn trim(doc: &'static str) -> &'static str {
    match doc.as_bytes() {
        [b' ', rest @ ..] => match core::str::from_utf8(rest) {
            Ok(rest) => rest,
            Err(_) => doc,
        },
        _ => doc,
    }
}

/// Text in a fixed array, up to its first NUL.
pub fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// Declares a record: its layout, and the columns of the table it becomes.
///
/// ```ignore
/// event! {
///     /// One row per thing.
///     pub struct Thing: tag 7, table 3, columns after table::AFTER_PROCESS => {
///         /// Carried by the record only; user space makes something of it.
///         flags: u32,
///         /// Becomes a column of the same name.
///         bytes: u64 => Int64 "B",
///         /// May be null.
///         latency_ns: u64 => Int64 "ns" null,
///     }
///     derived {
///         /// Column that user space computes.
///         kind => Dict "",
///     }
/// }
/// ```
/// Makes the struct (with `header` in front), `Thing::COLUMNS`, and a module `at` with the position of each column in
/// its table (`at::bytes`). One such declaration per module; further records of the same table leave out
/// `columns after` and `derived`.
#[macro_export]
macro_rules! event {
    (
        $(#[doc = $doc:literal])+
        pub struct $name:ident: tag $tag:literal, table $table:expr, columns after $prefix:expr => {
            $( $(#[doc = $fdoc:literal])+ $field:ident: $fty:ty $(=> $cty:ident $unit:literal $($null:ident)?)?, )*
        }
        derived {
            $( $(#[doc = $ddoc:literal])+ $dfield:ident => $dcty:ident $dunit:literal $($dnull:ident)?, )*
        }
    ) => {
        $crate::event! {
            $(#[doc = $doc])+
            pub struct $name: tag $tag, table $table => { $( $(#[doc = $fdoc])+ $field: $fty, )* }
        }

        impl $name {
            /// The columns of this record's table, after those in front that other tables have as well.
            pub const COLUMNS: &'static [$crate::table::Column] = {
                const DECLARED: &[Option<$crate::table::Column>] = &[
                    $( $crate::event!(@column $field [$($fdoc)+] $($cty $unit $($null)?)?), )*
                    $( $crate::event!(@column $dfield [$($ddoc)+] $dcty $dunit $($dnull)?), )*
                ];
                const COLUMNS: [$crate::table::Column; $crate::table::count(DECLARED)] =
                    $crate::table::declared(DECLARED);
                &COLUMNS
            };
        }

        /// Positions of the table's own columns among all of its columns.
        #[allow(non_upper_case_globals, missing_docs, reason = "named and documented as the columns are")]
        pub mod at {
            use super::*;
            $( $crate::event!(@at $name $prefix; $field $($cty)?); )*
            $( $crate::event!(@at $name $prefix; $dfield $dcty); )*
        }
    };
    (
        $(#[doc = $doc:literal])+
        pub struct $name:ident: tag $tag:literal, table $table:expr => {
            $( $(#[doc = $fdoc:literal])+ $field:ident: $fty:ty, )*
        }
    ) => {
        $(#[doc = $doc])+
        #[repr(C)]
        #[derive(Clone, Copy, Debug)]
        pub struct $name {
            /// Filled by the function that sends the record.
            pub header: $crate::event::Header,
            $( $(#[doc = $fdoc])+ pub $field: $fty, )*
        }

        const _: () = assert!(
            size_of::<$name>() == size_of::<$crate::event::Header>() $( + size_of::<$fty>() )*,
            "the record has padding: order the fields by size, add reserved ones"
        );

        // SAFETY: repr(C), the header first, no padding (asserted above); fields are integers and arrays of them.
        unsafe impl $crate::event::Event for $name {
            const TAG: u16 = $tag;
            const TABLE: u32 = $table;
        }
    };
    (@column $field:ident [$($doc:literal)+]) => { None };
    (@column $field:ident [$($doc:literal)+] $ty:ident $unit:literal $($null:ident)?) => {
        Some($crate::table::Column {
            name: stringify!($field),
            ty: $crate::table::ColumnType::$ty,
            unit: $unit,
            nullable: $crate::event!(@null $($null)?),
            doc: $crate::event::trim(concat!($($doc),+)),
        })
    };
    (@at $name:ident $prefix:expr; $field:ident) => {};
    (@at $name:ident $prefix:expr; $field:ident $ty:ident) => {
        pub const $field: usize = $prefix + $crate::table::position($name::COLUMNS, stringify!($field));
    };
    (@null) => { false };
    (@null null) => { true };
}

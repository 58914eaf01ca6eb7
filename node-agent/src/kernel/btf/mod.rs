// SPDX-License-Identifier: Apache-2.0
//! Reads the running kernel's type information (BTF): where a field lies, what an enumerator is worth, whether a hook exists.
//!
//! In: the bytes of `/sys/kernel/btf/vmlinux`. Out: [`Member`] (byte offset, width, bits), enumerator values, and the
//! arguments of tracepoints and functions. The loader writes the offsets into the programs' rodata before anything is
//! loaded, and the capability report is made from what is missing here: the same answer serves both.
//! Loses nothing: a type that is absent is an error which names it, never a zero offset.
//! Invariant: no input makes this module panic or loop; every read is bounds-checked and every walk is bounded, because
//! the bytes may come from a file that somebody else wrote (`--btf`, tests, a kernel that adds kinds).
//! Why an own reader: aya's is private, the `btf` crate copies every type and name (126,000 of them) and refuses kinds it
//! does not know. This one makes one pass that notes where each type begins, and hashes names on the first lookup.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Where the kernel publishes its own BTF.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
/// magic, version, flags, hdr_len, type_off, type_len, str_off, str_len.
const HEADER_BYTES: usize = 24;
/// Offset of `layout_off, layout_len` in headers that carry the sizes of their kinds (newest kernels).
const HEADER_LAYOUT: usize = 24;
/// `struct btf_type`: name_off, info, size or type.
const TYPE_BYTES: usize = 12;
/// Typedefs, qualifiers, arrays and anonymous members deeper than this are not made by compilers: a cycle, then.
const MAX_DEPTH: usize = 32;
/// Members looked at for one part of a path, anonymous ones included. The kernel's largest struct has some 300.
const MAX_MEMBERS: usize = 100_000;

const KIND_INT: u32 = 1;
const KIND_PTR: u32 = 2;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_FWD: u32 = 7;
const KIND_TYPEDEF: u32 = 8;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
const KIND_RESTRICT: u32 = 11;
const KIND_FUNC: u32 = 12;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_FLOAT: u32 = 16;
const KIND_DECL_TAG: u32 = 17;
const KIND_TYPE_TAG: u32 = 18;
const KIND_ENUM64: u32 = 19;

/// Why a question to the BTF has no answer.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BtfError {
    /// The file could not be read.
    #[error("cannot read {}: {reason}; the kernel must be built with CONFIG_DEBUG_INFO_BTF", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// The bytes are not BTF, or end in the middle of something.
    #[error("malformed BTF at byte {offset}: {what}")]
    Malformed {
        /// Where, from the start of the file.
        offset: usize,
        /// What was expected there.
        what: &'static str,
    },
    /// No type of that kind and name.
    #[error("this kernel's BTF has no {kind} `{name}`")]
    MissingType {
        /// `struct`, `enum`, `enumerator`, ...
        kind: &'static str,
        /// The name that was looked for.
        name: String,
    },
    /// The type is there, the member is not.
    #[error("this kernel's `{type_name}` has no member `{path}`")]
    MissingMember {
        /// The struct or union the path starts from.
        type_name: String,
        /// The dotted path.
        path: String,
    },
}

/// One field, resolved: what a program needs to load it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Bytes from the start of the outer type to the (first byte of the) field.
    pub offset: u32,
    /// Bytes to load: the field's own size or, for a bit-field, the smallest power of two that covers its bits.
    pub size: u32,
    /// For a bit-field: how far to shift the loaded (little-endian) value right. Otherwise 0.
    pub bit_offset: u32,
    /// For a bit-field: its width in bits. Otherwise 0, which means the whole field.
    pub bit_width: u32,
}

impl Member {
    /// Bits that remain after the shift: all of `size` for an ordinary field.
    pub fn mask(&self) -> u64 {
        let bits = if self.bit_width == 0 { self.size.saturating_mul(8) } else { self.bit_width };
        if bits >= 64 { u64::MAX } else { (1 << bits) - 1 }
    }
}

/// Arguments of a tracepoint or function, as the kernel was compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prototype {
    /// One per argument: the name of its type without qualifiers, `*` in front for a pointer (`*sock`, `int`).
    pub args: Vec<String>,
    /// The return type, written the same way; `void` for none.
    pub ret: String,
}

/// The parsed file. Cheap to keep (the bytes and 8 bytes per type), and shareable between threads.
#[derive(Debug)]
pub struct Btf {
    data: Vec<u8>,
    /// Start of the string section in `data`, and its end.
    strings: (usize, usize),
    /// Where type `id` begins in `data`; slot 0 is `void` and unused.
    types: Vec<u32>,
    names: OnceLock<NameIndex>,
}

/// Chained hash of names: `heads[hash]` is the newest type id, `next[id]` the one before.
#[derive(Debug)]
struct NameIndex {
    heads: Vec<u32>,
    next: Vec<u32>,
}

/// `struct btf_type`, decoded.
#[derive(Debug, Clone, Copy)]
struct Type {
    name: u32,
    kind: u32,
    vlen: usize,
    kflag: bool,
    /// Size in bytes, or the id of another type, as the kind says.
    size_or_type: u32,
    /// Where the bytes behind the fixed part begin.
    tail: usize,
}

impl Btf {
    /// Reads and indexes the running kernel's BTF.
    ///
    /// # Errors
    /// [`BtfError::Read`] where the kernel has none, [`BtfError::Malformed`] where it cannot be understood.
    pub fn running() -> Result<Btf, BtfError> {
        Btf::from_file(Path::new(VMLINUX))
    }

    /// Reads and indexes a BTF file.
    ///
    /// # Errors
    /// As [`Btf::running`].
    pub fn from_file(path: &Path) -> Result<Btf, BtfError> {
        let data = fs::read(path)
            .map_err(|error| BtfError::Read { path: path.to_path_buf(), reason: error.to_string() })?;
        Btf::parse(data)
    }

    /// Indexes the bytes of a BTF file.
    ///
    /// # Errors
    /// [`BtfError::Malformed`] where a section or a type reaches past the end, or a kind has an unknown size.
    pub fn parse(data: Vec<u8>) -> Result<Btf, BtfError> {
        let bad = |offset, what| BtfError::Malformed { offset, what };
        if read_u16(&data, 0) != Some(MAGIC) {
            return Err(bad(0, "the magic number 0xeb9f in this machine's byte order"));
        }
        let word = |at: usize| read_u32(&data, at).map(|v| v as usize).ok_or(bad(at, "a complete header"));
        let header = word(4)?;
        if header < HEADER_BYTES {
            return Err(bad(4, "a header of at least 24 bytes"));
        }
        let section = |off: usize, len: usize, at| {
            let start = header.checked_add(off);
            let end = start.and_then(|start| start.checked_add(len));
            match (start, end) {
                (Some(start), Some(end)) if end <= data.len() => Ok((start, end)),
                _ => Err(bad(at, "a section within the file")),
            }
        };
        let (type_start, type_end) = section(word(8)?, word(12)?, 8)?;
        let strings = section(word(16)?, word(20)?, 16)?;
        // Kernels that describe the sizes of their kinds let us step over kinds made after this program.
        let layout = if header >= HEADER_LAYOUT + 8 {
            section(word(HEADER_LAYOUT)?, word(HEADER_LAYOUT + 4)?, HEADER_LAYOUT)?
        } else {
            (0, 0)
        };

        // Types take 20 to 24 bytes each on average; a wrong guess only costs a reallocation.
        let mut types = Vec::with_capacity((type_end - type_start) / 20 + 1);
        types.push(0);
        let mut at = type_start;
        while at < type_end {
            let ty = decode(&data, at).ok_or(bad(at, "a complete type"))?;
            let tail = tail_bytes(&data, layout, ty).ok_or(bad(at, "a kind whose size is known"))?;
            types.push(u32::try_from(at).map_err(|_| bad(at, "a file below 4 GiB"))?);
            at = ty.tail + tail;
        }
        if at != type_end {
            return Err(bad(at, "the last type to end with its section"));
        }
        Ok(Btf { data, strings, types, names: OnceLock::new() })
    }

    /// Size of a struct or union in bytes.
    ///
    /// # Errors
    /// [`BtfError::MissingType`].
    pub fn size_of(&self, type_name: &str) -> Result<u32, BtfError> {
        Ok(self.aggregate(type_name)?.size_or_type)
    }

    /// Resolves `path` (`__sk_common.skc_net.net`) from the struct or union `type_name`, through embedded structs,
    /// anonymous members, typedefs and qualifiers; an array in the middle stands for its first element. A pointer ends the
    /// path: what it points to is another question.
    ///
    /// # Errors
    /// [`BtfError::MissingType`] or [`BtfError::MissingMember`].
    pub fn member(&self, type_name: &str, path: &str) -> Result<Member, BtfError> {
        let missing = || BtfError::MissingMember { type_name: type_name.to_owned(), path: path.to_owned() };
        let mut current = self.aggregate(type_name)?;
        let mut bits = 0u64;
        let mut parts = path.split('.').peekable();
        while let Some(part) = parts.next() {
            let (at, width, id) =
                self.find_member(current, part.as_bytes(), 0, &mut { MAX_MEMBERS }).ok_or_else(missing)?;
            bits += at;
            if parts.peek().is_some() {
                current = self
                    .element(id)
                    .filter(|ty| matches!(ty.kind, KIND_STRUCT | KIND_UNION))
                    .ok_or_else(missing)?;
                continue;
            }
            let byte = u32::try_from(bits / 8).map_err(|_| missing())?;
            if width == 0 {
                let size = self.type_size(id, 0).ok_or_else(missing)?;
                return Ok(Member { offset: byte, size, bit_offset: 0, bit_width: 0 });
            }
            let shift = (bits % 8) as u32;
            let size = (shift + width).div_ceil(8).next_power_of_two();
            return Ok(Member { offset: byte, size, bit_offset: shift, bit_width: width });
        }
        Err(missing())
    }

    /// The first of several `(type, path)` spellings that this kernel knows: fields are renamed and moved between
    /// releases (`parent`, `__parent`).
    ///
    /// # Errors
    /// The error of the first spelling, when none is known.
    pub fn member_any(&self, spellings: &[(&str, &str)]) -> Result<Member, BtfError> {
        let mut first = None;
        for (type_name, path) in spellings {
            match self.member(type_name, path) {
                Ok(member) => return Ok(member),
                Err(error) => first = first.or(Some(error)),
            }
        }
        Err(first.unwrap_or(BtfError::MissingType { kind: "member", name: String::new() }))
    }

    /// Value of an enumerator, by its own name: C enumerators share one name space, and many enums are anonymous
    /// (`TCP_SYN_SENT`). Where two enums declare the name, the first one counts: give `enum_name` then.
    ///
    /// # Errors
    /// [`BtfError::MissingType`].
    pub fn enumerator(&self, enum_name: Option<&str>, name: &str) -> Result<i64, BtfError> {
        let found = match enum_name {
            Some(enum_name) => {
                self.named(enum_name, &[KIND_ENUM, KIND_ENUM64]).and_then(|ty| self.enumerator_in(ty, name))
            }
            None => (1..self.types.len())
                .filter_map(|id| self.ty(id as u32))
                .filter(|ty| matches!(ty.kind, KIND_ENUM | KIND_ENUM64))
                .find_map(|ty| self.enumerator_in(ty, name)),
        };
        found.ok_or_else(|| BtfError::MissingType { kind: "enumerator", name: name.to_owned() })
    }

    /// All enumerators of a named enum with their values, in the kernel's order.
    ///
    /// # Errors
    /// [`BtfError::MissingType`].
    pub fn enumerators(&self, enum_name: &str) -> Result<Vec<(String, i64)>, BtfError> {
        let ty = self
            .named(enum_name, &[KIND_ENUM, KIND_ENUM64])
            .ok_or_else(|| BtfError::MissingType { kind: "enum", name: enum_name.to_owned() })?;
        Ok((0..ty.vlen)
            .filter_map(|index| self.enum_value(ty, index))
            .map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), value))
            .collect())
    }

    /// Arguments of a tracepoint as `tp_btf` and `raw_tp` programs get them, or `None` where the kernel has no such
    /// tracepoint.
    pub fn tracepoint(&self, name: &str) -> Option<Prototype> {
        let typedef = self.named(&format!("btf_trace_{name}"), &[KIND_TYPEDEF])?;
        let pointer = self.resolve(typedef.size_or_type).filter(|ty| ty.kind == KIND_PTR)?;
        let mut prototype = self.prototype(pointer.size_or_type)?;
        // The first argument is the tracer's own `void *`.
        if !prototype.args.is_empty() {
            prototype.args.remove(0);
        }
        Some(prototype)
    }

    /// Arguments of a kernel function, or `None` where this kernel has none of that name (inlined, renamed, in a
    /// module). That it exists does not say that it may be traced.
    pub fn function(&self, name: &str) -> Option<Prototype> {
        self.prototype(self.named(name, &[KIND_FUNC])?.size_or_type)
    }

    /// Whether a struct, union, enum or typedef of that name exists.
    pub fn has_type(&self, name: &str) -> bool {
        self.named(name, &[KIND_STRUCT, KIND_UNION, KIND_ENUM, KIND_ENUM64, KIND_TYPEDEF]).is_some()
    }

    /// Number of types, `void` left out.
    pub fn len(&self) -> usize {
        self.types.len() - 1
    }

    /// Whether there is no type at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn aggregate(&self, name: &str) -> Result<Type, BtfError> {
        self.named(name, &[KIND_STRUCT, KIND_UNION])
            .or_else(|| {
                let typedef = self.named(name, &[KIND_TYPEDEF])?;
                self.resolve(typedef.size_or_type).filter(|ty| matches!(ty.kind, KIND_STRUCT | KIND_UNION))
            })
            .ok_or_else(|| BtfError::MissingType { kind: "struct or union", name: name.to_owned() })
    }

    fn ty(&self, id: u32) -> Option<Type> {
        if id == 0 {
            return None;
        }
        decode(&self.data, *self.types.get(id as usize)? as usize)
    }

    /// Follows typedefs, qualifiers and tags to the type they stand for.
    fn resolve(&self, id: u32) -> Option<Type> {
        let mut ty = self.ty(id)?;
        for _ in 0..MAX_DEPTH {
            match ty.kind {
                KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_TYPE_TAG => {
                    ty = self.ty(ty.size_or_type)?;
                }
                _ => return Some(ty),
            }
        }
        None
    }

    /// As [`resolve`](Btf::resolve), and through arrays to what they are made of.
    fn element(&self, id: u32) -> Option<Type> {
        let mut ty = self.resolve(id)?;
        for _ in 0..MAX_DEPTH {
            if ty.kind != KIND_ARRAY {
                return Some(ty);
            }
            ty = self.resolve(read_u32(&self.data, ty.tail)?)?;
        }
        None
    }

    /// Bit position (from the start of `outer`), bit-field width or 0, and type id of a direct or anonymous member.
    fn find_member(
        &self,
        outer: Type,
        name: &[u8],
        depth: usize,
        budget: &mut usize,
    ) -> Option<(u64, u32, u32)> {
        if depth > MAX_DEPTH {
            return None;
        }
        for index in 0..outer.vlen {
            // Anonymous members that contain each other branch at every level: the depth alone does not end the walk.
            *budget = budget.checked_sub(1)?;
            let at = outer.tail + index * 12;
            let member_name = self.string(read_u32(&self.data, at)?)?;
            let id = read_u32(&self.data, at + 4)?;
            let raw = read_u32(&self.data, at + 8)?;
            let (bits, width) = if outer.kflag { (raw & 0x00ff_ffff, raw >> 24) } else { (raw, 0) };
            if member_name == name {
                return Some((u64::from(bits), width, id));
            }
            if member_name.is_empty()
                && let Some(inner) = self.resolve(id).filter(|ty| matches!(ty.kind, KIND_STRUCT | KIND_UNION))
                && let Some((inside, width, id)) = self.find_member(inner, name, depth + 1, budget)
            {
                return Some((u64::from(bits) + inside, width, id));
            }
        }
        None
    }

    fn type_size(&self, id: u32, depth: usize) -> Option<u32> {
        let ty = self.resolve(id)?;
        match ty.kind {
            KIND_PTR => Some(8),
            KIND_ARRAY if depth < MAX_DEPTH => {
                let element = self.type_size(read_u32(&self.data, ty.tail)?, depth + 1)?;
                element.checked_mul(read_u32(&self.data, ty.tail + 8)?)
            }
            KIND_INT | KIND_STRUCT | KIND_UNION | KIND_ENUM | KIND_ENUM64 | KIND_FLOAT => {
                Some(ty.size_or_type)
            }
            _ => None,
        }
    }

    fn enumerator_in(&self, ty: Type, name: &str) -> Option<i64> {
        (0..ty.vlen)
            .filter_map(|index| self.enum_value(ty, index))
            .find(|(candidate, _)| *candidate == name.as_bytes())
            .map(|(_, value)| value)
    }

    fn enum_value(&self, ty: Type, index: usize) -> Option<(&[u8], i64)> {
        let wide = ty.kind == KIND_ENUM64;
        let at = ty.tail + index * if wide { 12 } else { 8 };
        let name = self.string(read_u32(&self.data, at)?)?;
        let low = read_u32(&self.data, at + 4)?;
        let value = match (wide, ty.kflag) {
            (true, _) => (u64::from(read_u32(&self.data, at + 8)?) << 32 | u64::from(low)) as i64,
            // kflag says that the enumerators are signed.
            (false, true) => i64::from(low as i32),
            (false, false) => i64::from(low),
        };
        Some((name, value))
    }

    fn prototype(&self, id: u32) -> Option<Prototype> {
        let ty = self.resolve(id).filter(|ty| ty.kind == KIND_FUNC_PROTO)?;
        let args = (0..ty.vlen)
            .map(|index| read_u32(&self.data, ty.tail + index * 8 + 4).map(|id| self.spell(id)))
            .collect::<Option<_>>()?;
        Some(Prototype { args, ret: self.spell(ty.size_or_type) })
    }

    /// The name of a type without qualifiers, with a `*` for each pointer.
    fn spell(&self, mut id: u32) -> String {
        let mut text = String::new();
        for _ in 0..MAX_DEPTH {
            let Some(ty) = self.ty(id) else {
                text.push_str("void");
                break;
            };
            match ty.kind {
                KIND_PTR => text.push('*'),
                KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_TYPE_TAG => {}
                KIND_FUNC_PROTO => {
                    text.push_str("fn");
                    break;
                }
                _ => {
                    text.push_str(&String::from_utf8_lossy(self.string(ty.name).unwrap_or_default()));
                    break;
                }
            }
            id = ty.size_or_type;
        }
        text
    }

    /// The NUL-terminated string at `offset` of the string section.
    fn string(&self, offset: u32) -> Option<&[u8]> {
        let section = self.data.get(self.strings.0..self.strings.1)?;
        let rest = section.get(offset as usize..)?;
        let end = rest.iter().position(|byte| *byte == 0)?;
        rest.get(..end)
    }

    fn named(&self, name: &str, kinds: &[u32]) -> Option<Type> {
        if name.is_empty() {
            return None;
        }
        let index = self.names.get_or_init(|| self.hash_names());
        let mut id = *index.heads.get(hash(name.as_bytes()) & (index.heads.len() - 1))?;
        let mut found = None;
        // The chain was built by pushing to the front; the last match is the type the file declares first.
        while id != 0 {
            let ty = self.ty(id)?;
            if kinds.contains(&ty.kind) && self.string(ty.name) == Some(name.as_bytes()) {
                found = Some(ty);
            }
            id = *index.next.get(id as usize)?;
        }
        found
    }

    fn hash_names(&self) -> NameIndex {
        let mut heads = vec![0u32; self.types.len().next_power_of_two()];
        let mut next = vec![0u32; self.types.len()];
        let mask = heads.len() - 1;
        for (id, link) in (0u32..).zip(&mut next).skip(1) {
            let Some(ty) = self.ty(id) else { continue };
            let wanted = matches!(
                ty.kind,
                KIND_STRUCT | KIND_UNION | KIND_ENUM | KIND_ENUM64 | KIND_TYPEDEF | KIND_FUNC
            );
            if !wanted || ty.name == 0 {
                continue;
            }
            if let Some(name) = self.string(ty.name) {
                *link = std::mem::replace(&mut heads[hash(name) & mask], id);
            }
        }
        NameIndex { heads, next }
    }
}

/// FNV-1a with a final fold: names are short, and nobody gains by making this table slow.
fn hash(bytes: &[u8]) -> usize {
    let value = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
    (value ^ (value >> 32)) as usize
}

fn decode(data: &[u8], at: usize) -> Option<Type> {
    let fixed = data.get(at..at.checked_add(TYPE_BYTES)?)?;
    let info = read_u32(fixed, 4)?;
    Some(Type {
        name: read_u32(fixed, 0)?,
        // Today vlen has 16 bits and kind 5; the bits between are zero, and newer kernels extend into them.
        vlen: (info & 0x00ff_ffff) as usize,
        kind: (info >> 24) & 0x7f,
        kflag: info >> 31 == 1,
        size_or_type: read_u32(fixed, 8)?,
        tail: at + TYPE_BYTES,
    })
}

/// Bytes behind the fixed part of a type, or `None` for a kind that nobody described.
fn tail_bytes(data: &[u8], layout: (usize, usize), ty: Type) -> Option<usize> {
    let (fixed, each) = match ty.kind {
        KIND_INT | KIND_VAR | KIND_DECL_TAG => (4, 0),
        KIND_ARRAY => (12, 0),
        KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => (0, 12),
        KIND_ENUM | KIND_FUNC_PROTO => (0, 8),
        KIND_PTR | KIND_FWD | KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_FUNC
        | KIND_FLOAT | KIND_TYPE_TAG => (0, 0),
        kind => {
            // struct btf_layout { u8 info_sz; u8 elem_sz; u16 flags; }, one per kind.
            let entry = data.get(layout.0..layout.1)?.get(kind as usize * 4..)?.get(..2)?;
            (usize::from(entry[0]), usize::from(entry[1]))
        }
    };
    ty.vlen.checked_mul(each)?.checked_add(fixed)
}

fn read_u16(data: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(data.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn read_u32(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(data.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests;

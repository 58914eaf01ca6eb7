// SPDX-License-Identifier: Apache-2.0

//! Shows a dataset as text tables.
//!
//! In: record batches, or the contents of a session. Out: text for a terminal, with numbers to the right
//! and at most [`MAX_CELL`] characters in a cell. Control characters of traced programs (their
//! names and arguments are theirs to choose), and of whoever wrote a manifest, never reach the terminal:
//! they are shown escaped.

use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int32Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, ArrowPrimitiveType, RecordBatch};
use arrow_schema::{DataType, TimeUnit};
use object_store::ObjectStore;

use crate::ledger::Term;
use crate::reader::{self, Contents, ReadError, plain};
use crate::{bookkeeping, catalogue};

/// Longer cells are cut, with an ellipsis.
pub const MAX_CELL: usize = 40;

/// A table of text: headers, then rows. Columns of numbers are aligned to the right.
pub fn table(headers: &[&str], rows: &[Vec<String>]) -> String {
    table_within(headers, rows, MAX_CELL)
}

/// A table whose cells have at most so many characters.
pub fn table_within(headers: &[&str], rows: &[Vec<String>], longest: usize) -> String {
    let cells: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| plain(cell, longest)).collect()).collect();
    let widths: Vec<usize> = headers
        .iter()
        .enumerate()
        .map(|(i, header)| {
            let widest = cells.iter().filter_map(|row| row.get(i)).map(|cell| cell.chars().count()).max();
            widest.unwrap_or(0).max(header.chars().count())
        })
        .collect();
    let right: Vec<bool> = (0..headers.len())
        .map(|i| {
            let mut column =
                cells.iter().filter_map(|row| row.get(i)).filter(|cell| !cell.is_empty()).peekable();
            column.peek().is_some() && column.all(|cell| cell.parse::<f64>().is_ok())
        })
        .collect();
    let line = |row: &[&str]| {
        let mut text = String::new();
        for ((cell, width), right) in row.iter().zip(&widths).zip(&right) {
            let pad = " ".repeat(width - cell.chars().count());
            text += &if *right { format!("{pad}{cell}  ") } else { format!("{cell}{pad}  ") };
        }
        text.trim_end().to_owned() + "\n"
    };
    let mut text = line(headers);
    let rules: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
    text += &line(&rules.iter().map(String::as_str).collect::<Vec<_>>());
    for row in &cells {
        text += &line(&row.iter().map(String::as_str).collect::<Vec<_>>());
    }
    text
}

/// One value as text; null is empty. What is of a type that no column of ours has is named by it: whoever wrote the file chose it.
pub fn cell(column: &dyn Array, row: usize) -> String {
    if column.is_null(row) {
        return String::new();
    }
    let known = match column.data_type() {
        DataType::Int64 => number::<Int64Type>(column, row),
        DataType::Int32 => number::<Int32Type>(column, row),
        DataType::Float64 => number::<Float64Type>(column, row),
        DataType::Boolean => column.as_boolean_opt().map(|column| column.value(row).to_string()),
        DataType::Utf8 => column.as_string_opt::<i32>().map(|column| column.value(row).to_owned()),
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            column.as_primitive_opt::<TimestampMicrosecondType>().map(|column| utc(column.value(row)))
        }
        DataType::List(_) => column.as_list_opt::<i32>().map(|column| {
            let slots = column.value(row);
            let slots = (0..slots.len()).map(|slot| cell(&slots, slot));
            format!("[{}]", slots.collect::<Vec<_>>().join(" "))
        }),
        DataType::Dictionary(_, _) => column
            .as_dictionary_opt::<Int32Type>()
            .map(|dictionary| cell(dictionary.values(), dictionary.keys().value(row) as usize)),
        _ => None,
    };
    known.unwrap_or_else(|| format!("<{}>", column.data_type()))
}

fn number<T: ArrowPrimitiveType<Native: ToString>>(column: &dyn Array, row: usize) -> Option<String> {
    column.as_primitive_opt::<T>().map(|column| column.value(row).to_string())
}

/// Microseconds since 1970 as `2026-11-23T04:05:06.789012Z`.
pub fn utc(us: i64) -> String {
    let (seconds, micros) = (us.div_euclid(1_000_000), us.rem_euclid(1_000_000));
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days to a date of the proleptic Gregorian calendar: H. Hinnant, "chrono-compatible low-level date algorithms".
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

/// The first `limit` rows of some batches, all columns or those named.
pub fn rows(batches: &[RecordBatch], columns: Option<&[&str]>, limit: usize) -> String {
    let Some(first) = batches.first() else { return "no rows\n".to_owned() };
    let schema = first.schema();
    let names: Vec<&str> = match columns {
        Some(columns) => columns.to_vec(),
        None => schema.fields().iter().map(|field| field.name().as_str()).collect(),
    };
    let mut lines = Vec::new();
    for batch in batches {
        for row in 0..batch.num_rows().min(limit - lines.len()) {
            let value =
                |name: &&str| batch.column_by_name(name).map_or_else(String::new, |column| cell(column, row));
            lines.push(names.iter().map(value).collect());
        }
    }
    table(&names, &lines)
}

/// What one node or session came to, in a line.
fn totals_line(totals: &crate::manifest::Totals) -> String {
    let bound = if totals.unknown { "at least " } else { "" };
    let mut text = format!("{bound}{} events emitted", totals.emitted);
    for term in Term::ALL {
        let events = totals.terms.get(*term);
        if events > 0 || *term == Term::Exported {
            text += &format!(", {events} {}", term.name());
        }
    }
    text + &format!("; {} rows, {} objects, {} bytes", totals.rows, totals.objects, totals.bytes)
}

/// The verdict and what is lost, in two lines.
pub fn summary(contents: &Contents) -> String {
    let Some(manifest) = &contents.manifest else {
        return "no manifest: the session is not over\n".to_owned();
    };
    let mut text = format!(
        "{} ({} nodes), {} lost\n",
        manifest.verdict.as_str(),
        manifest.nodes.len(),
        manifest.totals.terms.lost()
    );
    text += &totals_line(&manifest.totals);
    text.push('\n');
    manifest.incomplete().iter().for_each(|line| text += &format!("{line}\n"));
    text
}

/// The whole dataset: every table with its number of rows and the first `limit` of them, then ledger and coverage whole.
///
/// # Errors
/// When the store fails or an object is not readable.
pub async fn dataset(
    store: &dyn ObjectStore,
    contents: &Contents,
    limit: usize,
) -> Result<String, ReadError> {
    let mut text = summary(contents);
    let tables = contents.tables();
    for (name, objects) in
        tables.iter().filter(|(name, _)| bookkeeping::TABLES.iter().all(|table| table.name != name.as_str()))
    {
        let rows_total: u64 = objects.iter().map(|object| object.rows).sum();
        text += &format!("\n{name}: {rows_total} rows in {} objects\n", objects.len());
        let mut batches = Vec::new();
        let mut have = 0;
        for object in objects {
            if have >= limit {
                break;
            }
            let read = reader::read_object(store, &contents.prefix, object, Some(limit - have)).await?;
            have += read.iter().map(RecordBatch::num_rows).sum::<usize>();
            batches.extend(read);
        }
        if limit > 0 {
            text += &rows(&batches, Some(&narrow(name)), limit);
        }
    }
    for table in bookkeeping::TABLES {
        let batches = reader::read_table(store, contents, table.name).await?;
        text += &format!("\n{}\n", table.name);
        let columns: Vec<&str> = table
            .columns
            .iter()
            .map(|column| column.name)
            .filter(|name| {
                !matches!(
                    *name,
                    "boot"
                        | "incarnation"
                        | "from_ns"
                        | "to_ns"
                        | "started_ns"
                        | "ended_ns"
                        | "anchor_ns"
                        | "pod_uid"
                )
            })
            .filter(|name| keep(&batches, name))
            .collect();
        text += &rows(&batches, Some(&columns), usize::MAX);
    }
    Ok(text)
}

/// Leaves out a loss that did not happen: eight columns of zeros hide the one that counts.
fn keep(batches: &[RecordBatch], name: &str) -> bool {
    if !name.starts_with("lost_") {
        return true;
    }
    let mut columns = batches.iter().filter_map(|batch| batch.column_by_name(name));
    columns.any(|column| match column.as_primitive_opt::<Int64Type>() {
        Some(counts) => counts.iter().any(|count| count != Some(0)),
        // No count at all: that is to be seen.
        None => true,
    })
}

/// The columns of a table that fit a terminal: identifiers that only machines join on are left out.
fn narrow(name: &str) -> Vec<&'static str> {
    let hidden = [
        "ts_ns",
        "weight",
        "cgroup_id",
        "netns",
        "cpu",
        "pod_uid",
        "tid",
        "start_ns",
        "attribution",
        "namespace",
    ];
    let table = catalogue::table(name);
    table
        .into_iter()
        .flat_map(|table| table.columns)
        .map(|c| c.name)
        .filter(|name| !hidden.contains(name))
        .collect()
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn text_to_the_left_and_numbers_to_the_right() {
        let rows = [vec!["web".into(), "7".into()], vec!["database".into(), "1234".into()]];
        expect![[r#"
            pod       events
            --------  ------
            web            7
            database    1234
        "#]]
        .assert_eq(&table(&["pod", "events"], &rows));
    }

    #[test]
    fn control_characters_of_a_traced_program_do_not_reach_the_terminal() {
        let text = table(&["comm"], &[vec!["\u{1b}[31mred\nline".into()]]);
        assert!(!text.contains('\u{1b}'), "{text:?}");
        assert_eq!(text.lines().count(), 3);
    }

    #[test]
    fn control_characters_of_a_manifest_do_not_reach_the_terminal() {
        use crate::key::{Key, SessionPrefix};
        use crate::manifest::{FORMAT_VERSION, Manifest, ManifestNode, NodeManifest, ObjectEntry};

        let evil = "\u{1b}[2Jnode\r\u{7}".to_owned();
        let boot: crate::key::Boot = "0".repeat(32).parse().unwrap();
        let key = Key::node_manifest("node-1", &boot).unwrap();
        let node = ManifestNode {
            node: evil.clone(),
            manifests: vec![key.relative(), evil.clone()],
            totals: Default::default(),
            reason: format!("{evil}{}", "x".repeat(9_000)),
        };
        let object = ObjectEntry { key: evil.clone(), rows: 0, weight: 0, bytes: 0, sha256: String::new() };
        let listed = NodeManifest {
            format_version: FORMAT_VERSION,
            node: "node-1".to_owned(),
            boot: boot.to_string(),
            incarnations: Vec::new(),
            objects: vec![object],
            ledger: vec![crate::ledger::LedgerRow {
                table: evil.clone(),
                emitted: Some(1),
                ..Default::default()
            }],
            coverage: Vec::new(),
        };
        let contents = Contents {
            unknown: vec![evil],
            nodes: [(key, listed)].into(),
            manifest: Some(Manifest::new(1, String::new(), vec![node])),
            ..Contents::empty(SessionPrefix::root("").unwrap())
        };
        let mut text = summary(&contents);
        let findings = contents.compare();
        // An object that it does not own, its ledger, a stranger, whose manifest it is, and one that is not there.
        assert_eq!(findings.len(), 5, "{findings:?}");
        findings.iter().for_each(|finding| text += &format!("{finding}\n"));
        assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
        assert!(text.lines().all(|line| line.len() < 2_000), "{text:?}");
    }

    #[test]
    fn columns_of_types_that_nobody_writes_are_shown_and_no_panic() {
        use arrow_array::builder::{ListBuilder, StringBuilder};
        use arrow_array::types::Int8Type;
        use arrow_array::{ArrayRef, BinaryArray, DictionaryArray, StringArray};
        use std::sync::Arc;

        let words = DictionaryArray::<Int8Type>::from_iter(["a"]);
        let mut lists = ListBuilder::new(StringBuilder::new());
        lists.append_value([Some("x"), None]);
        let arrays: [(ArrayRef, &str); 4] = [
            (Arc::new(words), "<Dictionary(Int8, Utf8)>"),
            (Arc::new(lists.finish()), "[x ]"),
            (Arc::new(BinaryArray::from_vec(vec![b"b"])), "<Binary>"),
            (Arc::new(StringArray::from(vec!["7"])), "7"),
        ];
        for (array, shown) in arrays {
            assert_eq!(cell(&array, 0), shown);
            let batch = RecordBatch::try_from_iter([("lost_ring_full", array)]).unwrap();
            assert!(keep(&[batch], "lost_ring_full"), "what is no count is to be seen");
        }
    }

    #[test]
    fn times_are_dates_before_and_after_1970_and_in_leap_years() {
        assert_eq!(utc(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(utc(-1), "1969-12-31T23:59:59.999999Z");
        assert_eq!(utc(951_782_400_000_000), "2000-02-29T00:00:00.000000Z");
        assert_eq!(utc(1_795_406_706_789_012), "2026-11-23T04:05:06.789012Z");
    }
}

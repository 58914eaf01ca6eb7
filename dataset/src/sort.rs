// SPDX-License-Identifier: Apache-2.0

//! The order of rows in a row group: by time, and those of one time in the order in which they came.
//!
//! In: batches of one schema. Out: one batch in memory of its own. Agents write so, and so does whoever merges what they wrote; the
//! same batches give the same rows in the same order.

use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_schema::{ArrowError, Schema};
use arrow_select::concat::concat_batches;
use arrow_select::interleave::interleave_record_batch;

/// The rows of all batches in the order of a column of 64-bit numbers, or as they came where there is none.
///
/// # Errors
/// When the batches are not of one schema, or their words do not fit one dictionary.
pub fn sorted(column: Option<usize>, batches: &[RecordBatch]) -> Result<RecordBatch, ArrowError> {
    let Some(first) = batches.first() else { return Ok(RecordBatch::new_empty(Schema::empty().into())) };
    let times = column.map(|column| batches.iter().map(move |batch| batch.column(column)));
    let times: Option<Vec<&[i64]>> = times.and_then(|mut times| {
        times.try_fold(Vec::new(), |mut all, one| {
            all.push(&**one.as_primitive_opt::<Int64Type>()?.values());
            Some(all)
        })
    });
    let Some(times) = times.filter(|times| !times.iter().copied().flatten().is_sorted()) else {
        return concat_batches(&first.schema(), batches);
    };
    let mut order: Vec<(i64, u32, u32)> = Vec::with_capacity(times.iter().map(|times| times.len()).sum());
    for (batch, times) in times.iter().enumerate() {
        order.extend(times.iter().enumerate().map(|(row, time)| (*time, batch as u32, row as u32)));
    }
    order.sort_unstable();
    let places: Vec<(usize, usize)> =
        order.iter().map(|&(_, batch, row)| (batch as usize, row as usize)).collect();
    drop(order);
    interleave_record_batch(&batches.iter().collect::<Vec<_>>(), &places)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{Int64Array, StringArray};
    use arrow_schema::{DataType, Field};

    use super::*;

    #[test]
    fn rows_are_in_the_order_of_time_and_those_of_one_time_as_they_came() {
        let schema = Arc::new(Schema::new(vec![
            Field::new("ts_ns", DataType::Int64, false),
            Field::new("word", DataType::Utf8, false),
        ]));
        let batch = |times: &[i64], words: &[&str]| {
            let times = Arc::new(Int64Array::from(times.to_vec()));
            let words = Arc::new(StringArray::from(words.to_vec()));
            RecordBatch::try_new(schema.clone(), vec![times, words]).unwrap()
        };
        let batches = [batch(&[5, 1, 3], &["a", "b", "c"]), batch(&[3, 1], &["d", "e"])];
        let words = |rows: RecordBatch| -> Vec<String> {
            rows.column(1).as_string::<i32>().iter().flatten().map(str::to_owned).collect()
        };
        assert_eq!(words(sorted(Some(0), &batches).unwrap()), ["b", "e", "c", "d", "a"]);
        assert_eq!(words(sorted(None, &batches).unwrap()), ["a", "b", "c", "d", "e"]);
        assert_eq!(sorted(Some(0), &[]).unwrap().num_rows(), 0);
    }
}

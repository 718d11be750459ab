//! The AVX-512 kernel, for processors with VBMI and VNNI.
//!
//! Differs from AVX2 in how lookups are added up. `vpermb` looks every byte up in 64 entries, the tables of four
//! groups, so the four lookups of a row can lie side by side in one 32-bit lane. Two such lookups add up in bytes, then
//! `vpdpbusd` adds them to 32-bit sums in one operation. Sums never overflow a run. What it costs is to bring the signs
//! into that order, once for all vectors of activations.

mod rows;
mod tables;
pub(super) mod values;

use super::avx2::exact;
use super::ops::{IntTables, Ops};

pub(super) const OPS: Ops = Ops {
    run_cols: rows::RUN_COLS,
    vectors: rows::VECTORS,
    extent: values::extent,
    int_tables: IntTables::Each(tables::tables),
    f32_tables: exact::tables,
    index: Some(rows::index),
    lanes: None,
    int_rows: rows::rows,
    f32_rows: exact::rows,
    int_out: values::out,
    f32_out: exact::out,
};

/// Lines of tables of 32 columns.
const UNIT_LINES: usize = 4;

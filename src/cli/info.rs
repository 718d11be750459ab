//! `littlebit-convert info`: what a file holds.

use super::print_line;
use crate::error::Result;
use crate::format::LittleBitFile;
use crate::gguf::{Array, Gguf, Value};
use crate::present::{class, size};
use crate::source::{self, Compressed, Origin};
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Prints the description of `path`.
pub fn run(path: &Path, as_json: bool) -> Result<()> {
    let (gguf, form, is_littlebit) = match source::open_compressed(path)? {
        Some(Compressed { file, origin }) => {
            let form = match origin {
                Origin::Gguf => "GGUF",
                Origin::Container => ".littlebit",
                Origin::Checkpoint { .. } => "checkpoint",
            };
            (file.gguf, form, true)
        }
        None => (Gguf::open(path)?, "GGUF", false),
    };
    let text = |k: &str| gguf.get(k).and_then(Value::as_str).unwrap_or("").to_owned();
    let (name, architecture) = (text("general.name"), text("general.architecture"));
    let file_bytes = gguf.file_len;
    let data_bits: u64 = gguf.tensors.iter().map(|t| 8 * t.nbytes).sum();
    let mut by_type: BTreeMap<String, (usize, u64)> = BTreeMap::new();
    for t in &gguf.tensors {
        let e = by_type.entry(t.ty.name().to_string()).or_default();
        e.0 += 1;
        e.1 += t.nbytes;
    }
    let mut report = json!({
        "file": path, "form": form, "bytes": file_bytes, "name": name, "architecture": architecture,
        "tensors": gguf.tensors.len(), "littlebit": Json::Null,
        "types": by_type.iter().map(|(k, v)| json!({"type": k, "tensors": v.0, "bytes": v.1})).collect::<Vec<_>>(),
    });
    if is_littlebit {
        report["littlebit"] = littlebit(LittleBitFile::from_gguf(gguf)?, data_bits)?;
    }
    if as_json { print_line(&report.to_string()) } else { print_text(&report) }
}

/// Also reads every factor, so that set padding bits and scales that are not finite are found.
fn littlebit(file: LittleBitFile, data_bits: u64) -> Result<Json> {
    for m in file.matrices() {
        file.read_factors(m)?;
    }
    let kv: serde_json::Map<String, Json> = file
        .gguf
        .kv
        .iter()
        .filter_map(|(k, v)| Some((k.strip_prefix("littlebit.")?.to_owned(), plain(v))))
        .collect();
    let n_params = file.gguf.get("littlebit.n_params").and_then(Value::as_u64).unwrap_or(0);
    let matrices: Vec<Json> = file
        .matrices()
        .iter()
        .map(|m| {
            let bits = crate::format::factors::slice_bits(m.shape.d_out, m.shape.d_in, m.shape.rank);
            let bits = bits * m.shape.slices as u64;
            json!({
                "name": m.name, "d_out": m.shape.d_out, "d_in": m.shape.d_in, "experts": m.experts(),
                "rank": m.shape.rank, "paths": m.paths, "shared_input": m.grouped,
                "bits": bits, "bpw": bits as f64 / m.weights() as f64,
            })
        })
        .collect();
    Ok(json!({
        "kv": kv, "matrices": matrices,
        // Recounted from the tensors, so that a wrong KV would show.
        "bpw": file.factor_bits() as f64 / file.factorized_weights().max(1) as f64,
        "bpw_file": data_bits as f64 / n_params.max(1) as f64,
        "factor_bytes": file.factor_bits() / 8, "factorized_weights": file.factorized_weights(),
    }))
}

/// Numbers, strings, flags, and the lists that the schema has.
fn plain(v: &Value) -> Json {
    match v {
        Value::Str(_) => json!(v.as_str()),
        Value::Bool(b) => json!(b),
        Value::Array(Array::Str(all)) => all.iter().map(|s| String::from_utf8_lossy(s)).collect(),
        // A figure is written with the digits that it has, not with those of its conversion.
        Value::Array(Array::F32(all)) => {
            all.iter().map(|x| json!(x.to_string().parse::<f64>().ok())).collect()
        }
        _ => v.as_u64().map(|x| json!(x)).or_else(|| v.as_f64().map(|x| json!(x))).unwrap_or(Json::Null),
    }
}

fn print_text(r: &Json) -> Result<()> {
    let s = |v: &Json| v.as_str().unwrap_or("").to_owned();
    let n = |v: &Json| v.as_u64().unwrap_or(0);
    print_line(&format!(
        "{}: {}, {} ({}), {}, {} tensors",
        s(&r["file"]),
        s(&r["form"]),
        s(&r["name"]),
        s(&r["architecture"]),
        size(n(&r["bytes"])),
        r["tensors"]
    ))?;
    for t in r["types"].as_array().into_iter().flatten() {
        print_line(&format!(
            "  {:<8} {:>5} tensors {:>12}",
            s(&t["type"]),
            n(&t["tensors"]),
            size(n(&t["bytes"]))
        ))?;
    }
    let lb = &r["littlebit"];
    if lb.is_null() {
        return print_line("not a LittleBit file");
    }
    print_line(&format!(
        "LittleBit: {:.4} bpw in {} factorized weights ({}), {:.4} bpw in the whole file",
        lb["bpw"].as_f64().unwrap_or(0.0),
        lb["factorized_weights"],
        size(n(&lb["factor_bytes"])),
        lb["bpw_file"].as_f64().unwrap_or(0.0)
    ))?;
    for (k, v) in lb["kv"].as_object().into_iter().flatten() {
        print_line(&format!(
            "  littlebit.{k} = {}",
            v.as_str().map_or_else(|| v.to_string(), str::to_owned)
        ))?;
    }
    print_line(&format!("  {:<36} {:<14} {:>6} {:>13} {:>8}", "matrix", "class", "rank", "shape", "bpw"))?;
    for m in lb["matrices"].as_array().into_iter().flatten() {
        let name = s(&m["name"]);
        let experts = if n(&m["experts"]) > 1 { format!("x{}", m["experts"]) } else { String::new() };
        print_line(&format!(
            "  {name:<36} {:<14} {:>6} {:>13} {:>8.4}",
            class(&name),
            n(&m["rank"]),
            format!("{}x{}{experts}", m["d_out"], m["d_in"]),
            m["bpw"].as_f64().unwrap_or(0.0)
        ))?;
    }
    Ok(())
}

//! Prints how well the methods approximate the weights of a real model, as a Markdown table.
//!
//! `cargo run --release --example factor_errors -- MODEL.gguf [--every N]` takes the factorizable matrices of
//! every Nth block (default 6) and factorizes each at several bit budgets, the budget held for every matrix alone
//! as far as steps of 32 ranks allow. Shown are relative Frobenius errors, averaged with the number of weights.

use littlebit::arch::factorizable;
use littlebit::factorize::{Job, Method, Rotate, factorize};
use littlebit::gguf::Gguf;
use littlebit::plan::{MatrixSpec, Target, plan};
use rayon::prelude::*;
use std::path::PathBuf;
use std::time::Instant;

const BUDGETS: [f64; 4] = [1.0, 0.55, 0.3, 0.1];
const METHODS: [(&str, Method, Option<Rotate>, usize); 5] = [
    ("Dual-SVID, 1 path", Method::DualSvid, None, 1),
    ("Dual-SVID, 2 paths", Method::DualSvid, None, 2),
    ("Dual-SVID + Joint-ITQ, 1 path", Method::DualSvid, Some(Rotate::Itq), 1),
    ("Dual-SVID + Joint-ITQ, 2 paths", Method::DualSvid, Some(Rotate::Itq), 2),
    ("LB-ADMM, 1 path", Method::Admm, None, 1),
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let path = PathBuf::from(args.next().ok_or("usage: factor_errors MODEL.gguf [--every N]")?);
    let every: usize = match (args.next().as_deref(), args.next()) {
        (None, _) => 6,
        (Some("--every"), Some(n)) => n.parse()?,
        _ => return Err("usage: factor_errors MODEL.gguf [--every N]".into()),
    };
    let gguf = Gguf::open(&path)?;
    let mut matrices = Vec::new();
    for t in &gguf.tensors {
        let block = t
            .name
            .strip_prefix("blk.")
            .and_then(|s| s.split('.').next())
            .and_then(|n| n.parse::<usize>().ok());
        let taken = block.is_some_and(|b| b.is_multiple_of(every.max(1)));
        if let (true, Ok(shape)) = (taken, factorizable(&t.name, &t.dims, t.ty))
            && shape.experts == 1
        {
            let spec = MatrixSpec {
                name: t.name.clone(),
                d_out: shape.d_out,
                d_in: shape.d_in,
                experts: 1,
                fixed: None,
                spectrum: None,
            };
            matrices.push((spec, gguf.read_f32(t)?));
        }
    }
    let weights: u64 = matrices.iter().map(|(spec, _)| spec.weights()).sum();
    println!("{} matrices, {weights} weights; each cell: error (bits per weight reached)\n", matrices.len());
    let head: Vec<String> = BUDGETS.iter().map(|b| format!("{b} bpw")).collect();
    println!("| method | {} | seconds |\n|---|{}---|", head.join(" | "), "---|".repeat(BUDGETS.len()));
    for (label, method, rotate, paths) in METHODS {
        let started = Instant::now();
        let mut cells = Vec::new();
        for bpw in BUDGETS {
            let results: Result<Vec<(f64, u64)>, littlebit::Error> = matrices
                .par_iter()
                .map(|(spec, w)| {
                    let entry =
                        &plan(std::slice::from_ref(spec), Target::Bpw(bpw), paths, method)?.entries[0];
                    let outcome = factorize(&Job {
                        name: &spec.name,
                        w,
                        d_out: spec.d_out,
                        d_in: spec.d_in,
                        rank: entry.rank,
                        paths,
                        method,
                        rotate,
                        importance: None,
                        seed: 0,
                        iterations: None,
                    })?;
                    Ok((outcome.error_plain * spec.weights() as f64, entry.bits))
                })
                .collect();
            let (error, bits) = results?.iter().fold((0.0, 0), |(e, b), r| (e + r.0, b + r.1));
            cells.push(format!("{:.4} ({:.3})", error / weights as f64, bits as f64 / weights as f64));
        }
        println!("| {label} | {} | {:.0} |", cells.join(" | "), started.elapsed().as_secs_f64());
    }
    Ok(())
}

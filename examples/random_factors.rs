//! Pairs of models for conformance tests of a runtime: `random_factors IN_DIR OUT_DIR`.
//!
//! For each GGUF in IN_DIR every weight that may be factorized gets random factors. OUT_DIR/dense/NAME holds their
//! product in F32 and OUT_DIR/factors/NAME the factors, so both models compute the same function exactly; how good
//! the factors approximate the original does not matter. Half of the models get two paths; in every third, q, k and v of a
//! block share an input half, and gate and up another, as schema v1 allows.

use half::f16;
use littlebit::arch::factorizable;
use littlebit::bits::SignMatrix;
use littlebit::format::lossy::dense_bytes;
use littlebit::format::schema::{self, Part, Shape, key};
use littlebit::format::{FactorPath, Factors};
use littlebit::gguf::{GgmlType, Gguf, TensorDesc, Value, Writer};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::{HashMap, HashSet};
use std::path::Path;

type Error = Box<dyn std::error::Error>;

fn gaussian(rng: &mut ChaCha8Rng) -> f32 {
    let (u, v): (f32, f32) = (1.0 - rng.random::<f32>(), rng.random());
    (-2.0 * u.ln()).sqrt() * (std::f32::consts::TAU * v).cos()
}

fn factors(
    rng: &mut ChaCha8Rng,
    d_out: usize,
    d_in: usize,
    rank: usize,
    experts: usize,
    paths: usize,
) -> Factors {
    let mut scales = |n: usize, mean: f32| -> Vec<f16> {
        (0..n).map(|_| f16::from_f32(mean * (1.0 + 0.3 * gaussian(rng)))).collect()
    };
    let slices = (0..experts * paths)
        .map(|_| {
            let (h, g) = (scales(d_out, 1.0), scales(d_in, 1.0));
            let l = scales(rank, 0.1 / (rank as f32 * paths as f32).sqrt());
            (h, l, g)
        })
        .collect::<Vec<_>>();
    let mut signs = |rows, cols| SignMatrix::from_fn(rows, cols, |_, _| rng.random());
    let slices = slices
        .into_iter()
        .map(|(h, l, g)| FactorPath { u: signs(d_out, rank), vt: signs(rank, d_in), h, l, g })
        .collect();
    Factors { paths, slices }
}

/// Parts that the matrices of an input group share.
const SHARED: [Part; 3] = [Part::V, Part::G, Part::L];

/// Which parts of which base name stand in the file for the weight `base`, in file order: all five of its own, or the
/// group's where the group is met for the first time, and its own U and h.
fn parts_of(base: &str, grouped: bool, met: &mut HashSet<String>) -> Vec<(String, Part)> {
    let own = |parts: &[Part]| parts.iter().map(|p| (base.to_owned(), *p)).collect::<Vec<_>>();
    let Some(group) = schema::input_group(base).filter(|_| grouped) else { return own(&Part::ALL) };
    let mut parts = Vec::new();
    if met.insert(group.clone()) {
        parts.extend(SHARED.map(|p| (group.clone(), p)));
    }
    parts.extend(own(&[Part::U, Part::H]));
    parts
}

/// Writes both models; returns the number of factorized weights.
fn pair(input: &Path, dense_out: &Path, factors_out: &Path, seed: u64) -> Result<usize, Error> {
    let source = Gguf::open(input)?;
    let paths = 1 + (seed % 2) as usize;
    let grouped = seed % 3 == 2;
    let (mut dense_descs, mut factor_descs) = (Vec::new(), Vec::new());
    let mut met = HashSet::new();
    for t in &source.tensors {
        let desc = TensorDesc { name: t.name.clone(), dims: t.dims.clone(), ty: t.ty };
        match factorizable(&t.name, &t.dims, t.ty) {
            Ok(s) => {
                let rank = if t.dims[0] % 64 == 0 { 64 } else { 32 };
                let shape = Shape { d_out: s.d_out, d_in: s.d_in, rank, slices: s.experts * paths };
                let base = schema::base_name(&t.name).ok_or("a weight")?;
                let descs = parts_of(base, grouped, &mut met).into_iter().map(|(base, part)| TensorDesc {
                    name: format!("{base}{}", part.suffix()),
                    dims: shape.dims(part),
                    ty: schema::part_type(part),
                });
                factor_descs.extend(descs);
                dense_descs.push(TensorDesc { ty: GgmlType::F32, ..desc });
            }
            Err(_) => {
                factor_descs.push(desc.clone());
                dense_descs.push(desc);
            }
        }
    }
    let mut kv = source.kv.clone();
    schema::set(&mut kv, "general.alignment", Value::U32(schema::ALIGNMENT as u32));
    let create = |path: &Path| std::fs::File::create(path).map(std::io::BufWriter::new);
    let mut dense = Writer::new(create(dense_out)?, &kv, dense_descs, schema::ALIGNMENT)?;
    schema::set(&mut kv, key::VERSION, Value::U32(schema::VERSION));
    schema::set(&mut kv, key::PATHS, Value::U32(paths as u32));
    let mut lb = Writer::new(create(factors_out)?, &kv, factor_descs, schema::ALIGNMENT)?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (mut count, mut bytes) = (0, Vec::new());
    let mut inputs: HashMap<String, Factors> = HashMap::new();
    met.clear();
    for t in &source.tensors {
        let Ok(s) = factorizable(&t.name, &t.dims, t.ty) else {
            source.read(t, &mut bytes)?;
            dense.write_tensor(&t.name, &bytes)?;
            lb.write_tensor(&t.name, &bytes)?;
            continue;
        };
        let rank = if t.dims[0] % 64 == 0 { 64 } else { 32 };
        let mut f = factors(&mut rng, s.d_out, s.d_in, rank, s.experts, paths);
        let base = schema::base_name(&t.name).ok_or("a weight")?;
        if let Some(group) = schema::input_group(base).filter(|_| grouped) {
            let first = inputs.entry(group).or_insert_with(|| f.clone());
            for (own, shared) in f.slices.iter_mut().zip(&first.slices) {
                (own.vt, own.g, own.l) = (shared.vt.clone(), shared.g.clone(), shared.l.clone());
            }
        }
        dense.write_tensor(&t.name, &dense_bytes(&f, GgmlType::F32)?)?;
        for (base, part) in parts_of(base, grouped, &mut met) {
            lb.write_tensor(&format!("{base}{}", part.suffix()), &schema::part_bytes(&f, part))?;
        }
        count += 1;
    }
    std::io::Write::flush(&mut dense.finish()?)?;
    std::io::Write::flush(&mut lb.finish()?)?;
    Ok(count)
}

fn main() -> Result<(), Error> {
    let args: Vec<String> = std::env::args().collect();
    let [_, input, output] = args.as_slice() else {
        return Err("usage: random_factors IN_DIR OUT_DIR".into());
    };
    let output = Path::new(output);
    std::fs::create_dir_all(output.join("dense"))?;
    std::fs::create_dir_all(output.join("factors"))?;
    let mut files: Vec<_> =
        std::fs::read_dir(input)?.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>()?;
    files.retain(|p| p.extension().is_some_and(|e| e == "gguf"));
    files.sort();
    for (i, file) in files.iter().enumerate() {
        let name = file.file_name().ok_or("a file name")?;
        let (dense, lb) = (output.join("dense").join(name), output.join("factors").join(name));
        let count = pair(file, &dense, &lb, i as u64)?;
        if count == 0 {
            return Err(format!("{}: nothing to factorize", file.display()).into());
        }
        println!("{} {}", dense.display(), lb.display());
    }
    Ok(())
}

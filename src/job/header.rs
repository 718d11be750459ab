//! What stands before the tensor data of an output: descriptors and metadata.

use super::convert::Options;
use crate::calibrate::imatrix::Imatrix;
use crate::factorize::device::Choice;
use crate::format::schema::{self, Shape, key};
use crate::gguf::{Array, GgmlType, TensorDesc, Value, encode};
use crate::plan::{MatrixSpec, Plan};
use crate::source::TensorSource;
use crate::verify::Comparison;
use std::path::Path;

/// What happens to one tensor of the source.
pub(super) enum Action {
    /// Becomes the plan's entry of this index.
    Factorize(usize),
    /// Goes on in this type.
    Keep { ty: GgmlType, reason: String },
}

/// Descriptors of the output in order, and the bits of the factor tensors.
pub(super) fn describe(
    source: &dyn TensorSource,
    actions: &[Action],
    specs: &[MatrixSpec],
    plan: &Plan,
    options: &Options,
) -> (Vec<TensorDesc>, u64) {
    let (mut descriptors, mut factor_bits) = (Vec::new(), 0);
    for (t, action) in source.tensors().iter().zip(actions) {
        match action {
            Action::Keep { ty, .. } => {
                descriptors.push(TensorDesc { name: t.name.clone(), dims: t.dims.clone(), ty: *ty });
            }
            Action::Factorize(at) => {
                let parts =
                    schema::descriptors(base(&t.name), &shape(&specs[*at], plan.entries[*at].rank, options));
                factor_bits += parts.iter().map(|d| 8 * d.nbytes().unwrap_or(0)).sum::<u64>();
                match options.lossy {
                    None => descriptors.extend(parts),
                    Some(ty) => descriptors.push(TensorDesc {
                        name: t.name.clone(),
                        dims: t.dims.clone(),
                        ty: encode::fitting(ty, t.dims[0]),
                    }),
                }
            }
        }
    }
    (descriptors, factor_bits)
}

pub(super) fn base(weight: &str) -> &str {
    schema::base_name(weight).expect("only weights are planned")
}

fn shape(spec: &MatrixSpec, rank: usize, options: &Options) -> Shape {
    Shape { d_out: spec.d_out, d_in: spec.d_in, rank, slices: spec.experts * options.paths }
}

/// Figures for the KV block.
pub(super) struct Summary<'a> {
    pub n_params: u64,
    pub bpw: f64,
    pub bpw_file: f64,
    pub sha256: String,
    pub imatrix: Option<&'a Imatrix>,
    /// Tokens of the calibration text.
    pub calibration: Option<u64>,
    /// By text.
    pub evaluations: Vec<(String, Comparison)>,
}

/// Name of a file without its folder.
pub(crate) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

pub(super) fn method_text(options: &Options) -> String {
    let mut text = format!("{} paths={}", options.method, options.paths);
    if let Some(r) = options.rotate {
        text += &format!(" rotate={r}");
    }
    if let Some(c) = &options.calibration {
        text += &format!(" effort={}", format!("{:?}", c.effort).to_lowercase());
        if let Some(steps) = c.steps {
            text += &format!(" steps={steps}");
        }
        if let Some(time) = c.time_budget {
            text += &format!(" time-budget={}s", time.as_secs());
        }
    }
    if let Some(n) = options.iterations {
        text += &format!(" iterations={n}");
    }
    if options.device != Choice::Cpu {
        text += &format!(" device={}", options.device);
    }
    text
}

/// The source's KV in order, with what a LittleBit file must say.
pub(super) fn littlebit_kv(
    source: &dyn TensorSource,
    descriptors: &[TensorDesc],
    options: &Options,
    summary: &Summary,
) -> Vec<(String, Value)> {
    // A file of its own: shard bookkeeping of the source no longer holds.
    let mut kv: Vec<(String, Value)> =
        source.kv().iter().filter(|(k, _)| !k.starts_with("split.")).cloned().collect();
    schema::set_file_type(&mut kv, descriptors);
    schema::set(&mut kv, "general.alignment", Value::U32(schema::ALIGNMENT as u32));
    let text = |s: &str| Value::Str(s.as_bytes().to_vec());
    let dataset = options.calibration.as_ref().map(|c| c.names().join(","));
    let dataset = dataset.or_else(|| summary.imatrix.map(|im| im.dataset.clone())).unwrap_or_default();
    let tokens = summary.calibration.or(summary.imatrix.and_then(|im| im.tokens)).unwrap_or(0);
    for (k, v) in [
        (key::VERSION, Value::U32(schema::VERSION)),
        (key::REQUIRES, text(schema::REQUIRES)),
        (key::PATHS, Value::U32(options.paths as u32)),
        (key::N_PARAMS, Value::U64(summary.n_params)),
        (key::BPW, Value::F32(summary.bpw as f32)),
        (key::BPW_FILE, Value::F32(summary.bpw_file as f32)),
        (key::METHOD, text(&method_text(options))),
        (key::TOOL, text(schema::TOOL)),
        (key::SEED, Value::U64(options.seed)),
        (key::SOURCE_NAME, text(&source.describe())),
        (key::SOURCE_SHA256, text(&summary.sha256)),
        (key::CALIBRATION_DATASET, text(&dataset)),
        (key::CALIBRATION_TOKENS, Value::U64(tokens)),
    ] {
        schema::set(&mut kv, k, v);
    }
    let evaluations = &summary.evaluations;
    if !evaluations.is_empty() {
        let texts = evaluations.iter().map(|(t, _)| t.as_bytes().to_vec()).collect();
        schema::set(&mut kv, key::EVALUATION_TEXT, Value::Array(Array::Str(texts)));
        type Figure = fn(&Comparison) -> f64;
        let figures: [(&str, Figure); 10] = [
            (key::EVALUATION_PERPLEXITY, |c| c.perplexity.value),
            (key::EVALUATION_PERPLEXITY_ERROR, |c| c.perplexity.error),
            (key::EVALUATION_SOURCE, |c| c.source_perplexity.value),
            (key::EVALUATION_SOURCE_ERROR, |c| c.source_perplexity.error),
            (key::EVALUATION_KLD, |c| c.kld.value),
            (key::EVALUATION_KLD_ERROR, |c| c.kld.error),
            (key::EVALUATION_KLD_MEDIAN, |c| c.kld_median),
            (key::EVALUATION_KLD_999, |c| c.kld_999),
            (key::EVALUATION_SAME_TOP, |c| c.same_top.value),
            (key::EVALUATION_SAME_TOP_ERROR, |c| c.same_top.error),
        ];
        for (k, figure) in figures {
            let values = evaluations.iter().map(|(_, c)| figure(c) as f32).collect();
            schema::set(&mut kv, k, Value::Array(Array::F32(values)));
        }
    }
    kv
}

//! What becomes of every tensor, and how large the file will be: everything that is known before heavy work.

use crate::arch;
use crate::calibrate::imatrix::Imatrix;
use crate::calibrate::sensitivity::{self, Sensitivity};
use crate::error::{Error, Result};
use crate::format::retype::KeptTypes;
use crate::format::schema;
use crate::gguf::{GgmlType, Writer, encode};
use crate::job::convert::Options;
use crate::job::fingerprint::fingerprint;
use crate::job::header::{Action, Summary, describe, file_name, littlebit_kv};
use crate::job::statistics;
use crate::plan::rules::{Rule, RuleAction, Rules};
use crate::plan::{self, MAX_BPW, MatrixSpec, Plan, Target};
use crate::source::TensorSource;
use crate::verify::Comparison;
use serde::Serialize;
use std::collections::HashMap;

/// What the size of the output is fixed by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// Bits per factorized weight, or one rank.
    Target(Target),
    /// Bytes of the whole file at most.
    FileSize(u64),
}

/// The tensors of a source, sorted.
pub(super) struct Layout {
    /// One for each tensor of the source.
    pub actions: Vec<Action>,
    /// The weights to factorize.
    pub specs: Vec<MatrixSpec>,
    /// Names of weights that a rule decides on, and the rule.
    pub ruled: Vec<(String, String)>,
    /// The importance matrix of the options.
    pub imatrix: Option<Imatrix>,
}

/// What [`convert`](super::convert()) would do.
#[derive(Debug, Serialize)]
pub struct Outlook {
    /// Ranks and bits.
    #[serde(flatten)]
    pub plan: Plan,
    /// Bytes of the file, exactly (of a LittleBit GGUF).
    pub file_bytes: u64,
    /// Weights that a rule decides on, and the rule.
    pub ruled: Vec<(String, String)>,
    /// Whether ranks follow what an earlier run has measured of the source.
    pub measured: bool,
}

/// The sensitivities in the file of statistics that the options name, if it is there.
///
/// # Errors
/// A file that is damaged or of other inputs.
fn kept_sensitivities(
    source: &dyn TensorSource,
    options: &Options,
) -> Result<Option<HashMap<String, Sensitivity>>> {
    let calibration = options.calibration.as_ref();
    let Some((calibration, path)) = calibration.and_then(|c| Some((c, c.statistics.as_ref()?))) else {
        return Ok(None);
    };
    // The checksum of a large model takes a while.
    if !path.exists() {
        return Ok(None);
    }
    let run = fingerprint(&source.sha256()?, options)?;
    let measured = statistics::load(path, &calibration.statistics_fingerprint(&run))?;
    Ok(measured.map(|m| sensitivity::by_name(&m.sensitivities)))
}

/// The plan alone, without work on weights; what a file of statistics holds is taken into account.
///
/// # Errors
/// As [`convert`](super::convert()), as far as they can be seen without reading weights.
pub fn dry_run(source: &dyn TensorSource, options: &Options) -> Result<Outlook> {
    let mut layout = Layout::new(source, options)?;
    let kept = kept_sensitivities(source, options)?;
    let measured = kept.is_some();
    layout.set_sensitivities(&kept.unwrap_or_default());
    let plan = layout.plan(source, options)?;
    let file_bytes = layout.file_bytes(source, options, &plan)?;
    Ok(Outlook { plan, file_bytes, ruled: layout.ruled, measured })
}

impl Layout {
    /// Decides for every tensor whether it is factorized.
    pub fn new(source: &dyn TensorSource, options: &Options) -> Result<Self> {
        let mut rules = Rules::new(&options.rules);
        let (mut actions, mut specs, mut ruled) = (Vec::new(), Vec::new(), Vec::new());
        let has_output = source.tensors().iter().any(|t| t.name == "output.weight");
        let types = KeptTypes {
            token_embedding: options.token_embedding_type,
            output: options.output_tensor_type,
            floats: Some(GgmlType::Q6_K),
        };
        for t in source.tensors() {
            let stored = |wanted: Option<GgmlType>, reason: String| {
                let ty = wanted.map_or(t.ty, |ty| encode::fitting(ty, t.dims[0]));
                let reason = match wanted {
                    Some(wanted) if wanted != ty => {
                        format!("{reason}; its rows do not fill blocks of {wanted}")
                    }
                    _ => reason,
                };
                if ty.row_bytes(t.dims[0]).is_none() {
                    return Err(Error::tensor(
                        source.path(),
                        &t.name,
                        format!("rows of {} values cannot be stored as {}; choose f16", t.dims[0], ty.name()),
                    ));
                }
                Ok(Action::Keep { ty, reason })
            };
            let readable = || {
                if t.ty.can_dequantize() {
                    return Ok(());
                }
                Err(Error::unsupported(
                    source.path(),
                    format!(
                        "tensor '{}': type {} cannot be read; convert the model to F16 first: \
                         llama-quantize --allow-requantize IN.gguf OUT.gguf F16",
                        t.name,
                        t.ty.name()
                    ),
                ))
            };
            actions.push(match arch::factorizable(&t.name, &t.dims, t.ty) {
                Ok(shape) => {
                    let rule: Option<&Rule> = rules.find(&t.name)?;
                    if let Some(rule) = rule {
                        ruled.push((t.name.clone(), rule.to_string()));
                    }
                    let fixed = match rule.map(|r| (r, r.action)) {
                        Some((rule, RuleAction::Keep)) => {
                            actions.push(stored(None, format!("rule {rule}"))?);
                            continue;
                        }
                        Some((rule, RuleAction::Type(ty))) => {
                            readable()?;
                            actions.push(stored(Some(ty), format!("rule {rule}"))?);
                            continue;
                        }
                        Some((_, RuleAction::Bpw(b))) => Some(Target::Bpw(b)),
                        Some((_, RuleAction::Rank(r))) => Some(Target::Rank(r)),
                        None => None,
                    };
                    readable()?;
                    specs.push(MatrixSpec {
                        name: t.name.clone(),
                        d_out: shape.d_out,
                        d_in: shape.d_in,
                        experts: shape.experts,
                        fixed,
                        spectrum: None,
                    });
                    Action::Factorize(specs.len() - 1)
                }
                Err(reason) => {
                    let wanted = types.of(&t.name, t.ty, has_output);
                    stored(wanted, reason.to_string())?
                }
            });
        }
        rules.finish()?;
        if specs.is_empty() {
            return Err(Error::unsupported(
                source.path(),
                "no weight is left that can be factorized: rules keep all of them, or none has 16 rows and columns; \
                 give fewer --tensor-rule",
            ));
        }
        let imatrix = options.imatrix.as_deref().map(Imatrix::read).transpose()?;
        Ok(Self { actions, specs, ruled, imatrix })
    }

    /// Takes over what was measured, by weight name.
    pub fn set_sensitivities(&mut self, measured: &HashMap<String, Sensitivity>) {
        for spec in &mut self.specs {
            spec.spectrum = measured.get(&spec.name).map(|s| s.spectrum.clone());
        }
    }

    /// Ranks within the budget.
    pub fn plan(&self, source: &dyn TensorSource, options: &Options) -> Result<Plan> {
        let at = |target| plan::plan(&self.specs, target, options.paths, options.method);
        let limit = match options.budget {
            Budget::Target(target) => return at(target),
            Budget::FileSize(limit) => limit,
        };
        // The size is that of the LittleBit GGUF, whatever is written.
        let options = &Options { lossy: None, ..options.clone() };
        // More bits per weight never give a smaller file: bisection, until no rank can lie between.
        let (mut fits, mut exceeds) = (0.0, MAX_BPW);
        let mut best = at(Target::Bpw(f64::MIN_POSITIVE))?;
        let header = self.header_bytes(source, options, &best)?;
        let smallest = header + self.data_bytes(source, options, &best);
        if smallest > limit {
            return Err(Error::usage(format!(
                "no file of this model is as small as {limit} bytes: at the lowest ranks it takes {smallest}; \
                 a smaller --token-embedding-type or --output-tensor-type may help"
            )));
        }
        for _ in 0..30 {
            let level = f64::midpoint(fits, exceeds);
            let trial = at(Target::Bpw(level))?;
            if header + self.data_bytes(source, options, &trial) <= limit {
                (fits, best) = (level, trial);
            } else {
                exceeds = level;
            }
        }
        Ok(best)
    }

    /// Bytes of the LittleBit GGUF of a plan.
    fn file_bytes(&self, source: &dyn TensorSource, options: &Options, plan: &Plan) -> Result<u64> {
        self.output_bytes(source, &Options { lossy: None, ..options.clone() }, plan)
    }

    /// Bytes of the output of a plan in the form that the options ask for; of a lossy GGUF nearly.
    pub fn output_bytes(&self, source: &dyn TensorSource, options: &Options, plan: &Plan) -> Result<u64> {
        Ok(self.header_bytes(source, options, plan)? + self.data_bytes(source, options, plan))
    }

    /// Bytes before the data, the same for every plan.
    fn header_bytes(&self, source: &dyn TensorSource, options: &Options, plan: &Plan) -> Result<u64> {
        let options = &Options { lossy: None, ..options.clone() };
        let (descriptors, _) = describe(source, &self.actions, &self.specs, plan, options);
        // Figures have the same length whatever their value; so has the checksum.
        let sha256 = "0".repeat(64);
        let imatrix = self.imatrix.as_ref();
        let texts = options.calibration.iter().flat_map(|c| &c.evaluation);
        let evaluations = texts.map(|t| (file_name(t), Comparison::default())).collect();
        let summary =
            Summary { n_params: 0, bpw: 0.0, bpw_file: 0.0, sha256, imatrix, calibration: None, evaluations };
        let kv = littlebit_kv(source, &descriptors, options, &summary);
        Ok(Writer::new(Vec::new(), &kv, descriptors, schema::ALIGNMENT)?.into_inner().len() as u64)
    }

    /// Bytes of the tensors with their padding.
    fn data_bytes(&self, source: &dyn TensorSource, options: &Options, plan: &Plan) -> u64 {
        let (descriptors, _) = describe(source, &self.actions, &self.specs, plan, options);
        descriptors.iter().map(|d| d.nbytes().unwrap_or(0).next_multiple_of(schema::ALIGNMENT)).sum()
    }
}

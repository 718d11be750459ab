//! source -> plan -> factorize -> format, streamed tensor by tensor.

use crate::error::{Error, Result};
use crate::factorize::device::Choice;
use crate::factorize::{Device, Method, Rotate};
use crate::format::schema::{self, key};
use crate::format::{LittleBitFile, lossy};
use crate::gguf::{GgmlType, Writer};
use crate::job::fingerprint::{fingerprint, work_dir};
use crate::job::header::{Action, Summary, describe, littlebit_kv, method_text};
use crate::job::journal::Journal;
use crate::job::layout::{Budget, Layout};
use crate::job::limits::workers;
use crate::job::pool::{in_pool, start};
use crate::job::repack::{self, Form, at_output};
use crate::job::report::{Evaluation, Event, KeptReport, MatrixReport, Report, tell_notes};
use crate::job::space::{self, Need};
use crate::job::stages::Stages;
use crate::job::tensor::{Done, encoded, factorize_tensor, finished, keep};
use crate::job::tuned::{Calibrated, Calibration};
use crate::job::{ordered, output};
use crate::plan::Plan;
use crate::plan::rules::Rule;
use crate::source::TensorSource;
use crate::verify::Gates;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// What a conversion should do.
#[derive(Clone, Debug)]
pub struct Options {
    /// What the size is fixed by.
    pub budget: Budget,
    /// Rules for single tensors; the last that matches wins.
    pub rules: Vec<Rule>,
    /// Paths per matrix, 1 or 2 (residual).
    pub paths: usize,
    /// Factorization method.
    pub method: Method,
    /// Rotation of the latent space before signs are taken (Dual-SVID only).
    pub rotate: Option<Rotate>,
    /// Iterations of the method, `None` for its default.
    pub iterations: Option<usize>,
    /// Seed of all random starts.
    pub seed: u64,
    /// Threads to use.
    pub threads: usize,
    /// What factorizes by LB-ADMM, polishes and forms the products of both models.
    pub device: Choice,
    /// Importance matrix of llama-imatrix.
    pub imatrix: Option<PathBuf>,
    /// Texts for a calibrated and tuned conversion; `None` factorizes every matrix by itself.
    pub calibration: Option<Calibration>,
    /// Type of the token embeddings, `None` to keep the source's.
    pub token_embedding_type: Option<GgmlType>,
    /// Type of the output head (of tied embeddings too, unless they have a type of their own).
    pub output_tensor_type: Option<GgmlType>,
    /// Write a standard GGUF with rebuilt weights of this type instead of a LittleBit GGUF.
    pub lossy: Option<GgmlType>,
    /// Write a `.littlebit` file instead.
    pub container: bool,
    /// Folder for finished pieces, from which a run that was cut off goes on; `None` for the output's name with `.work`.
    pub work_dir: Option<PathBuf>,
    /// Memory that the process may take, bytes; work is cut into portions that keep to it.
    pub max_memory: Option<u64>,
    /// Replace an existing output.
    pub force: bool,
    /// What a calibrated result is to reach; one that does not is written under [`rejected`]'s name instead.
    pub gates: Gates,
}

impl Options {
    /// Where the run that writes `target` keeps its work.
    pub fn work_dir(&self, target: &Path) -> PathBuf {
        self.work_dir.clone().unwrap_or_else(|| work_dir(target))
    }
}

/// Why a LittleBit GGUF is not converted to one.
pub(super) const ALREADY: &str = "already a LittleBit file; compress the original model, or write another form of this one: \
     --lossy TYPE for rebuilt weights, an output that ends with .littlebit, other types of embeddings and head";

/// The name of a result that its gates have not let through.
pub fn rejected(target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(".rejected");
    name.into()
}

/// Converts `source` into `target`.
pub fn convert(
    source: &dyn TensorSource,
    target: &Path,
    options: &Options,
    mut progress: impl FnMut(Event),
) -> Result<Report> {
    let started = Instant::now();
    let mut inputs = vec![source.path()];
    inputs.extend(options.imatrix.as_deref());
    output::check_target(target, &inputs, options.force)?;
    if options.gates.any() {
        output::check_target(&rejected(target), &inputs, options.force)?;
    }
    let calibration = options.calibration.as_ref();
    if calibration.is_none() && options.gates.any() {
        return Err(Error::usage(
            "gates are measured in a calibrated conversion only: give texts, or no gates",
        ));
    }
    let imatrix = calibration.and_then(|c| c.save_imatrix.as_deref());
    let statistics = calibration.and_then(|c| c.statistics.as_deref());
    let output = Some(target);
    for (a, b, what) in [
        (imatrix, output, "--save-imatrix and the output"),
        (statistics, output, "--statistics and the output"),
        (statistics, imatrix, "--statistics and --save-imatrix"),
    ] {
        if a.is_some() && a == b {
            return Err(Error::usage(format!("{what} name the same file; give one of them another name")));
        }
    }
    statistics.map_or(Ok(()), output::check_folder)?;
    if let Some(path) = imatrix {
        inputs.push(target);
        output::check_target(path, &inputs, options.force)?;
    }
    if source.kv().iter().any(|(k, _)| k == key::VERSION) {
        return Err(Error::unsupported(source.path(), ALREADY));
    }
    let mut layout = Layout::new(source, options)?;
    for (name, rule) in &layout.ruled {
        progress(Event::Rule { name, rule });
    }
    if let Some(im) = &layout.imatrix {
        for warning in im.check(&layout.specs)? {
            progress(Event::Warning(&warning));
        }
    }
    let device = Arc::new(open_device(options)?);
    tell_notes(&device, &mut progress);
    // From here on what it is, no longer what was hoped for.
    let options = &Options { device: device.kind(), ..options.clone() };
    let sha256 = source.sha256()?;
    let work_dir = options.work_dir(target);
    let journal = Journal::open(&work_dir, &fingerprint(&sha256, options)?)?;
    let pool = start(options.threads)?;
    let run = Run { source, target, options, device: &device, pool, sha256, journal: &journal };
    let mut stages = Stages::new();
    let mut heard = |event: Event| {
        stages.hear(&event);
        progress(event);
    };
    match run.finish(&mut layout, &mut heard) {
        Ok(mut report) => {
            report.stages = stages.done();
            journal.remove()?;
            report.seconds = started.elapsed().as_secs_f64();
            Ok(report)
        }
        Err(e) => {
            // What the system refused can be mended and repeated; an input at fault will change.
            if matches!(e, Error::Io { .. } | Error::Device(_)) && journal.holds_work() {
                progress(Event::Note(&format!(
                    "finished work is kept in {}; the same command goes on from there",
                    work_dir.display()
                )));
            } else {
                // The first error is the one to tell.
                let _ = journal.remove();
            }
            Err(e)
        }
    }
}

/// The device that the options mean.
///
/// # Errors
/// As [`Device::open`]; [`Error::Usage`] for a method that a GPU does not have.
fn open_device(options: &Options) -> Result<Device> {
    match (options.device, options.method) {
        (Choice::Cuda, Method::DualSvid) => {
            Err(Error::usage("--device cuda is for --method admm; dual-svid runs on the CPU: leave it out"))
        }
        (Choice::Auto, Method::DualSvid) => Ok(Device::cpu()),
        (choice, _) => Device::open(choice),
    }
}

/// A conversion whose request is sound.
struct Run<'a> {
    source: &'a dyn TensorSource,
    target: &'a Path,
    options: &'a Options,
    device: &'a Arc<Device>,
    pool: rayon::ThreadPool,
    sha256: String,
    journal: &'a Journal,
}

impl Run<'_> {
    /// Makes what is not made yet and writes the file.
    fn finish(self, layout: &mut Layout, progress: &mut dyn FnMut(Event)) -> Result<Report> {
        let Self { source, target, options, device, mut pool, sha256, journal } = self;
        // Ranks as they are without measurements: in sum they differ little.
        let first = layout.plan(source, options)?;
        let at_once = workers(source, &layout.actions, &layout.specs, &first, options)?;
        make_room(source, target, options, layout, &first)?;
        let calibrated = match &options.calibration {
            None => None,
            Some(calibration) => {
                let c = in_pool(
                    &pool,
                    |on_event| {
                        Calibrated::new(source, options, calibration, first.bpw, device, journal, on_event)
                    },
                    progress,
                )?;
                if let Some(threads) = c.fewer_threads() {
                    progress(Event::Note(&format!(
                        "--max-memory is enough for {threads} of {} threads",
                        options.threads
                    )));
                    pool = start(threads)?;
                }
                // Events come from the thread that runs the stages; they are handed on as they arrive.
                let measured = in_pool(&pool, |on_event| c.sensitivities(on_event), progress)?;
                layout.set_sensitivities(&measured);
                Some((c, measured))
            }
        };
        let plan = layout.plan(source, options)?;
        progress(Event::Planned(&plan));
        let Layout { actions, specs, imatrix, .. } = &*layout;
        let plan = &plan;
        let prepared = match &calibrated {
            None => None,
            Some((c, measured)) => Some(in_pool(
                &pool,
                |on_event| c.prepare(actions, specs, plan, measured, on_event),
                progress,
            )?),
        };
        let n_params: u64 = source.tensors().iter().map(|t| t.dims.iter().product::<u64>()).sum();
        let (descriptors, factor_bits) = describe(source, actions, specs, plan, options);
        let data_bits: u64 = descriptors.iter().map(|d| 8 * d.nbytes().unwrap_or(0)).sum();
        let summary = Summary {
            n_params,
            bpw: factor_bits as f64 / plan.weights as f64,
            bpw_file: data_bits as f64 / n_params as f64,
            sha256,
            imatrix: imatrix.as_ref(),
            calibration: prepared.as_ref().map(|p| p.tokens),
            evaluations: prepared.iter().flat_map(|p| &p.evaluations).map(Evaluation::named).collect(),
        };
        let failures = match &prepared {
            Some(p) => Evaluation::failures(&options.gates, &p.evaluations, p.coherence.as_ref()),
            None => Vec::new(),
        };
        let refused = rejected(target);
        let target = if failures.is_empty() { target } else { &refused };
        let mut kv = littlebit_kv(source, &descriptors, options, &summary);
        if let Some(ty) = options.lossy {
            kv = lossy::lossy_kv(&kv, ty);
        }

        let file = output::AtomicFile::create(target, options.force)?;
        let mut writer = Writer::new(file.writer()?, &kv, descriptors.clone(), schema::ALIGNMENT)
            .map_err(|e| at_output(e, target))?;
        let (mut matrices, mut kept) = (Vec::new(), Vec::new());
        let work = |i: usize| -> Result<Done> {
            match &actions[i] {
                Action::Keep { ty, .. } => pool.install(|| {
                    let name = &source.tensors()[i].name;
                    let bytes = match prepared.as_ref().and_then(|p| p.norms.get(name)) {
                        Some(norm) => encoded(*ty, norm),
                        None => keep(source, i, *ty),
                    };
                    bytes.map(Done::Kept)
                }),
                Action::Factorize(at) => pool.install(|| {
                    let (spec, rank) = (&specs[*at], plan.entries[*at].rank);
                    match prepared.as_ref().and_then(|p| p.made.get(&spec.name)) {
                        Some(made) => {
                            let w = source.read_f32(i)?;
                            let error = crate::factorize::relative_error(&w, &made.factors.slices, None);
                            finished(spec, &made.factors, error, made.seconds, options)
                        }
                        None => {
                            factorize_tensor(source, device, i, *at, spec, rank, options, imatrix, journal)
                        }
                    }
                }),
            }
        };
        ordered::run(actions.len(), at_once, work, |i, done| {
            let t = &source.tensors()[i];
            match done {
                Done::Kept(bytes) => {
                    writer.write_tensor(&t.name, &bytes).map_err(|e| at_output(e, target))?;
                    if let Action::Keep { ty, reason } = &actions[i] {
                        kept.push(KeptReport {
                            name: t.name.clone(),
                            dims: t.dims.clone(),
                            r#type: ty.name().to_string(),
                            bytes: bytes.len() as u64,
                            reason: reason.clone(),
                        });
                    }
                }
                Done::Factorized { parts, report } => {
                    for (name, bytes) in &parts {
                        writer.write_tensor(name, bytes).map_err(|e| at_output(e, target))?;
                    }
                    tell_notes(device, progress);
                    progress(Event::Matrix { index: matrices.len(), count: specs.len(), report: &report });
                    matrices.push(report);
                }
            }
            Ok(())
        })?;
        let w = writer.finish().map_err(|e| at_output(e, target))?;
        let w = flushed(w, target)?;
        if options.lossy.is_none() {
            verify(file.temp_path(), target, plan, factor_bits)?;
        }
        if options.container {
            // The GGUF vanishes with `file`.
            let whole = LittleBitFile::open(file.temp_path())?;
            let companions = source.companions();
            repack::write(&whole, &companions, target, Form::Container, options.force, &mut |_| {})?;
        } else {
            file.commit(w)?;
        }
        let bytes = std::fs::metadata(target).map_err(|e| Error::io(target, "stat", e))?.len();
        let share = |m: &MatrixReport| (m.d_out * m.d_in * m.experts) as f64 / plan.weights as f64;
        Ok(Report {
            tool: schema::TOOL.to_owned(),
            input: source.path().to_owned(),
            output: target.to_owned(),
            form: match options.lossy {
                Some(ty) => format!("lossy {}", ty.name()),
                None if options.container => "littlebit container".to_owned(),
                None => "littlebit".to_owned(),
            },
            method: method_text(options),
            seed: options.seed,
            threads: options.threads,
            device: device.name(),
            imatrix: options.imatrix.clone(),
            calibration: options.calibration.as_ref().map(|c| c.files.clone()).unwrap_or_default(),
            generated_windows: options.calibration.as_ref().map_or(0, Calibration::generated),
            failures,
            evaluations: prepared.as_ref().map(|p| p.evaluations.clone()).unwrap_or_default(),
            coherence: prepared.and_then(|p| p.coherence),
            bpw: summary.bpw,
            bpw_file: summary.bpw_file,
            n_params,
            factorized_weights: plan.weights,
            bytes,
            mean_error: matrices.iter().map(|m| m.error * share(m)).sum(),
            seconds: 0.0,
            stages: Vec::new(),
            matrices,
            kept,
        })
    }
}

/// Refuses a run whose output and finished pieces have no place on their disks.
fn make_room(
    source: &dyn TensorSource,
    target: &Path,
    options: &Options,
    layout: &Layout,
    plan: &Plan,
) -> Result<()> {
    let work = options.work_dir(target);
    let output = layout.output_bytes(source, options, plan)?;
    // A container is made of a finished GGUF.
    let output = if options.container { 2 * output } else { output };
    let factors = plan.bits / 8;
    let pieces = match &options.calibration {
        None => factors,
        Some(c) => factors + c.work_bytes(source, factors)?,
    };
    let pieces = pieces.saturating_sub(space::held(&work));
    space::check(&[
        Need { path: target, bytes: output, what: "the output" },
        Need { path: &work, bytes: pieces, what: "finished pieces" },
    ])
}

fn flushed(
    mut w: std::io::BufWriter<std::fs::File>,
    target: &Path,
) -> Result<std::io::BufWriter<std::fs::File>> {
    use std::io::Write;
    w.flush().map_err(|e| Error::io(target, "write", e))?;
    Ok(w)
}

/// Reads the finished file back before it gets its name: every matrix is there, sound, and takes the bits announced.
fn verify(temp: &Path, target: &Path, plan: &Plan, factor_bits: u64) -> Result<()> {
    let wrong = |what: String| Error::tensor(target, "(verification)", what);
    let file = LittleBitFile::open(temp)?;
    if file.matrices().len() != plan.entries.len() || file.factor_bits() != factor_bits {
        return Err(wrong(format!(
            "read back {} matrices in {} bits, wrote {} in {factor_bits}",
            file.matrices().len(),
            file.factor_bits(),
            plan.entries.len(),
        )));
    }
    for m in file.matrices() {
        file.read_factors(m)?;
    }
    Ok(())
}

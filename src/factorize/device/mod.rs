//! Where LB-ADMM, the polish and the decoder's products run: on the CPU, or on a GPU that was seen to compute the same.
//!
//! A matrix that does not fit into the free memory of the GPU is left to the CPU. Sums are formed in another order there, so
//! results differ from the CPU's as they differ between kinds of processors.

#[cfg(feature = "cuda")]
mod account;
#[cfg(feature = "cuda")]
mod admm;
#[cfg(feature = "cuda")]
pub(crate) mod check;
#[cfg(feature = "cuda")]
mod polish;

#[cfg(feature = "cuda")]
pub use account::{RESERVE, admm_bytes, polish_bytes};
#[cfg(feature = "cuda")]
pub use check::{CHECKED, TOLERANCE};

use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
#[cfg(feature = "cuda")]
use {
    super::algebra::Computed,
    crate::cuda::Failure,
    crate::cuda::compute::{Gpu, Kept, Matrix, Op, Session},
    crate::decoder::device::check as layers,
    std::sync::OnceLock,
    std::sync::atomic::{AtomicBool, Ordering},
    std::time::{Duration, Instant},
};

/// What the user asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The CPU.
    #[default]
    Cpu,
    /// The GPU, or nothing.
    Cuda,
    /// The GPU if it works.
    Auto,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Choice::Cpu => "cpu",
            Choice::Cuda => "cuda",
            Choice::Auto => "auto",
        })
    }
}

impl FromStr for Choice {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        match s {
            "cpu" => Ok(Choice::Cpu),
            "cuda" => Ok(Choice::Cuda),
            "auto" => Ok(Choice::Auto),
            _ => Err(Error::usage(format!("unknown device '{s}'; there are cpu, cuda and auto"))),
        }
    }
}

/// Share of the device's memory that weights which stay there leave for everything else.
#[cfg(feature = "cuda")]
const WORK_SHARE: u64 = 4;

/// What factorizes, and forms the products of a decoder that is placed on it.
#[derive(Debug, Default)]
pub struct Device {
    #[cfg(feature = "cuda")]
    gpu: Option<Gpu>,
    /// Whether the CPU takes over if the GPU fails.
    #[cfg(feature = "cuda")]
    lenient: bool,
    #[cfg(feature = "cuda")]
    failed: AtomicBool,
    /// How the GPU failed where nobody could be told at once.
    #[cfg(feature = "cuda")]
    broken: OnceLock<String>,
    #[cfg(feature = "cuda")]
    busy: Mutex<Duration>,
    notes: Mutex<Notes>,
}

/// What the user is to know.
#[derive(Debug, Default)]
struct Notes {
    waiting: Vec<String>,
    /// What they were about; one note each.
    #[cfg(feature = "cuda")]
    told: std::collections::HashSet<String>,
}

impl Device {
    /// The CPU.
    pub fn cpu() -> Self {
        Self::default()
    }

    /// The device that `choice` means on this machine, with a note where it is another one than could be hoped for. A GPU first
    /// computes on small matrices what the CPU computes.
    ///
    /// # Errors
    /// If there has to be a GPU: [`Error::Usage`] where it, its driver or cuBLAS is not there, [`Error::Device`] where it computes
    /// something else than the CPU or fails.
    pub fn open(choice: Choice) -> Result<Self> {
        match choice {
            Choice::Cpu => Ok(Self::cpu()),
            Choice::Cuda => Self::gpu(false).map_err(|e| match e {
                Error::Device(what) => Error::Device(format!("--device cuda: {what}")),
                other => Error::usage(format!("--device cuda: {other}")),
            }),
            Choice::Auto => Ok(Self::gpu(true).unwrap_or_else(|e| {
                let device = Self::cpu();
                device.notes().waiting.push(format!("--device auto: the CPU factorizes, as {e}"));
                device
            })),
        }
    }

    #[cfg(not(feature = "cuda"))]
    fn gpu(_lenient: bool) -> Result<Self> {
        Err(Error::usage("this littlebit-convert was built without CUDA; build it with --features cuda"))
    }

    #[cfg(feature = "cuda")]
    fn gpu(lenient: bool) -> Result<Self> {
        let failed = |e: Failure| match e {
            Failure::Absent(what) => Error::Usage(what),
            other => Error::Device(other.to_string()),
        };
        let gpu = Gpu::open().map_err(failed)?;
        let session = gpu.session().map_err(failed)?;
        let mut what = check::first_disagreement(&session).map_err(failed)?;
        if what.is_none() {
            what = layers::disagreement(&session, layers::CHECKED, 0).map_err(failed)?;
        }
        if let Some(what) = what {
            return Err(Error::Device(format!(
                "{} computes something else than the CPU ({what}), so it is not used",
                gpu.name()
            )));
        }
        session.free_idle();
        let free = session.free().map_err(failed)?;
        drop(session);
        let device = Self { gpu: Some(gpu), lenient, ..Self::default() };
        let text = format!("{} factorizes, {} MiB of its memory are free", device.name(), free >> 20);
        device.notes().waiting.push(text);
        Ok(device)
    }

    /// "cpu", or "cuda" and what the driver calls the GPU.
    pub fn name(&self) -> String {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = &self.gpu {
            return format!("cuda: {}", gpu.name());
        }
        "cpu".to_owned()
    }

    /// What was chosen in the end: not [`Choice::Auto`].
    pub fn kind(&self) -> Choice {
        #[cfg(feature = "cuda")]
        if self.gpu.is_some() {
            return Choice::Cuda;
        }
        Choice::Cpu
    }

    fn notes(&self) -> std::sync::MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What has come up since the last call that the user should know.
    pub fn take_notes(&self) -> Vec<String> {
        std::mem::take(&mut self.notes().waiting)
    }

    /// Whether the GPU has failed in work that had no way to say so, and the CPU has done what came after. To be asked before
    /// results are kept.
    ///
    /// # Errors
    /// [`Error::Device`] with the failure, unless the CPU may go on alone.
    pub fn check(&self) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let Some(what) = self.broken.get() {
            return Err(Error::Device(what.clone()));
        }
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn note(&self, about: &str, text: String) {
        let mut notes = self.notes();
        if notes.told.insert(about.to_owned()) {
            notes.waiting.push(text);
        }
    }

    /// `work` on matrix `name` on the GPU, which takes `bytes` there. `None` if the CPU has to do it.
    ///
    /// Nothing in `work` may use the rayon pool: its threads could be waiting for the GPU.
    #[cfg(feature = "cuda")]
    pub(super) fn attempt<T>(
        &self,
        name: &str,
        bytes: u64,
        work: impl FnOnce(&Session) -> Computed<T>,
    ) -> Result<Option<T>> {
        self.attempt_one_of(name, name, bytes, work)
    }

    /// The same where the CPU takes over in any case: [`check`](Self::check) tells of a failure. That something does not fit is
    /// noted once for all blocks.
    #[cfg(feature = "cuda")]
    pub(crate) fn assist<T>(
        &self,
        name: &str,
        bytes: u64,
        work: impl FnOnce(&Session) -> Computed<T>,
    ) -> Option<T> {
        let of_any_block = name.strip_prefix("blk.").and_then(|n| n.split_once('.')).map_or(name, |n| n.1);
        self.attempt_one_of(name, &format!("products of {of_any_block}"), bytes, work).unwrap_or_else(|e| {
            self.failed.store(true, Ordering::Relaxed);
            self.broken.get_or_init(|| match e {
                Error::Device(what) => what,
                other => other.to_string(),
            });
            None
        })
    }

    /// Memory for the `n` numbers of a weight that stay on the GPU. `None` where they would leave less than a quarter of it
    /// free, or the CPU has taken over.
    #[cfg(feature = "cuda")]
    pub(crate) fn keep(&self, name: &str, n: usize) -> Option<Kept> {
        let kept = self.assist(name, 0, |session| {
            Ok(if has_room(session, n)? { Some(session.reuse(n)?) } else { None })
        })?;
        if kept.is_none() {
            let text = format!(
                "weights from '{name}' on stay with the CPU for now: they would take more than three quarters of the GPU's memory"
            );
            self.note("weights", text);
        }
        kept
    }

    #[cfg(feature = "cuda")]
    fn attempt_one_of<T>(
        &self,
        name: &str,
        about: &str,
        bytes: u64,
        work: impl FnOnce(&Session) -> Computed<T>,
    ) -> Result<Option<T>> {
        self.check()?;
        let Some(gpu) = self.gpu.as_ref().filter(|_| !self.failed.load(Ordering::Relaxed)) else {
            return Ok(None);
        };
        let (mut free, mut started) = (0, Instant::now());
        let result = gpu.session().and_then(|session| {
            started = Instant::now();
            free = session.free()?;
            if bytes > free.saturating_sub(RESERVE) {
                session.free_idle();
                free = session.free()?;
            }
            if bytes > free.saturating_sub(RESERVE) { Err(Failure::Memory(bytes)) } else { work(&session) }
        });
        *self.busy.lock().unwrap_or_else(PoisonError::into_inner) += started.elapsed();
        match result {
            Ok(done) => Ok(Some(done)),
            Err(Failure::Memory(_)) => {
                let text = format!(
                    "'{name}' goes to the CPU: it takes {} MiB of the GPU's memory, {} are free",
                    (bytes + RESERVE) >> 20,
                    free >> 20
                );
                self.note(about, text);
                Ok(None)
            }
            Err(e) if self.lenient => {
                self.failed.store(true, Ordering::Relaxed);
                self.note("", format!("the CPU goes on from '{name}' alone, as the GPU failed: {e}"));
                Ok(None)
            }
            Err(e) => Err(Error::Device(format!("matrix '{name}' on {}: {e}", self.name()))),
        }
    }
}

/// Whether a weight of `n` numbers may stay on the device.
#[cfg(feature = "cuda")]
pub(crate) fn has_room(session: &Session, n: usize) -> Computed<bool> {
    let [room, total] = session.room()?;
    Ok(room.saturating_sub(4 * n as u64) >= total / WORK_SHARE)
}

#[cfg(feature = "cuda")]
impl Device {
    /// Time that matrices have had the GPU, transfers and what of their work is the CPU's included.
    pub fn busy(&self) -> Duration {
        *self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the GPU computes differently from the CPU beyond [`TOLERANCE`] in random problem `seed`, in words: steps of LB-ADMM and parts of
    /// the polish, each on a matrix of these outputs, inputs and rank. `None` if nothing.
    ///
    /// # Errors
    /// [`Failure`] of the device; [`Failure::Absent`] for the CPU.
    pub fn disagreement(
        &self,
        steps: [usize; 3],
        products: [usize; 3],
        seed: u64,
    ) -> std::result::Result<Option<String>, Failure> {
        check::disagreement(&self.session()?, steps, products, seed)
    }

    /// The same for the decoder's layers and the sums of moments, at these tokens, inputs, outputs and rank.
    ///
    /// # Errors
    /// As [`Device::disagreement`].
    pub fn layer_disagreement(
        &self,
        shape: [usize; 4],
        seed: u64,
    ) -> std::result::Result<Option<String>, Failure> {
        layers::disagreement(&self.session()?, shape, seed)
    }

    /// Operations a second of a product of two `n x n` matrices, the fastest of five: what the GPU can reach.
    ///
    /// # Errors
    /// As [`Device::disagreement`].
    pub fn product_rate(&self, n: usize) -> std::result::Result<f64, Failure> {
        let session = self.session()?;
        let (a, c) = (session.upload(&vec![0.5f32; n * n])?, session.blank(n * n)?);
        let whole = Matrix::whole(&a, n, n);
        let mut best = f64::INFINITY;
        for _ in 0..6 {
            let started = Instant::now();
            session.gemm(Matrix::whole(&c, n, n), 1.0, (whole, Op::Plain), (whole, Op::Plain), 0.0)?;
            // Waits for it.
            session.download::<f32>(&c, 0..1)?;
            best = best.min(started.elapsed().as_secs_f64());
        }
        Ok(2.0 * (n as f64).powi(3) / best)
    }

    fn session(&self) -> std::result::Result<Session<'_>, Failure> {
        self.gpu.as_ref().ok_or_else(|| Failure::Absent("the device is the CPU".into()))?.session()
    }
}

/// `work` with `algebra` that of the device, where it has so many bytes free, else that of the CPU.
macro_rules! compute {
    ($device:expr, $name:expr, $bytes:ident ( $($shape:expr),* ), $algebra:ident => $work:expr) => {{
        #[cfg(feature = "cuda")]
        let done = $device.attempt($name, crate::factorize::device::$bytes($($shape),*), |$algebra| $work)?;
        #[cfg(not(feature = "cuda"))]
        let done = {
            let _: (&Device, &str) = ($device, $name);
            None
        };
        match done {
            Some(done) => done,
            None => {
                let $algebra = &crate::factorize::algebra::Host;
                crate::factorize::algebra::certain($work)
            }
        }
    }};
}
pub(super) use compute;

//! One real matrix in, binary factors out: `W ~ sum_p diag(h_p) U_p diag(l_p) V_p^T diag(g_p)`.
//!
//! Two methods, with the equations in `specs/algorithm.md`:
//! * [`Method::Admm`]: LB-ADMM, the alternating solution of ridge problems under the constraint that each factor
//!   is a sign matrix times a rank-one magnitude; the better one by far.
//! * [`Method::DualSvid`]: signs and rank-one magnitudes of the truncated SVD, the start of the LittleBit paper,
//!   optionally after a rotation of the latent space ([`Rotate::Itq`]).
//!
//! Everything runs on the current rayon pool, in blocks whose size does not depend on the number of threads; the
//! same job gives the same bits on one thread and on many. LB-ADMM and polish can run on a GPU ([`Device`]), whose results
//! differ from the CPU's by rounding.

mod admm;
pub(crate) mod algebra;
pub mod device;
mod error;
mod export;
mod gemm;
pub mod polish;
mod rank_one;
mod ridge;
mod rotate;
mod start;
mod svd;
mod svid;
mod weighting;

use crate::bits::SignMatrix;
use crate::error::{Error, Result};
use crate::format::factors::FactorPath;
use crate::plan::{check_paths, check_rank};
use device::compute;
use std::fmt;
use std::str::FromStr;
use weighting::Weighting;

pub use admm::DEFAULT_ITERATIONS as ADMM_ITERATIONS;
pub use device::Device;
pub use rotate::DEFAULT_ITERATIONS as ITQ_ITERATIONS;
pub(crate) use svd::is_small_part;
pub use weighting::SHRINKAGE;

/// How a matrix is factorized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// LB-ADMM from a random start.
    Admm,
    /// Dual-SVID, the paper's initialisation.
    DualSvid,
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Method::Admm => "admm",
            Method::DualSvid => "dual-svid",
        })
    }
}

impl FromStr for Method {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        match s {
            "admm" => Ok(Method::Admm),
            "dual-svid" => Ok(Method::DualSvid),
            _ => Err(Error::usage(format!("unknown method '{s}'; there are admm and dual-svid"))),
        }
    }
}

/// Rotation of the latent space before signs are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotate {
    /// Joint-ITQ.
    Itq,
}

impl fmt::Display for Rotate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad("itq")
    }
}

impl FromStr for Rotate {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        match s {
            "itq" => Ok(Rotate::Itq),
            _ => Err(Error::usage(format!("unknown rotation '{s}'; there is itq"))),
        }
    }
}

/// One matrix to factorize.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    /// Name of the matrix; with the seed it fixes the random start.
    pub name: &'a str,
    /// Weights, row-major `d_out x d_in`.
    pub w: &'a [f32],
    /// Outputs.
    pub d_out: usize,
    /// Inputs.
    pub d_in: usize,
    /// Rank of each path, a multiple of 32.
    pub rank: usize,
    /// Paths, 1 or 2; the second factorizes what the first leaves.
    pub paths: usize,
    /// Method.
    pub method: Method,
    /// Rotation, for [`Method::DualSvid`] only.
    pub rotate: Option<Rotate>,
    /// Mean square of each input, `d_in` values; `None` weighs all columns alike.
    pub importance: Option<&'a [f32]>,
    /// Seed of the run.
    pub seed: u64,
    /// Iterations of ADMM or of ITQ, `None` for [`ADMM_ITERATIONS`] or [`ITQ_ITERATIONS`].
    pub iterations: Option<usize>,
}

/// The factors of one matrix and how well they do.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// One entry for each path.
    pub paths: Vec<FactorPath>,
    /// `||W - W'|| / ||W||` (Frobenius) with W' from the stored f16 scales; 0 for a zero matrix.
    pub error_plain: f64,
    /// The same with column j of both weighted by `sqrt(importance_j)`.
    pub error_weighted: f64,
}

/// Factorizes one matrix on the CPU.
///
/// # Errors
/// [`Error::Usage`] for options that exclude each other, [`Error::Numeric`] for weights or importance that are
/// not finite and for magnitudes that f16 scales cannot hold.
///
/// # Panics
/// If slices do not have the lengths that the shape asks for.
pub fn factorize(job: &Job) -> Result<Outcome> {
    factorize_on(&Device::cpu(), job)
}

/// Factorizes one matrix, LB-ADMM on `device`.
///
/// # Errors
/// As [`factorize`], and [`Error::Device`].
///
/// # Panics
/// As [`factorize`].
pub fn factorize_on(device: &Device, job: &Job) -> Result<Outcome> {
    check(job)?;
    let weighting = Weighting::new(job)?;
    let mut residual: Option<Vec<f32>> = None;
    let mut paths = Vec::with_capacity(job.paths);
    for index in 0..job.paths {
        let w = residual.as_deref().unwrap_or(job.w);
        let path = one_path(device, job, w, index, &weighting)?;
        if index + 1 < job.paths {
            residual = Some(error::residual(w, &path));
        }
        paths.push(path);
    }
    let (error_plain, error_weighted) = error::relative(job.w, &paths, job.importance);
    Ok(Outcome { paths, error_plain, error_weighted })
}

/// Path `index` of the job, for the weights or the residual `w`.
fn one_path(
    device: &Device,
    job: &Job,
    w: &[f32],
    index: usize,
    weighting: &Weighting,
) -> Result<FactorPath> {
    let Some(scaled) = weighting.apply(job, w)? else {
        return Ok(export::zero_path(job.d_out, job.d_in, job.rank));
    };
    let rng = || start::rng(job.seed, job.name, index);
    let mut path = match job.method {
        Method::Admm => {
            let iterations = job.iterations.unwrap_or(ADMM_ITERATIONS);
            compute!(device, job.name, admm_bytes(job.d_out, job.d_in, job.rank), algebra => {
                admm::factorize(algebra, job, &scaled.w, iterations, &mut rng())
            })?
        }
        Method::DualSvid => {
            let itq = job.rotate.map(|Rotate::Itq| job.iterations.unwrap_or(ITQ_ITERATIONS));
            svid::factorize(job, &scaled.w, itq, &mut rng())?
        }
    };
    weighting.undo(&mut path, scaled.magnitude);
    export::to_f16(job.name, path)
}

/// A path whose product is 0: for a matrix that has fewer of them than others.
pub fn no_path(d_out: usize, d_in: usize, rank: usize) -> FactorPath {
    export::zero_path(d_out, d_in, rank)
}

/// `path` with other scales, as the file stores them.
///
/// # Errors
/// [`Error::Numeric`] if f16 cannot hold them.
pub fn with_scales(name: &str, path: &FactorPath, h: &[f32], l: &[f32], g: &[f32]) -> Result<FactorPath> {
    stored(name, path.u.clone(), path.vt.clone(), [h, l, g])
}

/// A path of signs U (`d_out x r`) and V^T (`r x d_in`) and scales h, l, g, as the file stores them.
///
/// # Errors
/// As [`with_scales`].
pub fn with_signs(name: &str, [u, vt]: &[Vec<f32>; 2], [h, l, g]: [&[f32]; 3]) -> Result<FactorPath> {
    let u = SignMatrix::from_row_major(h.len(), l.len(), u);
    let vt = SignMatrix::from_row_major(l.len(), g.len(), vt);
    stored(name, u, vt, [h, l, g])
}

fn stored(name: &str, u: SignMatrix, vt: SignMatrix, scales: [&[f32]; 3]) -> Result<FactorPath> {
    let [h, l, g] = scales.map(|x| x.iter().map(|&x| f64::from(x)).collect());
    export::to_f16(name, export::RealPath { u, vt, h, l, g })
}

/// `||W - W'|| / ||W||` of stored factors, plain and with column j weighted by `sqrt(importance_j)`.
pub fn relative_error(w: &[f32], paths: &[FactorPath], importance: Option<&[f32]>) -> (f64, f64) {
    error::relative(w, paths, importance)
}

fn check(job: &Job) -> Result<()> {
    check_paths(job.paths)?;
    check_rank(job.rank)?;
    if job.rotate.is_some() && job.method != Method::DualSvid {
        return Err(Error::usage("rotate applies to the method dual-svid only"));
    }
    if job.iterations == Some(0) {
        return Err(Error::usage("iterations must be at least 1"));
    }
    if job.iterations.is_some() && job.method == Method::DualSvid && job.rotate.is_none() {
        return Err(Error::usage(
            "iterations apply to admm and to dual-svid with a rotation; dual-svid alone has none",
        ));
    }
    assert_eq!(job.w.len(), job.d_out * job.d_in, "weights do not fill the shape");
    assert!(job.d_out > 0 && job.d_in > 0, "an empty matrix");
    if let Some(importance) = job.importance {
        assert_eq!(importance.len(), job.d_in, "one importance for each input");
    }
    Ok(())
}

#[cfg(test)]
mod tests;

//! Whether a GPU computes what the CPU computes: it is not trusted before.

use crate::cuda::compute::Session;
use crate::factorize::algebra::Computed;
use crate::factorize::{admm, polish};

/// Shapes (outputs, inputs, rank) for steps of LB-ADMM and for parts of the polish: more than one chunk of columns, diagonal block
/// of a decomposition and block of threads, none of them full.
pub const CHECKED: [[usize; 3]; 2] = [[110, 270, 96], [30, 70, 32]];
/// Problems of which one has to agree: a sign that rounding decides can be another one in one of them, hardly in both.
const PROBLEMS: u64 = 2;
/// Distance up to which results agree, as a share of their root mean square.
pub const TOLERANCE: f64 = 2e-3;

/// What the device computes differently in one problem, in words.
pub fn disagreement(
    session: &Session,
    steps: [usize; 3],
    products: [usize; 3],
    seed: u64,
) -> Computed<Option<String>> {
    match admm::check::disagreement(session, steps, seed)? {
        None => polish::check::disagreement(session, products, seed),
        some => Ok(some),
    }
}

/// What it computes differently in all problems, in words; `None` if it can be trusted.
pub fn first_disagreement(session: &Session) -> Computed<Option<String>> {
    let mut last = None;
    for seed in 0..PROBLEMS {
        last = disagreement(session, CHECKED[0], CHECKED[1], seed)?;
        if last.is_none() {
            break;
        }
    }
    Ok(last)
}

/// Root mean square.
pub fn rms(values: &[f32]) -> f64 {
    let square: f64 = values.iter().map(|x| f64::from(*x).powi(2)).sum();
    (square / values.len().max(1) as f64).sqrt().max(f64::MIN_POSITIVE)
}

/// Largest distance of values as a share of `scale`.
pub fn distance(expected: &[f32], found: &[f32], scale: f64) -> f64 {
    // Not a number is far from everything.
    let far = |(a, b): (&f32, &f32)| {
        let d = f64::from(a - b).abs() / scale;
        if d.is_finite() { d } else { f64::INFINITY }
    };
    expected.iter().zip(found).map(far).fold(0.0, f64::max)
}

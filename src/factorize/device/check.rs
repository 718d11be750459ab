//! Whether a GPU computes what the CPU computes: it is not trusted before.

use crate::cuda::compute::Session;
use crate::factorize::algebra::Computed;
use crate::factorize::{admm, polish};

/// Shapes (outputs, inputs, rank): more than one chunk of columns, diagonal block of a decomposition and block of threads, none of them full.
const SHAPES: [[usize; 3]; 2] = [[110, 270, 96], [30, 70, 32]];
/// Problems of which one has to agree: a sign that rounding decides can be another one in one of them, hardly in both.
const PROBLEMS: u64 = 2;

/// What the device computes differently, in words; `None` if nothing.
pub fn disagreement(session: &Session) -> Computed<Option<String>> {
    let [steps, products] = SHAPES;
    let mut last = None;
    for seed in 0..PROBLEMS {
        last = admm::check::disagreement(session, steps, seed)?;
        if last.is_none() {
            last = polish::check::disagreement(session, products, seed)?;
        }
        if last.is_none() {
            break;
        }
    }
    Ok(last)
}

/// Largest distance of values as a share of the root mean square of `expected`.
pub fn distance(expected: &[f32], found: &[f32]) -> f64 {
    let square: f64 = expected.iter().map(|x| f64::from(*x).powi(2)).sum();
    let rms = (square / expected.len().max(1) as f64).sqrt().max(f64::MIN_POSITIVE);
    // Not a number is far from everything.
    let far = |(a, b): (&f32, &f32)| {
        let d = f64::from(a - b).abs() / rms;
        if d.is_finite() { d } else { f64::INFINITY }
    };
    expected.iter().zip(found).map(far).fold(0.0, f64::max)
}

/// Distance up to which results agree.
pub const TOLERANCE: f64 = 2e-3;

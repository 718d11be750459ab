//! Steps of LB-ADMM elsewhere against those on the CPU, from the same random factors.

use super::{Factor, Magnitudes, Squares, Steps, Weights, step};
use crate::factorize::algebra::{Algebra, Computed, Host, certain};
use crate::factorize::device::check::{TOLERANCE, distance, rms};
use crate::factorize::start;
use std::borrow::Cow;

/// Weight of the pull in both steps.
const RHO: f32 = 0.5;

type Known = Factor<Cow<'static, [f32]>>;

/// Another copy of a factor of the CPU.
fn copy<'a, A: Steps<'a>>(algebra: &A, f: &Known) -> Computed<Factor<A::Values>> {
    let own = |v: &Cow<[f32]>| algebra.own(v.to_vec());
    let z = Magnitudes { a: own(&f.z.a)?, b: own(&f.z.b)? };
    Ok(Factor { shape: f.shape, t: own(&f.t)?, z, work: algebra.blank(f.t.len())? })
}

/// Buffers for a step.
fn squares<'a, A: Steps<'a>>(algebra: &A, r: usize) -> Computed<Squares<A::Square>> {
    Ok(Squares { gram: algebra.square(r)?, cholesky: algebra.square(r)? })
}

/// What of one step for each factor is different, in words.
pub fn disagreement<'a, A: Steps<'a>>(
    algebra: &A,
    [d_out, d_in, r]: [usize; 3],
    seed: u64,
) -> Computed<Option<String>> {
    let rng = &mut start::rng(seed, "check", 0);
    let values = start::uniform(rng, d_out * d_in);
    let known = certain(Host.own(values.clone()));
    let (w, weights) = (&known, &algebra.own(values)?);
    let factors = [d_out, d_in].map(|n| certain(Factor::random(&Host, r, n, rng)));
    for side in [0, 1] {
        let (target, other) = (&factors[side], &factors[1 - side]);
        let transposed = side == 0;
        let [mut expected, mut beside] = [target, other].map(|f| certain(copy(&Host, f)));
        let own = Weights { values: w, d_out, d_in, transposed };
        let room = &mut certain(squares(&Host, r));
        let solved = certain(step(&Host, &mut expected, &mut beside, &own, RHO, room));
        let (mut found, mut other) = (copy(algebra, target)?, copy(algebra, other)?);
        let theirs = Weights { values: weights, d_out, d_in, transposed };
        if step(algebra, &mut found, &mut other, &theirs, RHO, &mut squares(algebra, r)?)? != solved {
            return Ok(Some("whether a decomposition exists".to_owned()));
        }
        let n = expected.shape.n;
        let parts = [
            // With the duals that they had before in them.
            ("latent values", &expected.t, &found.t, r * n),
            ("magnitudes of rows", &expected.z.a, &found.z.a, r),
            ("magnitudes of columns", &expected.z.b, &found.z.b, n),
        ];
        for (what, expected, found, n) in parts {
            let expected = &expected[..n];
            let far = distance(expected, &algebra.read(found, 0..n)?, rms(expected));
            if far > TOLERANCE {
                return Ok(Some(format!("{what} off by {far:.1e}")));
            }
        }
    }
    Ok(None)
}

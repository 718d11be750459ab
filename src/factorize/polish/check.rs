//! Parts of the polish elsewhere against those on the CPU, each from the same state.

use super::{Path, Problem, Products, metric, scales, signs};
use crate::factorize::algebra::{Computed, Host, certain};
use crate::factorize::device::check::{TOLERANCE, distance, rms};
use crate::factorize::start;
use std::borrow::Cow;

type Known = Path<Cow<'static, [f32]>>;

/// Another copy of a path of the CPU.
fn copy<'a, A: Products<'a>>(algebra: &A, p: &Known) -> Computed<Path<A::Values>> {
    let (d_out, d_in, rank) = (p.d_out, p.d_in, p.rank);
    let (u, v) = (algebra.own(p.u.to_vec())?, algebra.own(p.v.to_vec())?);
    Ok(Path { d_out, d_in, rank, h: p.h.clone(), l: p.l.clone(), g: p.g.clone(), u, v })
}

/// What of the polish is different, in words.
pub fn disagreement<'a, A: Products<'a>>(
    algebra: &A,
    [d_out, d_in, rank]: [usize; 3],
    seed: u64,
) -> Computed<Option<String>> {
    let rng = &mut start::rng(seed, "check", 1);
    let mut random = |n: usize| start::uniform(rng, n);
    let target = random(d_out * d_in);
    let mut x = random(2 * d_in * d_in);
    (1..x.len()).for_each(|i| x[i] += 0.7 * x[i - 1]);
    let x = Cow::Owned(x);
    let moments = certain(Host.transposed_times(&x, &x, d_in, d_in));
    let metric = metric(&moments, d_in);
    let mut signs_of = |n: usize| random(n).iter().map(|x| x.signum()).collect::<Vec<f32>>();
    let (u, v) = (Cow::Owned(signs_of(d_out * rank)), Cow::Owned(signs_of(d_in * rank)));
    let mut scale = |n: usize| random(n).iter().map(|x| 0.3 * x + 0.5).collect::<Vec<f32>>();
    let (mut h, l, g) = (scale(d_out), scale(rank), scale(d_in));
    h.iter_mut().step_by(3).for_each(|h| *h = -*h);
    let known: Known = Path { d_out, d_in, rank, h, l, g, u, v };

    let own = {
        let (target, metric) = (Cow::from(&target), Cow::from(&metric));
        let weighed = certain(Host.times(&target, 0..d_out, &metric, d_in, d_in));
        Problem { metric, target, weighed, d_out, d_in }
    };
    let theirs = {
        let (target, metric) = (algebra.own(target.clone())?, algebra.own(metric.clone())?);
        let weighed = algebra.times(&target, 0..d_out, &metric, d_in, d_in)?;
        Problem { metric, target, weighed, d_out, d_in }
    };
    let (mut expected, mut found) = (certain(copy(&Host, &known)), copy(algebra, &known)?);
    let (a, b) = (certain(own.objective(&Host, &expected)), theirs.objective(algebra, &found)?);
    if (a - b).abs() > TOLERANCE * a.abs() || b.is_nan() {
        return Ok(Some(format!("the objective {b:.6e} instead of {a:.6e}")));
    }
    certain(scales::refit_l(&Host, &own, &mut expected));
    scales::refit_l(algebra, &theirs, &mut found)?;
    certain(scales::refit_h(&Host, &own, &mut expected));
    scales::refit_h(algebra, &theirs, &mut found)?;
    certain(scales::refit_g(&Host, &own, &mut expected));
    scales::refit_g(algebra, &theirs, &mut found)?;
    for (what, a, b) in
        [("l", &expected.l, &found.l), ("h", &expected.h, &found.h), ("g", &expected.g, &found.g)]
    {
        let far = distance(a, b, rms(a));
        if far > TOLERANCE {
            return Ok(Some(format!("scales {what} off by {far:.1e}")));
        }
    }
    // From one state, as a sign that rounding decides may be another one.
    let (mut expected, mut found) = (certain(copy(&Host, &known)), copy(algebra, &known)?);
    let flips = [
        certain(signs::descend_u(&Host, &own, &mut expected)),
        certain(signs::descend_v(&Host, &own, &mut expected)),
    ];
    let theirs =
        [signs::descend_u(algebra, &theirs, &mut found)?, signs::descend_v(algebra, &theirs, &mut found)?];
    let same = *expected.u == *algebra.read(&found.u, 0..d_out * rank)?
        && *expected.v == *algebra.read(&found.v, 0..d_in * rank)?;
    Ok((!same || flips != theirs).then(|| "signs of the descent".to_owned()))
}

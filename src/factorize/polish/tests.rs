use super::*;
use crate::decoder::product::times;
use crate::factorize::algebra::{Host, certain};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::borrow::Cow;

const D_OUT: usize = 20;
const D_IN: usize = 70;
const RANK: usize = 6;

fn random(rng: &mut ChaCha8Rng, n: usize) -> Vec<f32> {
    (0..n).map(|_| rng.random_range(-1.0f32..1.0)).collect()
}

type Path = super::Path<Cow<'static, [f32]>>;
type Problem = super::Problem<Cow<'static, [f32]>>;

/// A target, correlated moments of 90 inputs, and a path that has nothing to do with them.
fn setup() -> (Vec<f32>, Vec<f32>, Path) {
    let rng = &mut ChaCha8Rng::seed_from_u64(3);
    let target = random(rng, D_OUT * D_IN);
    let mut x = random(rng, 90 * D_IN);
    for i in 1..x.len() {
        x[i] += 0.7 * x[i - 1];
    }
    let mut moments = vec![0f32; D_IN * D_IN];
    crate::decoder::product::transposed_times(&mut moments, &x, &x, D_IN, D_IN, false);
    let mut sign = |n: usize| random(rng, n).iter().map(|x| x.signum()).collect::<Vec<f32>>();
    let (u, v) = (sign(D_OUT * RANK), sign(D_IN * RANK));
    let mut scale = |n: usize| random(rng, n).iter().map(|x| 0.3 * x + 0.5).collect::<Vec<f32>>();
    let p = Path {
        d_out: D_OUT,
        d_in: D_IN,
        rank: RANK,
        h: scale(D_OUT),
        l: scale(RANK),
        g: scale(D_IN),
        u: u.into(),
        v: v.into(),
    };
    (target, metric(&moments, D_IN), p)
}

fn problem(target: &[f32], metric: &[f32]) -> Problem {
    let mut weighed = vec![0f32; target.len()];
    times(&mut weighed, target, metric, D_IN, D_IN, false);
    let (metric, target, weighed) = (metric.to_vec().into(), target.to_vec().into(), weighed.into());
    Problem { metric, target, weighed, d_out: D_OUT, d_in: D_IN }
}

/// The objective by its definition, in f64.
fn error(target: &[f32], metric: &[f32], p: &Path) -> f64 {
    let w = |i: usize, j: usize| -> f64 {
        let sum: f64 =
            (0..RANK).map(|k| f64::from(p.u[i * RANK + k] * p.v[j * RANK + k]) * f64::from(p.l[k])).sum();
        f64::from(p.h[i]) * sum * f64::from(p.g[j])
    };
    let mut total = 0.0;
    for i in 0..D_OUT {
        let e: Vec<f64> = (0..D_IN).map(|j| f64::from(target[i * D_IN + j]) - w(i, j)).collect();
        for a in 0..D_IN {
            for b in 0..D_IN {
                total += e[a] * f64::from(metric[a * D_IN + b]) * e[b];
            }
        }
    }
    total
}

#[test]
fn the_objective_is_the_error_less_a_constant() {
    let (t, m, mut p) = setup();
    let q = problem(&t, &m);
    let (e0, o0) = (error(&t, &m, &p), certain(q.objective(&Host, &p)));
    p.h[3] *= -2.0;
    p.v.to_mut()[7] *= -1.0;
    let (e1, o1) = (error(&t, &m, &p), certain(q.objective(&Host, &p)));
    assert!(((e1 - e0) - (o1 - o0)).abs() < 1e-4 * e0, "{} against {}", e1 - e0, o1 - o0);
}

#[test]
fn descent_lowers_the_error_and_ends_where_no_flip_pays() {
    let (t, m, mut p) = setup();
    let q = problem(&t, &m);
    let mut last = error(&t, &m, &p);
    for round in 0..60 {
        let flips =
            certain(signs::descend_u(&Host, &q, &mut p)) + certain(signs::descend_v(&Host, &q, &mut p));
        let now = error(&t, &m, &p);
        assert!(now <= last * (1.0 + 1e-6), "round {round}: {now} after {last}");
        last = now;
        if flips == 0 {
            break;
        }
        assert!(round < 59, "no end");
    }
    for k in 0..p.u.len() {
        p.u.to_mut()[k] *= -1.0;
        assert!(error(&t, &m, &p) >= last * (1.0 - 1e-5), "flipping U[{k}] pays");
        p.u.to_mut()[k] *= -1.0;
    }
    for k in 0..p.v.len() {
        p.v.to_mut()[k] *= -1.0;
        assert!(error(&t, &m, &p) >= last * (1.0 - 1e-5), "flipping V[{k}] pays");
        p.v.to_mut()[k] *= -1.0;
    }
}

#[test]
fn margins_are_what_one_flip_costs() {
    let (t, m, p) = setup();
    let wide = |x: &[f32]| x.iter().map(|x| half::f16::from_f32(*x)).collect();
    let stored = |scale: f32| FactorPath {
        u: SignMatrix::from_row_major(D_OUT, RANK, &p.u),
        vt: SignMatrix::from_fn(RANK, D_IN, |k, j| p.v[j * RANK + k] > 0.0),
        h: wide(&p.h),
        l: wide(&p.l.iter().map(|l| scale * l).collect::<Vec<f32>>()),
        g: wide(&p.g),
    };
    // Two paths with the same signs and other scales; rows count differently.
    let paths = [stored(1.0), stored(-0.3)];
    let rows: Vec<f32> = (0..D_OUT).map(|i| 0.5 + 0.2 * i as f32).collect();
    let error_of = |paths: &[FactorPath]| {
        let mut e: Vec<f32> = t.iter().map(|x| -x).collect();
        paths.iter().for_each(|p| p.add_dense(&mut e));
        let mut sum = 0.0;
        for (e, s) in e.chunks_exact(D_IN).zip(&rows) {
            for a in 0..D_IN {
                for b in 0..D_IN {
                    sum += f64::from(s * s * e[a]) * f64::from(m[a * D_IN + b]) * f64::from(e[b]);
                }
            }
        }
        sum
    };
    let base = error_of(&paths);
    let margins = margins(&Device::cpu(), "w", &t, &paths, &m, Some(&rows)).unwrap();
    for path in 0..2 {
        let turned = |u: Option<(usize, usize)>, v: Option<(usize, usize)>| {
            let old = &paths[path];
            let mut all = paths.clone();
            all[path].u = SignMatrix::from_fn(D_OUT, RANK, |i, k| old.u.is_plus(i, k) != (u == Some((i, k))));
            all[path].vt =
                SignMatrix::from_fn(RANK, D_IN, |k, j| old.vt.is_plus(k, j) != (v == Some((k, j))));
            error_of(&all) - base
        };
        for k in 0..RANK {
            for i in 0..D_OUT {
                let (got, want) = (f64::from(margins[path][0][i * RANK + k]), turned(Some((i, k)), None));
                assert!((got - want).abs() < 1e-4 * base, "U {i} {k} of {path}: {got} against {want}");
            }
            for j in 0..D_IN {
                let (got, want) = (f64::from(margins[path][1][k * D_IN + j]), turned(None, Some((k, j))));
                assert!((got - want).abs() < 1e-4 * base, "V {k} {j} of {path}: {got} against {want}");
            }
        }
    }
}

#[test]
fn refits_end_where_the_gradient_is_zero() {
    let (t, m, mut p) = setup();
    let q = problem(&t, &m);
    type Step = fn(&Host, &Problem, &mut Path) -> Computed<()>;
    type Pick = fn(&mut Path) -> &mut Vec<f32>;
    let steps: [(&str, Step, Pick); 3] = [
        ("l", scales::refit_l, |p| &mut p.l),
        ("h", scales::refit_h, |p| &mut p.h),
        ("g", scales::refit_g, |p| &mut p.g),
    ];
    for (name, step, pick) in steps {
        let before = error(&t, &m, &p);
        // Often enough that the ridge towards the present value no longer matters.
        (0..30).for_each(|_| certain(step(&Host, &q, &mut p)));
        let e = error(&t, &m, &p);
        assert!(e <= before, "{name}: {e} after {before}");
        for i in 0..pick(&mut p).len() {
            for by in [0.99, 1.01] {
                let old = pick(&mut p)[i];
                pick(&mut p)[i] = old * by;
                assert!(error(&t, &m, &p) >= e * (1.0 - 1e-6), "{name}[{i}] times {by} is better");
                pick(&mut p)[i] = old;
            }
        }
    }
}

/// Rows of U are problems of their own: of each the best of all 64 sign rows is known.
#[test]
fn rows_end_near_what_brute_force_finds() {
    let (t, m, mut p) = setup();
    let q = problem(&t, &m);
    // By its definition, of row `i` alone with the signs `u`.
    let row_error = |p: &Path, i: usize, u: &[f32]| {
        let w = |j: usize| -> f64 {
            (0..RANK).map(|k| f64::from(u[k] * p.v[j * RANK + k]) * f64::from(p.l[k])).sum::<f64>()
        };
        let e: Vec<f64> = (0..D_IN)
            .map(|j| f64::from(t[i * D_IN + j]) - f64::from(p.h[i]) * w(j) * f64::from(p.g[j]))
            .collect();
        let quadratic = |a: usize| (0..D_IN).map(|b| f64::from(m[a * D_IN + b]) * e[b]).sum::<f64>() * e[a];
        (0..D_IN).map(quadratic).sum::<f64>()
    };
    let pattern =
        |bits: usize| (0..RANK).map(|k| if bits >> k & 1 == 1 { 1.0f32 } else { -1.0 }).collect::<Vec<_>>();
    let best: Vec<f64> = (0..D_OUT)
        .map(|i| (0..1 << RANK).map(|bits| row_error(&p, i, &pattern(bits))).fold(f64::INFINITY, f64::min))
        .collect();
    let mut found = vec![f64::INFINITY; D_OUT];
    let (mut before, mut after) = (0.0, 0.0);
    for start in [0b000000, 0b010101, 0b111000] {
        p.u = pattern(start).repeat(D_OUT).into();
        let excess = |p: &Path| -> Vec<f64> {
            (0..D_OUT).map(|i| row_error(p, i, &p.u[i * RANK..(i + 1) * RANK]) / best[i] - 1.0).collect()
        };
        before += excess(&p).iter().sum::<f64>();
        for _ in 0..20 {
            certain(signs::descend_u(&Host, &q, &mut p));
        }
        let ended = excess(&p);
        after += ended.iter().sum::<f64>();
        for (found, e) in found.iter_mut().zip(ended) {
            assert!(e > -1e-6, "better than the best: {e}");
            *found = found.min(e);
        }
    }
    // Every row of every start is a sample.
    let [before, after] = [before, after].map(|sum| sum / (3 * D_OUT) as f64);
    assert!(before > 0.1, "the starts are as good as the best: {before}");
    assert!(after < 0.01, "mean excess {after} after {before}");
    assert!(found.iter().all(|e| *e < 1e-4), "of three starts none finds the best: {found:?}");
}

#[test]
fn polish_improves_a_stored_path() {
    let (t, m, p) = setup();
    let small: Vec<half::f16> = vec![half::f16::from_f32(0.4); D_IN];
    let stored = FactorPath {
        u: SignMatrix::from_row_major(D_OUT, RANK, &p.u),
        vt: SignMatrix::from_fn(RANK, D_IN, |k, j| p.v[j * RANK + k] > 0.0),
        h: small[..D_OUT].to_vec(),
        l: small[..RANK].to_vec(),
        g: small.clone(),
    };
    let error_of = |f: &FactorPath| {
        let mut e: Vec<f32> = t.iter().map(|x| -x).collect();
        f.add_dense(&mut e);
        let mut eh = vec![0f32; e.len()];
        times(&mut eh, &e, &m, D_IN, D_IN, false);
        e.iter().zip(&eh).map(|(a, b)| f64::from(a * b)).sum::<f64>()
    };
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| polish(&Device::cpu(), "w", &t, &stored, &m, 8).unwrap())
    };
    let better = on(1);
    assert!(error_of(&better) < 0.8 * error_of(&stored), "{} after {}", error_of(&better), error_of(&stored));
    assert_eq!(better, on(3), "threads change the result");
}

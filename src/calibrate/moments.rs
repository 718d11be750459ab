//! Second moments of the inputs of a linear layer, in the source model and in the compressed one.

use crate::decoder::device::outer_sums;
use crate::decoder::{Place, add_gram, add_outer, token_weights, weighed};
use crate::error::{Error, Result};
use faer::linalg::solvers::{Llt, Solve};
use faer::{Mat, Side};
use half::bf16;
use rayon::prelude::*;

/// Windows that are prepared together.
const AT_ONCE: usize = 16;

/// One window as the layers at a site see it.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// In the source, `tokens x d`.
    pub source: &'a [bf16],
    /// In the compressed model.
    pub compressed: &'a [f32],
    /// Residual stream that the layers' output is added to, `tokens x d_out`, in both; `None` if something else is
    /// done with the output first.
    pub residual: Option<(&'a [bf16], &'a [f32])>,
    /// Weight of the window.
    pub weight: f32,
}

/// `E[xq xq^T]` of the compressed stream and `E[xf xq^T]` across both, row-major `d x d`, and `E[(rf - rq) xq^T]` with the
/// residual streams beside them (`d_out x d`).
#[derive(Debug)]
pub struct Moments {
    d: usize,
    tokens: f64,
    compressed: Vec<f32>,
    cross: Vec<f32>,
    /// Empty if no window has a residual stream.
    residual: Vec<f32>,
    place: Place,
    /// Of the first layer that reads the inputs, for messages.
    name: String,
}

/// A window as it goes into the sums: source's and compressed inputs, what the residual stream lacks, tokens.
type Weighed = (Vec<f32>, Vec<f32>, Option<Vec<f32>>, f64);

/// How much of what errors before a layer have done the layer makes up for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shares {
    /// Of what its inputs lack.
    pub inputs: f64,
    /// Of what the residual stream beside it lacks.
    pub residual: f64,
    /// Ridge, relative to the mean second moment.
    pub damp: f64,
}

impl Default for Shares {
    /// Not all, which would follow the calibration text too closely.
    fn default() -> Self {
        Self { inputs: 0.75, residual: 0.75, damp: 0.05 }
    }
}

impl Moments {
    /// Nothing seen yet of inputs of width `d`.
    pub fn new(d: usize) -> Self {
        let (compressed, cross) = (vec![0.0; d * d], vec![0.0; d * d]);
        let (place, name) = (Place::default(), String::new());
        Self { d, tokens: 0.0, compressed, cross, residual: Vec::new(), place, name }
    }

    /// The same, summed up where the place says; `name` is for messages.
    #[must_use]
    pub fn on(self, place: &Place, name: &str) -> Self {
        Self { place: place.clone(), name: name.to_owned(), ..self }
    }

    /// Adds windows. A token counts with weight `min(1, median / norm)` of its source norm besides the window's, so that a
    /// few massive tokens do not rule.
    pub fn add(&mut self, windows: &[Inputs]) {
        if self.add_on_device(windows).is_some() {
            return;
        }
        let d = self.d;
        let ones = vec![1f32; d];
        for windows in windows.chunks(AT_ONCE) {
            let weighed: Vec<_> = windows.par_iter().map(|w| weigh(w, d)).collect();
            for (f, q, lack, tokens) in weighed {
                // Rounding to bfloat16 is far below what another text would change; both factors of the first product
                // are the same numbers, so it stays positive semidefinite.
                add_gram(&mut self.compressed, &q, &ones);
                add_outer(&mut self.cross, [&f, &q], [&ones, &ones]);
                if let Some(lack) = lack {
                    let d_out = lack.len() / (q.len() / d);
                    self.residual.resize(d_out * d, 0.0);
                    add_outer(&mut self.residual, [&lack, &q], [&vec![1.0; d_out], &ones]);
                }
                self.tokens += tokens;
            }
        }
    }

    /// `None`, and nothing is added, if the CPU has to do it.
    fn add_on_device(&mut self, windows: &[Inputs]) -> Option<()> {
        let d = self.d;
        let lacks = |w: &Inputs| w.residual.map(|r| r.1.len() / (w.compressed.len() / d));
        let mut widths = vec![d, d];
        widths.extend(lacks(windows.first()?));
        // One that lacks nothing beside one that does would have a sum of another shape.
        if windows.iter().any(|w| lacks(w) != widths.get(2).copied()) {
            return None;
        }
        let (mut tokens, mut chunks, mut ready) = (0.0, windows.chunks(AT_ONCE), Vec::new().into_iter());
        let next = || {
            if ready.len() == 0 {
                let chunk: Vec<Weighed> = chunks.next()?.par_iter().map(|w| weigh(w, d)).collect();
                ready = chunk.into_iter();
            }
            let (f, q, lack, n) = ready.next()?;
            tokens += n;
            Some([q, f].into_iter().chain(lack).collect())
        };
        let found = outer_sums(&self.place, &self.name, &widths, next)?;
        if let Some(residual) = found.get(2) {
            self.residual.resize(residual.len(), 0.0);
        }
        for (to, from) in [&mut self.compressed, &mut self.cross, &mut self.residual].into_iter().zip(found) {
            to.iter_mut().zip(from).for_each(|(a, b)| *a += b);
        }
        self.tokens += tokens;
        Some(())
    }

    /// Mean square of each input of the compressed stream.
    pub fn importance(&self) -> Vec<f32> {
        (0..self.d).map(|i| self.compressed[i * self.d + i] / self.tokens.max(1.0) as f32).collect()
    }

    /// Element of the sums of `xq xq^T`, of which only the lower half is kept.
    fn sum(&self, i: usize, j: usize) -> f32 {
        self.compressed[i.max(j) * self.d + i.min(j)]
    }

    /// `E[xq xq^T]`, row-major.
    pub fn compressed(&self) -> Vec<f32> {
        let n = self.tokens.max(1.0) as f32;
        let mut all = vec![0f32; self.d * self.d];
        all.par_chunks_mut(self.d).enumerate().for_each(|(i, row)| {
            row.iter_mut().enumerate().for_each(|(j, x)| *x = self.sum(i, j) / n);
        });
        all
    }

    /// What the targets of the layers that read these inputs share. `None` if all of them are zero.
    ///
    /// # Errors
    /// [`Error::Numeric`], for `name`, if the moments are not finite.
    pub fn correction(&self, name: &str, shares: Shares) -> Result<Option<Correction>> {
        let d = self.d;
        let n = self.tokens.max(1.0);
        let own = |i: usize, j: usize| f64::from(self.sum(i, j)) / n;
        let cross = |i: usize, j: usize| f64::from(self.cross[i * d + j]) / n;
        let mean = (0..d).map(|i| own(i, i)).sum::<f64>() / d as f64;
        if mean == 0.0 {
            return Ok(None);
        }
        let h = Mat::from_fn(d, d, |i, j| own(i, j) + if i == j { shares.damp * mean } else { 0.0 });
        let difference = Mat::from_fn(d, d, |i, j| shares.inputs * (cross(i, j) - own(i, j)));
        let rows = self.residual.len() / d;
        let part = shares.residual / n;
        let residual = Mat::from_fn(rows, d, |i, j| part * f64::from(self.residual[i * d + j]));
        let factor = h.llt(Side::Lower).map_err(|_| not_finite(name))?;
        Ok(Some(Correction { difference, residual, factor }))
    }
}

/// A window's rows times the weights of its tokens.
fn weigh(w: &Inputs, d: usize) -> Weighed {
    let source: Vec<f32> = w.source.iter().map(|x| x.to_f32()).collect();
    let mut weights = token_weights(&source, d);
    weights.iter_mut().for_each(|x| *x *= w.weight.sqrt());
    let lack = w.residual.map(|(f, q)| {
        let f: Vec<f32> = f.iter().map(|x| x.to_f32()).collect();
        let lack: Vec<f32> = f.iter().zip(q).map(|(f, q)| f - q).collect();
        // Norms have made the inputs alike, so those of a token with a massive residual stream look like
        // any other's: what it lacks, a hundred times more than the others, must be held off here.
        let massive = token_weights(&f, f.len() / weights.len());
        let weights: Vec<f32> = weights.iter().zip(massive).map(|(w, m)| w * m * m).collect();
        weighed(&lack, &weights)
    });
    let tokens = weights.len() as f64 * f64::from(w.weight);
    (weighed(&source, &weights), weighed(w.compressed, &weights), lack, tokens)
}

fn not_finite(name: &str) -> Error {
    Error::Numeric { matrix: name.to_owned(), what: "its inputs' moments are not finite".into() }
}

/// The drift of a compressed stream that the weights which read it can make up for.
#[derive(Debug)]
pub struct Correction {
    /// `alpha (C - H)`.
    difference: Mat<f64>,
    /// `beta E[(rf - rq) xq^T]`, no rows if nothing is added to a residual stream.
    residual: Mat<f64>,
    /// Of `H + damp mean(diag H) I`.
    factor: Llt<f64>,
}

impl Correction {
    /// The asymmetric target `T = W + (alpha W (C - H) + beta E[(rf - rq) xq^T] / scale) (H + damp mean(diag H) I)^-1` for
    /// a weight `w` (row-major `d_out x d`) whose product is multiplied by `scale`: what W would have to be on the compressed
    /// stream to give what it gives on the source's, and what is missing beside it. It is the error feedback of GPTQ put
    /// before a factorization, taken to the sum that the layer's output becomes part of.
    ///
    /// # Errors
    /// [`Error::Numeric`], for `name`, if it is not finite.
    pub fn target(&self, name: &str, w: &[f32], scale: f32) -> Result<Vec<f32>> {
        let d = self.difference.nrows();
        let rows = w.len() / d;
        let weight = Mat::from_fn(rows, d, |i, j| f64::from(w[i * d + j]));
        let mut moved = &weight * &self.difference;
        if self.residual.nrows() > 0 {
            moved += &self.residual * faer::Scale(1.0 / f64::from(scale));
        }
        let solved = self.factor.solve(moved.transpose());
        let target: Vec<f32> = (0..rows)
            .flat_map(|i| (0..d).map(move |j| (i, j)))
            .map(|(i, j)| (weight[(i, j)] + solved[(j, i)]) as f32)
            .collect();
        if target.iter().any(|x| !x.is_finite()) {
            return Err(not_finite(name));
        }
        Ok(target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows that span the space, and the same through an invertible map.
    fn streams(d: usize, map: impl Fn(&[f32]) -> Vec<f32>) -> (Vec<bf16>, Vec<f32>) {
        let rows: Vec<Vec<f32>> =
            (0..40).map(|t| (0..d).map(|i| ((t * 7 + i * i * 3) % 11) as f32 - 5.0).collect()).collect();
        (rows.concat().into_iter().map(bf16::from_f32).collect(), rows.iter().flat_map(|r| map(r)).collect())
    }

    fn window<'a>(source: &'a [bf16], compressed: &'a [f32], weight: f32) -> Inputs<'a> {
        Inputs { source, compressed, residual: None, weight }
    }

    fn shares(damp: f64) -> Shares {
        Shares { inputs: 1.0, residual: 1.0, damp }
    }

    #[test]
    fn the_target_fills_in_what_the_residual_lacks() {
        // The residual lacks a linear function of the inputs, two outputs wide.
        let (f, q) = streams(4, <[f32]>::to_vec);
        let map = [[1.0f32, 0.0, -2.0, 0.5], [0.0, 3.0, 0.0, -1.0]];
        let lack = |x: &[f32]| map.map(|m| m.iter().zip(x).map(|(m, x)| m * x).sum::<f32>());
        let rq: Vec<f32> = q.chunks_exact(4).flat_map(lack).map(|x| 64.0 - x).collect();
        let rf = vec![bf16::from_f32(64.0); rq.len()];
        let mut m = Moments::new(4);
        m.add(&[Inputs { residual: Some((&rf, &rq)), ..window(&f, &q, 1.0) }]);
        let w = [0.5f32, 1.0, -1.0, 2.0, 0.0, 0.25, 0.5, 1.0];
        let correction = m.correction("w", Shares { residual: 0.5, ..shares(1e-9) }).unwrap().unwrap();
        let target = correction.target("w", &w, 2.0).unwrap();
        for ((t, w), m) in target.iter().zip(w).zip(map.concat()) {
            assert!((t - w - 0.5 * m / 2.0).abs() < 2e-2, "{t} from {w} and {m}");
        }
    }

    #[test]
    fn a_massive_residual_stream_does_not_rule_the_target() {
        // Every token but one lacks nothing; that one's residual stream, a thousand times as long, lacks a tenth of itself.
        let (f, q) = streams(4, <[f32]>::to_vec);
        let mut rf = vec![bf16::from_f32(1.0); 2 * f.len() / 4];
        let mut rq = vec![1f32; rf.len()];
        rf[..2].fill(bf16::from_f32(1000.0));
        rq[..2].fill(900.0);
        let mut m = Moments::new(4);
        m.add(&[Inputs { residual: Some((&rf, &rq)), ..window(&f, &q, 1.0) }]);
        let w = [0.5f32, 1.0, -1.0, 2.0, 0.0, 0.25, 0.5, 1.0];
        let target = m.correction("w", shares(1e-9)).unwrap().unwrap().target("w", &w, 1.0).unwrap();
        assert!(target.iter().zip(w).all(|(t, w)| (t - w).abs() < 1e-2), "{target:?}");
    }

    #[test]
    fn equal_streams_leave_the_weight() {
        let (f, q) = streams(4, <[f32]>::to_vec);
        let mut m = Moments::new(4);
        m.add(&[window(&f, &q, 1.0)]);
        let w: Vec<f32> = (0..12).map(|i| i as f32 * 0.3 - 1.0).collect();
        let t = m.correction("w", shares(0.01)).unwrap().unwrap().target("w", &w, 1.0).unwrap();
        assert!(t.iter().zip(&w).all(|(a, b)| (a - b).abs() < 1e-5));
    }

    #[test]
    fn weights_are_as_good_as_repetition() {
        let (f, q) = streams(4, |r| r.iter().enumerate().map(|(i, x)| x * (0.5 + i as f32)).collect());
        let (f2, q2) = streams(4, |r| r.iter().map(|x| 3.0 * x).collect());
        let mut weighed = Moments::new(4);
        weighed.add(&[window(&f, &q, 1.5), window(&f2, &q2, 0.5)]);
        let mut repeated = Moments::new(4);
        let [a, b] = [window(&f, &q, 1.0), window(&f2, &q2, 1.0)];
        repeated.add(&[a, a, a, b]);
        let (a, b) = (weighed.compressed(), repeated.compressed());
        let largest = b.iter().fold(0f32, |m, x| m.max(x.abs()));
        for (a, b) in a.iter().zip(&b) {
            assert!((a - b).abs() < 1e-2 * largest, "{a} {b} of {largest}");
        }
    }

    #[test]
    fn a_scaled_stream_is_undone() {
        let (f, q) = streams(4, |r| r.iter().enumerate().map(|(i, x)| x * (0.5 + i as f32)).collect());
        let mut m = Moments::new(4);
        m.add(&[window(&f, &q, 1.0)]);
        let w: Vec<f32> = (0..8).map(|i| i as f32 * 0.3 - 1.0).collect();
        let t = m.correction("w", shares(1e-9)).unwrap().unwrap().target("w", &w, 1.0).unwrap();
        for (k, (t, w)) in t.iter().zip(&w).enumerate() {
            let scale = 0.5 + (k % 4) as f32;
            assert!((t * scale - w).abs() < 2e-2, "{t} {w}");
        }
    }
}

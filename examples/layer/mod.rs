//! A layer of random weights at 1.0 bit per weight, to time its compression: for the bench `factorize` and the example `compress_layer`.
//! Times hardly depend on the values, but the number of turned signs does.

use littlebit::factorize::{Job, Method};
use littlebit::plan::{MatrixSpec, Target, plan};

/// `n` numbers in [-1, 1).
pub fn uniform(n: usize, mut x: u64) -> Vec<f32> {
    let mut next = || {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (x >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// A weight `d_out x d_in` and what is known of its inputs.
pub struct Layer {
    pub rank: usize,
    pub w: Vec<f32>,
    /// Second moments of correlated inputs of different size, `d_in x d_in`.
    pub metric: Vec<f32>,
    shape: [usize; 2],
}

impl Layer {
    pub fn new([d_out, d_in]: [usize; 2], seed: u64) -> littlebit::Result<Self> {
        let spec = MatrixSpec { name: String::new(), d_out, d_in, experts: 1, fixed: None, spectrum: None };
        let rank = plan(&[spec], Target::Bpw(1.0), 1, Method::Admm)?.entries[0].rank;
        let size = uniform(d_in, 77);
        let mut metric: Vec<f32> = size.iter().flat_map(|a| size.iter().map(move |b| 0.4 * a * b)).collect();
        (0..d_in).for_each(|j| metric[j * d_in + j] += 0.5 + size[j].abs());
        Ok(Self { rank, w: uniform(d_out * d_in, seed), metric, shape: [d_out, d_in] })
    }

    /// LB-ADMM with one path.
    pub fn job<'a>(&'a self, name: &'a str, iterations: usize) -> Job<'a> {
        let [d_out, d_in] = self.shape;
        Job {
            name,
            w: &self.w,
            d_out,
            d_in,
            rank: self.rank,
            paths: 1,
            method: Method::Admm,
            rotate: None,
            importance: None,
            seed: 0,
            iterations: Some(iterations),
        }
    }

    /// Operations of an iteration of LB-ADMM, 2 for each multiply-add: Gram matrix, product, decomposition and solution for both
    /// factors.
    pub fn operations(&self) -> f64 {
        let [m, n, r] = [self.shape[0], self.shape[1], self.rank].map(|x| x as f64);
        r * r * (m + n) + 4.0 * r * m * n + 2.0 / 3.0 * r.powi(3) + 2.0 * r * r * (m + n)
    }
}

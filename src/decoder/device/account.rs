//! Memory of the device that products take, known beforehand.

use crate::decoder::linear::{Binary, Linear, LinearGrad, Weight};

fn bytes(numbers: usize) -> u64 {
    4 * numbers as u64
}

/// Signs as numbers and as bits, padded, and scales of a path.
fn path([m, r, n]: [usize; 3]) -> usize {
    let words = |rows: usize, cols: usize| rows.next_multiple_of(32) * cols.next_multiple_of(16) / 32;
    m * r + r * n + words(m, r) + words(r, n) + m + r + n
}

/// What the layers of the site take beside its inputs and outputs: all dense weights that are not there yet, as they may stay, and
/// the most that one layer takes for itself. `dense` and `factors` are for its products.
fn layers(
    site: &[Linear],
    dense: impl Fn(usize, usize) -> usize,
    factors: impl Fn([usize; 3]) -> usize,
) -> usize {
    let new = |l: &Linear| match &l.weight {
        Weight::Dense(w) if w.kept().get().is_none() => w.len(),
        _ => 0,
    };
    let own = |l: &Linear| match &l.weight {
        Weight::Dense(_) => dense(l.d_out, l.d_in),
        Weight::Coarse(_) => l.d_out * l.d_in,
        Weight::Binary(paths) => {
            let shape = |p: &Binary| [p.h.len(), p.l.len(), p.g.len()];
            paths.iter().map(|p| path(shape(p)) + factors(shape(p))).max().unwrap_or(0)
        }
    };
    site.iter().map(new).sum::<usize>() + site.iter().map(own).max().unwrap_or(0)
}

fn width(site: &[Linear]) -> usize {
    site.iter().map(|l| l.d_out).sum()
}

/// Bytes of the forward pass of a site over so many tokens.
pub fn forward(site: &[Linear], tokens: usize) -> u64 {
    let d_in = site[0].d_in;
    let streams = tokens * (d_in + width(site));
    bytes(streams + layers(site, |_, _| 0, |[m, r, n]| tokens * (n + 2 * r + m)))
}

/// Bytes of the backward pass with what the gradients ask for.
pub fn backward(site: &[Linear], tokens: usize, grads: &[Option<LinearGrad>]) -> u64 {
    let d_in = site[0].d_in;
    let any = |of: fn(&LinearGrad) -> bool| grads.iter().flatten().any(of);
    let fisher = any(|g| matches!(g, LinearGrad::Fisher(_)));
    let weights = any(|g| matches!(g, LinearGrad::Dense(_)));
    let signs = any(|g| matches!(g, LinearGrad::Factors(f) if f.iter().any(|f| f.signs.is_some())));
    let streams = tokens * (2 * d_in + width(site) + if fisher { d_in } else { 0 });
    let dense = |m: usize, n: usize| {
        let d = m.min(n);
        let gradient = if weights { m * n } else { 0 };
        gradient.max(if fisher { tokens * m + d * d } else { 0 })
    };
    let factors = |[m, r, n]: [usize; 3]| {
        tokens * (3 * m + 4 * r + 2 * n) + m + r + n + if signs { m * r + r * n } else { 0 }
    };
    bytes(streams + layers(site, dense, factors))
}

/// Bytes of one product of so many rows with a weight `n x k`, which may be there already.
pub fn product([n, k]: [usize; 2], rows: usize) -> u64 {
    bytes(n * k + rows * (n + k))
}

/// Bytes of the sums of outer products.
pub fn sums(widths: &[usize]) -> u64 {
    bytes(widths.iter().map(|width| width * widths[0]).sum())
}

/// Bytes of a window of them.
pub fn window(widths: &[usize], rows: usize) -> u64 {
    bytes(rows * widths.iter().sum::<usize>())
}

//! Memory of the device that products take, known beforehand. Dense weights may lie there already; they are counted all the same.

use crate::decoder::linear::{Linear, LinearGrad, Weight};

fn bytes(numbers: usize) -> u64 {
    4 * numbers as u64
}

/// Signs as numbers and as bits, padded, and scales of a path.
fn path([m, r, n]: [usize; 3]) -> usize {
    let words = |rows: usize, cols: usize| rows.next_multiple_of(32) * cols.next_multiple_of(16) / 32;
    m * r + r * n + words(m, r) + words(r, n) + m + r + n
}

/// The most that a layer of the site takes for itself.
fn largest(
    site: &[Linear],
    dense: impl Fn(usize, usize) -> usize,
    rest: impl Fn([usize; 3]) -> usize,
) -> usize {
    let of = |l: &Linear| match &l.weight {
        Weight::Dense(_) | Weight::Coarse(_) => dense(l.d_out, l.d_in),
        Weight::Binary(paths) => {
            let shape = |p: &crate::decoder::Binary| [p.h.len(), p.l.len(), p.g.len()];
            paths.iter().map(|p| path(shape(p)) + rest(shape(p))).max().unwrap_or(0)
        }
    };
    site.iter().map(of).max().unwrap_or(0)
}

fn width(site: &[Linear]) -> usize {
    site.iter().map(|l| l.d_out).sum()
}

/// Bytes of the forward pass of a site over so many tokens.
pub fn forward(site: &[Linear], tokens: usize) -> u64 {
    let d_in = site[0].d_in;
    let streams = tokens * (d_in + width(site));
    bytes(streams + largest(site, |m, n| m * n, |[m, r, n]| tokens * (n + 2 * r + m)))
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
        m * n + gradient.max(if fisher { tokens * m + d * d } else { 0 })
    };
    let factors = |[m, r, n]: [usize; 3]| {
        tokens * (3 * m + 4 * r + 2 * n) + m + r + n + if signs { m * r + r * n } else { 0 }
    };
    bytes(streams + largest(site, dense, factors))
}

/// Bytes of one product of so many rows with a weight `n x k`.
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

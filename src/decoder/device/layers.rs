//! Both passes of the layers of a site on the device. Row-major matrices are their own transposes for cuBLAS.

use super::Side;
use super::operand::{dense, signs};
use crate::cuda::compute::{Args, Buffer, Kept, Kernel, Matrix, Op, Session, THREADS};
use crate::decoder::fisher::Fisher;
use crate::decoder::linear::{Binary, FactorGrad, Linear, LinearGrad, Weight};
use crate::factorize::algebra::Computed;

/// Whether a device has what the layer needs.
pub fn runs(l: &Linear) -> bool {
    match &l.weight {
        Weight::Dense(_) | Weight::Binary(_) => true,
        Weight::Coarse(c) => c.rounded().is_some(),
    }
}

/// The transpose of a row-major matrix with rows of length n.
fn turned(x: &Buffer, n: usize) -> Matrix<'_> {
    Matrix::whole(x, n, x.len() / n)
}

/// `a (m x k) b^T` into `out`, row-major; b is `n x k`.
fn times_transposed(s: &Session, out: Matrix, a: &Buffer, b: &Buffer, k: usize) -> Computed<()> {
    s.gemm(out, 1.0, (turned(b, k), Op::Transposed), (turned(a, k), Op::Plain), 0.0)
}

/// `a (m x k) b`, b `k x n`.
fn times(s: &Session, a: &Buffer, b: &Buffer, n: usize) -> Computed<Kept> {
    let k = b.len() / n;
    let out = s.reuse(a.len() / k * n)?;
    s.gemm(turned(&out, n), 1.0, (turned(b, n), Op::Plain), (turned(a, k), Op::Plain), 0.0)?;
    Ok(out)
}

/// `a^T b`, a `k x m`, b `k x n`.
fn transposed_times(s: &Session, a: &Buffer, b: &Buffer, [m, n]: [usize; 2]) -> Computed<Kept> {
    let out = s.reuse(m * n)?;
    s.gemm(turned(&out, n), 1.0, (turned(b, n), Op::Plain), (turned(a, m), Op::Transposed), 0.0)?;
    Ok(out)
}

/// `x` with its columns times `scale`.
fn scaled(s: &Session, x: &Buffer, scale: &Buffer) -> Computed<Kept> {
    let (n, out) = (scale.len(), s.reuse(x.len())?);
    let args = Args {
        out: out.start(),
        x: x.start(),
        b: scale.start(),
        r: n as u32,
        n: (x.len() / n) as u32,
        ..Args::default()
    };
    // SAFETY: two matrices of one shape, a scale for each column.
    unsafe { s.launch_on_matrix(Kernel::Scaled, args) }?;
    Ok(out)
}

/// `sum_t a[t, j] b[t, j]` for every column of matrices with rows of length n.
fn column_dots(s: &Session, a: &Buffer, b: &Buffer, n: usize) -> Computed<Vec<f32>> {
    assert_eq!(a.len(), b.len());
    let out = s.reuse(n)?;
    let args = Args {
        out: out.start(),
        x: a.start(),
        y: b.start(),
        r: n as u32,
        n: (a.len() / n) as u32,
        ..Args::default()
    };
    // SAFETY: two matrices of one shape, a number for each column.
    unsafe { s.launch(Kernel::ColumnDots, (n.div_ceil(THREADS as usize), 1), args) }?;
    s.download(&out, 0..n)
}

/// Columns of a wider row-major matrix, as cuBLAS sees them.
fn columns(of: &Buffer, at: usize, n: usize, width: usize) -> Matrix<'_> {
    Matrix { values: of, at, rows: n, cols: of.len() / width, stride: width }
}

/// These columns by themselves, times `value`.
fn gather(s: &Session, from: Matrix, value: f32) -> Computed<Kept> {
    let out = s.reuse(from.rows * from.cols)?;
    let args = Args {
        out: out.start(),
        x: from.values.at(from.at),
        r: from.rows as u32,
        n: from.cols as u32,
        stride: from.stride as u32,
        value,
        ..Args::default()
    };
    // SAFETY: columns of a matrix, and one of their shape.
    unsafe { s.launch_on_matrix(Kernel::Gather, args) }?;
    Ok(out)
}

/// `x` with its columns times `scale` into columns of another matrix, added to what is there if `add`.
fn scatter(s: &Session, to: Matrix, x: &Buffer, scale: &Buffer, add: bool) -> Computed<()> {
    assert!(x.len() == to.rows * to.cols && scale.len() == to.rows);
    let args = Args {
        out: to.values.at(to.at),
        x: x.start(),
        b: scale.start(),
        r: to.rows as u32,
        n: to.cols as u32,
        stride: to.stride as u32,
        value: f32::from(u8::from(add)),
        ..Args::default()
    };
    // SAFETY: columns of a matrix, one of their shape, a scale for each.
    unsafe { s.launch_on_matrix(Kernel::Scatter, args) }
}

/// `x W^T` or `x W` for a weight `n x k`.
pub fn product(s: &Session, w: &Buffer, [n, k]: [usize; 2], x: &[f32], side: Side) -> Computed<Vec<f32>> {
    let x = s.send(x)?;
    let out = match side {
        Side::Forward => {
            let out = s.reuse(x.len() / k * n)?;
            times_transposed(s, turned(&out, n), &x, w, k)?;
            out
        }
        Side::Backward => times(s, &x, w, k)?,
    };
    s.download(&out, 0..out.len())
}

/// A path on the device.
struct Path {
    u: Kept,
    vt: Kept,
    h: Kept,
    l: Kept,
    g: Kept,
    rank: usize,
}

impl Path {
    /// `scale` goes into h.
    fn new(s: &Session, p: &Binary, scale: f32) -> Computed<Self> {
        let [u, vt] = p.factors();
        let h: Vec<f32> = p.h.iter().map(|h| h * scale).collect();
        let [h, l, g] = [s.send(&h)?, s.send(&p.l)?, s.send(&p.g)?];
        Ok(Self { u: signs(s, u)?, vt: signs(s, vt)?, h, l, g, rank: p.l.len() })
    }

    /// Inputs times g, latents, and these times l.
    fn latents(&self, s: &Session, x: &Buffer) -> Computed<[Kept; 3]> {
        let xg = scaled(s, x, &self.g)?;
        let (k, r) = (self.g.len(), self.rank);
        let latent = s.reuse(xg.len() / k * r)?;
        times_transposed(s, turned(&latent, r), &xg, &self.vt, k)?;
        let scaled = scaled(s, &latent, &self.l)?;
        Ok([xg, latent, scaled])
    }

    /// Outputs before h.
    fn raw(&self, s: &Session, latent: &Buffer) -> Computed<Kept> {
        let m = self.h.len();
        let raw = s.reuse(latent.len() / self.rank * m)?;
        times_transposed(s, turned(&raw, m), latent, &self.u, self.rank)?;
        Ok(raw)
    }
}

/// Outputs of all layers side by side, without biases.
pub fn forward(s: &Session, site: &[Linear], x: &[f32]) -> Computed<Vec<f32>> {
    let d_in = site[0].d_in;
    let width: usize = site.iter().map(|l| l.d_out).sum();
    let (x, y) = (s.send(x)?, s.reuse(x.len() / d_in * width)?);
    let mut at = 0;
    for l in site {
        let own = columns(&y, at, l.d_out, width);
        let plain = |w: &Buffer| {
            s.gemm(own, l.scale, (turned(w, d_in), Op::Transposed), (turned(&x, d_in), Op::Plain), 0.0)
        };
        match &l.weight {
            Weight::Dense(w) => plain(&*dense(s, w)?)?,
            Weight::Coarse(c) => plain(&*c.rounded().expect("asked before").widened(s)?)?,
            Weight::Binary(paths) => {
                for (i, p) in paths.iter().enumerate() {
                    let p = Path::new(s, p, l.scale)?;
                    let [_, _, latent] = p.latents(s, &x)?;
                    scatter(s, own, &*p.raw(s, &latent)?, &p.h, i > 0)?;
                }
            }
        }
        at += l.d_out;
    }
    s.download(&y, 0..y.len())
}

/// Gradient with respect to `x`, and what is to be added to those of `grads` that are there. Of Fisher sums only the moments; `weighed`
/// are inputs times the weights of their tokens.
pub fn backward(
    s: &Session,
    site: &[Linear],
    [x, dy]: [&[f32]; 2],
    weighed: Option<&[f32]>,
    grads: &[Option<LinearGrad>],
) -> Computed<(Vec<f32>, Vec<Option<LinearGrad>>)> {
    let d_in = site[0].d_in;
    let width: usize = site.iter().map(|l| l.d_out).sum();
    let (x, dy) = (s.send(x)?, s.send(dy)?);
    let dx = s.reuse(x.len())?;
    let weighed = weighed.map(|x| s.send(x)).transpose()?;
    let mut found = Vec::new();
    let (mut at, mut first) = (0, true);
    for (l, grad) in site.iter().zip(grads) {
        let own = columns(&dy, at, l.d_out, width);
        match &l.weight {
            Weight::Dense(w) => {
                let w = dense(s, w)?;
                let beta = if first { 0.0 } else { 1.0 };
                s.gemm(turned(&dx, d_in), l.scale, (turned(&w, d_in), Op::Plain), (own, Op::Plain), beta)?;
                first = false;
                found.push(match grad {
                    Some(LinearGrad::Dense(_)) => {
                        let dw = s.reuse(w.len())?;
                        let x = (turned(&x, d_in), Op::Plain);
                        s.gemm(turned(&dw, d_in), l.scale, x, (own, Op::Transposed), 0.0)?;
                        Some(LinearGrad::Dense(s.download(&dw, 0..dw.len())?))
                    }
                    Some(LinearGrad::Fisher(_)) => {
                        let x = weighed.as_ref().expect("Fisher sums need weighed inputs");
                        let moments = moments(s, x, &w, [l.d_out, d_in])?;
                        Some(LinearGrad::Fisher(Fisher { moments, ..Fisher::default() }))
                    }
                    _ => None,
                });
            }
            Weight::Coarse(_) => unreachable!("coarse weights are for forward passes"),
            Weight::Binary(paths) => {
                let mut all = Vec::new();
                for (i, p) in paths.iter().enumerate() {
                    let wanted = match grad {
                        Some(LinearGrad::Factors(grads)) => Some(grads[i].signs.is_some()),
                        _ => None,
                    };
                    let p = Path::new(s, p, l.scale)?;
                    let (d_input, grad) = path_backward(s, &p, &x, own, l.scale, wanted)?;
                    scatter(s, turned(&dx, d_in), &d_input, &p.g, !first)?;
                    first = false;
                    all.extend(grad);
                }
                found.push((!all.is_empty()).then_some(LinearGrad::Factors(all)));
            }
        }
        at += l.d_out;
    }
    Ok((s.download(&dx, 0..dx.len())?, found))
}

/// Gradient with respect to the inputs times g, and those of the factors: `wanted` says whether of signs, too.
fn path_backward(
    s: &Session,
    p: &Path,
    x: &Buffer,
    dy: Matrix,
    scale: f32,
    wanted: Option<bool>,
) -> Computed<(Kept, Option<FactorGrad>)> {
    let (m, r, n) = (p.h.len(), p.rank, p.g.len());
    let dy = gather(s, dy, 1.0)?;
    let dy_h = scaled(s, &dy, &p.h)?;
    let d_latent = times(s, &dy_h, &p.u, r)?;
    let d_latent_l = scaled(s, &d_latent, &p.l)?;
    let d_input = times(s, &d_latent_l, &p.vt, n)?;
    let Some(signs) = wanted else { return Ok((d_input, None)) };
    let [xg, latent, latent_l] = p.latents(s, x)?;
    let mut dh = column_dots(s, &dy, &*p.raw(s, &latent_l)?, m)?;
    dh.iter_mut().for_each(|d| *d *= scale);
    let scales = [dh, column_dots(s, &d_latent, &latent, r)?, column_dots(s, &d_input, x, n)?];
    let signs = if signs {
        let u = transposed_times(s, &dy_h, &latent_l, [m, r])?;
        let u = s.download(&u, 0..u.len())?;
        let vt = transposed_times(s, &d_latent_l, &xg, [r, n])?;
        Some([u, s.download(&vt, 0..vt.len())?])
    } else {
        None
    };
    Ok((d_input, Some(FactorGrad { scales, signs })))
}

/// `sum y y^T` of outputs y if there are no more of them than inputs, else `sum x x^T`.
fn moments(s: &Session, x: &Buffer, w: &Buffer, [d_out, d_in]: [usize; 2]) -> Computed<Vec<f32>> {
    let sums = if d_out <= d_in {
        let y = s.reuse(x.len() / d_in * d_out)?;
        times_transposed(s, turned(&y, d_out), x, w, d_in)?;
        transposed_times(s, &y, &y, [d_out, d_out])?
    } else {
        transposed_times(s, x, x, [d_in, d_in])?
    };
    s.download(&sums, 0..sums.len())
}

//! Weights in the memory of the device.

use super::Place;
use crate::cuda::compute::{Args, Buffer, Kept, Kernel, Session};
use crate::decoder::dense::Dense;
use crate::decoder::signs::{Layout, Signs};
use crate::factorize::Device;
use crate::factorize::algebra::Computed;
use crate::factorize::device::has_room;
use half::bf16;
use rayon::prelude::*;
use std::ops::Deref;
use std::sync::Arc;

/// Words that are copied to the device at once.
const PIECE: usize = 1 << 22;

/// A weight for one product.
pub enum Held<'a> {
    /// That stays there.
    Kept(&'a Kept),
    /// That came for this product.
    Lent(Kept),
}

impl Deref for Held<'_> {
    type Target = Buffer;
    fn deref(&self) -> &Buffer {
        match self {
            Held::Kept(kept) => kept,
            Held::Lent(lent) => lent,
        }
    }
}

/// A dense weight, which stays if there is room.
pub fn dense<'a>(session: &Session, w: &'a Dense) -> Computed<Held<'a>> {
    if let Some(kept) = w.kept().get() {
        return Ok(Held::Kept(kept));
    }
    let stays = has_room(session, w.len())?;
    let lent = session.send(w)?;
    if !stays {
        return Ok(Held::Lent(lent));
    }
    // Sessions take turns, so nobody else has set it.
    Ok(Held::Kept(w.kept().get_or_init(|| lent)))
}

/// Signs as 1 and -1, row-major.
pub fn signs(session: &Session, s: &Signs) -> Computed<Kept> {
    let ([n, k], layout, words) = s.words();
    let (words, out) = (session.send(words)?, session.reuse(n * k)?);
    let kernel = match layout {
        Layout::Pairs => Kernel::SignPairs,
        Layout::Tile => Kernel::SignTile,
    };
    let args = Args { out: out.start(), count: words.start(), r: k as u32, n: n as u32, ..Args::default() };
    // SAFETY: bits of n x k signs in the layout of the kernel, and memory for as many numbers.
    unsafe { session.launch_on_matrix(kernel, args) }?;
    Ok(out)
}

/// Numbers in bfloat16, row-major, two a word, as f32.
pub fn widened(session: &Session, words: &Buffer, [n, k]: [usize; 2]) -> Computed<Kept> {
    assert!(2 * words.len() >= n * k);
    let out = session.reuse(n * k)?;
    let args = Args { out: out.start(), count: words.start(), r: k as u32, n: n as u32, ..Args::default() };
    // SAFETY: n k numbers of two bytes, and memory for as many of four.
    unsafe { session.launch_on_matrix(Kernel::Widen, args) }?;
    Ok(out)
}

/// A matrix in bfloat16 that stays on a device.
#[derive(Debug)]
pub struct Rounded {
    pub device: Arc<Device>,
    pub name: String,
    shape: [usize; 2],
    words: Kept,
}

impl Rounded {
    /// The `n x k` matrix whose element (`row`, `column`) is `f(row, column)`. `None` if it is no device's, or there is no
    /// room.
    pub fn new(
        place: &Place,
        name: &str,
        [n, k]: [usize; 2],
        f: impl Fn(usize, usize) -> f32 + Sync,
    ) -> Option<Self> {
        let device = place.device()?.clone();
        let all = (n * k).div_ceil(2);
        let mut words = device.keep(name, all)?;
        let value = |at: usize| if at < n * k { f(at / k, at % k) } else { 0.0 };
        let short = |at: usize| u32::from(bf16::from_f32(value(at)).to_bits());
        for from in (0..all).step_by(PIECE) {
            let piece = (from..(from + PIECE).min(all)).into_par_iter();
            let piece: Vec<u32> = piece.map(|w| short(2 * w) | short(2 * w + 1) << 16).collect();
            device.assist(name, 0, |session| session.write(&mut words, from, &piece))?;
        }
        Some(Self { device, name: name.to_owned(), shape: [n, k], words })
    }

    /// In f32, row-major.
    pub fn widened(&self, session: &Session) -> Computed<Kept> {
        widened(session, &self.words, self.shape)
    }

    /// `x B^T` for rows of `x`. `None` if the CPU has to compute it.
    pub fn product(&self, x: &[f32]) -> Option<Vec<f32>> {
        let bytes = super::account::product(self.shape, x.len() / self.shape[1]);
        self.device.assist(&self.name, bytes, |session| {
            super::layers::product(session, &*self.widened(session)?, self.shape, x, super::Side::Forward)
        })
    }
}

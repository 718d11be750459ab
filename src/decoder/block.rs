//! One decoder block, forward with a tape and backward.

use super::attention;
use super::cache::Cache;
use super::config::{Activation, Config};
use super::device;
use super::exponential::sigmoid;
use super::linear::{Linear, LinearGrad, LinearTape, Trained};
use super::norm;
use super::rope::Rotation;
use super::signs::Precision;
use rayon::prelude::*;

/// Where in a block a group of linear layers reads its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Site {
    /// q, k, v.
    Attention,
    /// Attention output.
    Output,
    /// Gate and up.
    Feed,
    /// Down.
    Down,
}

impl Site {
    /// All sites in the order of the graph.
    pub const ALL: [Site; 4] = [Site::Attention, Site::Output, Site::Feed, Site::Down];
}

/// Weights of a block. The linear layers of a site read the same input and their outputs stand side by side.
#[derive(Clone, Debug)]
pub struct Block {
    /// Layers by [`Site`]: `q k v` (or one joined), output, `gate up` (or one joined), down.
    pub linears: [Vec<Linear>; 4],
    /// RMS norms before attention and before the feed-forward part.
    pub norms: [Vec<f32>; 2],
    /// RMS norms after them (gemma3).
    pub post_norms: [Option<Vec<f32>>; 2],
    /// RMS norms of query and key heads (qwen3, gemma3).
    pub head_norms: [Option<Vec<f32>>; 2],
    /// Sliding window.
    pub window: Option<usize>,
}

/// Gradients of a block; norms as in [`Block::norm_list`].
#[derive(Clone, Debug)]
pub struct BlockGrad {
    /// As [`Block::linears`]; `None` for a frozen layer.
    pub linears: [Vec<Option<LinearGrad>>; 4],
    /// One for each norm the block has.
    pub norms: Vec<Vec<f32>>,
}

impl BlockGrad {
    /// Adds the gradients of the same parameters.
    pub fn add(&mut self, other: &BlockGrad) {
        for (to, from) in self.norms.iter_mut().zip(&other.norms) {
            to.iter_mut().zip(from).for_each(|(a, b)| *a += b);
        }
        for (to, from) in self.linears.iter_mut().flatten().zip(other.linears.iter().flatten()) {
            match (to, from) {
                (Some(to), Some(from)) => to.add(from),
                (None, None) => {}
                _ => unreachable!("gradients of different parameters"),
            }
        }
    }
}

/// What the backward pass needs of the forward pass.
#[derive(Debug, Default)]
pub struct BlockTape {
    x: Vec<f32>,
    /// Inputs of the linear layers by site.
    inputs: [Vec<f32>; 4],
    tapes: [Vec<LinearTape>; 4],
    /// q, k, v before head norms (empty if there are none), and after rotation.
    raw_joined: Vec<f32>,
    joined: Vec<f32>,
    /// Outputs of attention and feed-forward part before post norms (empty if there are none).
    raw_outputs: [Vec<f32>; 2],
    middle: Vec<f32>,
    gate_up: Vec<f32>,
}

impl BlockTape {
    /// Inputs of the linear layers by site, and the residual stream before attention and before the feed-forward part;
    /// the rest is dropped.
    pub fn into_streams(self) -> ([Vec<f32>; 4], [Vec<f32>; 2]) {
        (self.inputs, [self.x, self.middle])
    }

    /// Residual stream that the outputs of the layers at `site` are added to, if they are.
    pub fn residual(&self, site: Site) -> Option<&[f32]> {
        match site {
            Site::Output => Some(&self.x),
            Site::Down => Some(&self.middle),
            Site::Attention | Site::Feed => None,
        }
    }

    /// Drops what only the backward pass needs, and the inputs of the sites before `site`.
    pub fn shed(&mut self, site: Site) {
        self.tapes = Default::default();
        self.raw_outputs = Default::default();
        (self.raw_joined, self.joined, self.gate_up) = Default::default();
        self.inputs[..site as usize].iter_mut().for_each(|x| *x = Vec::new());
    }

    /// Input of the linear layers at `site`, `tokens x d_in`.
    pub fn input(&self, site: Site) -> &[f32] {
        &self.inputs[site as usize]
    }
}

/// Outputs of the layers of a site, which read `x`, side by side (`tokens x` the sum of their widths), and the tapes that
/// [`site_backward`] takes.
pub fn site_forward(linears: &[Linear], x: &[f32]) -> (Vec<f32>, Vec<LinearTape>) {
    if let Some(y) = device::forward(linears, x) {
        return (y, vec![LinearTape::default(); linears.len()]);
    }
    let (mut outs, tapes): (Vec<_>, Vec<_>) = linears.iter().map(|l| l.forward(x)).unzip();
    if outs.len() == 1 {
        return (outs.remove(0), tapes);
    }
    let tokens = x.len() / linears[0].d_in;
    let width: usize = linears.iter().map(|l| l.d_out).sum();
    let mut y = vec![0f32; tokens * width];
    y.par_chunks_mut(width).enumerate().with_min_len(16).for_each(|(t, y)| {
        let mut at = 0;
        for (l, out) in linears.iter().zip(&outs) {
            y[at..at + l.d_out].copy_from_slice(&out[t * l.d_out..(t + 1) * l.d_out]);
            at += l.d_out;
        }
    });
    (y, tapes)
}

/// Gradient with respect to `x` from that of the outputs, `dy`; those of parameters are added to `grads`.
pub fn site_backward(
    linears: &[Linear],
    x: &[f32],
    tapes: &[LinearTape],
    dy: &[f32],
    grads: &mut [Option<LinearGrad>],
) -> Vec<f32> {
    if let Some(dx) = device::backward(linears, x, dy, grads) {
        return dx;
    }
    let width: usize = linears.iter().map(|l| l.d_out).sum();
    let mut dx = vec![0f32; x.len()];
    let mut at = 0;
    for ((l, tape), grad) in linears.iter().zip(tapes).zip(grads) {
        let part: Vec<f32>;
        let own = if linears.len() == 1 {
            dy
        } else {
            let mut copy = vec![0f32; dy.len() / width * l.d_out];
            copy.par_chunks_mut(l.d_out).zip(dy.par_chunks(width)).with_min_len(16).for_each(|(to, row)| {
                to.copy_from_slice(&row[at..at + l.d_out]);
            });
            part = copy;
            &part
        };
        // A device that ran the forward pass has left no tape.
        let again = if tape.serves(l) { None } else { Some(l.forward(x).1) };
        l.backward(x, again.as_ref().unwrap_or(tape), own, &mut dx, grad.as_mut());
        at += l.d_out;
    }
    dx
}

fn add(a: &mut [f32], b: &[f32]) {
    a.par_chunks_mut(1 << 14).zip(b.par_chunks(1 << 14)).for_each(|(a, b)| {
        a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
    });
}

/// Value and derivative of the gate's function for every element.
fn gate(activation: Activation, x: &[f32], value: &mut [f32], slope: &mut [f32]) {
    match activation {
        Activation::Silu => {
            sigmoid(x, slope);
            for ((x, y), s) in x.iter().zip(value).zip(slope) {
                *y = x * *s;
                *s *= 1.0 + x * (1.0 - *s);
            }
        }
        Activation::Gelu => {
            const A: f32 = 0.044_715;
            const B: f32 = 0.797_884_6;
            // tanh(z) = 2 sigmoid(2 z) - 1.
            let twice: Vec<f32> = x.iter().map(|x| 2.0 * B * x * (1.0 + A * x * x)).collect();
            sigmoid(&twice, slope);
            for ((x, y), s) in x.iter().zip(value).zip(slope) {
                let t = 2.0 * *s - 1.0;
                let dt = (1.0 - t * t) * B * (1.0 + 3.0 * A * x * x);
                *y = 0.5 * x * (1.0 + t);
                *s = 0.5 * (1.0 + t) + 0.5 * x * dt;
            }
        }
    }
}

impl Block {
    /// The same block with dense weights in little precision, for forward passes.
    pub fn coarse(&self) -> Block {
        Block {
            linears: std::array::from_fn(|s| self.linears[s].iter().map(Linear::coarse).collect()),
            norms: self.norms.clone(),
            post_norms: self.post_norms.clone(),
            head_norms: self.head_norms.clone(),
            window: self.window,
        }
    }

    /// Sets the precision of all factorized layers.
    pub fn set_precision(&mut self, precision: Precision) {
        self.linears.iter_mut().flatten().for_each(|l| l.set_precision(precision));
    }

    /// All norm weights, in a fixed order.
    pub fn norm_list(&mut self) -> Vec<&mut Vec<f32>> {
        let optional = self.post_norms.iter_mut().chain(&mut self.head_norms).flatten();
        self.norms.iter_mut().chain(optional).collect()
    }

    /// [`Fisher`](super::Fisher) sums of all layers, nothing seen yet.
    pub fn zero_fisher(&self) -> BlockGrad {
        let mut grad = self.zero_grad(Trained::Scales);
        for (grads, linears) in grad.linears.iter_mut().zip(&self.linears) {
            *grads = linears.iter().map(|_| Some(LinearGrad::Fisher(Default::default()))).collect();
        }
        grad
    }

    /// Zero gradients of what is `trained` and of all norms.
    pub fn zero_grad(&self, trained: Trained) -> BlockGrad {
        let linears = std::array::from_fn(|s| self.linears[s].iter().map(|l| l.zero_grad(trained)).collect());
        let optional = self.post_norms.iter().chain(&self.head_norms).flatten();
        let norms = self.norms.iter().chain(optional).map(|n| vec![0.0; n.len()]).collect();
        BlockGrad { linears, norms }
    }

    /// The rotation of this block among those of [`Model::rotations`](super::Model::rotations).
    pub fn rotation<'a>(&self, rotations: &'a [Rotation; 2]) -> &'a Rotation {
        &rotations[usize::from(self.window.is_some())]
    }

    fn shape(&self, c: &Config, tokens: usize, length: usize) -> attention::Shape {
        attention::Shape {
            sequences: tokens / length,
            length,
            heads: c.heads,
            heads_kv: c.heads_kv,
            d_key: c.d_key,
            d_value: c.d_value,
            scale: c.attention_scale,
            window: self.window,
        }
    }

    /// Runs windows of `length` tokens; `x` is `tokens x d_model`.
    pub fn forward(
        &self,
        c: &Config,
        rotation: &Rotation,
        x: Vec<f32>,
        length: usize,
    ) -> (Vec<f32>, BlockTape) {
        let mut tape = self.begin(c, x);
        for site in [Site::Attention, Site::Output, Site::Feed] {
            self.advance(c, rotation, &mut tape, site, length);
        }
        (self.finish(c, &mut tape), tape)
    }

    /// The pass up to the input of the first site.
    pub fn begin(&self, c: &Config, x: Vec<f32>) -> BlockTape {
        let attn_in = norm::forward(&x, &self.norms[0], c.eps);
        let inputs = [attn_in, Vec::new(), Vec::new(), Vec::new()];
        BlockTape { x, inputs, ..BlockTape::default() }
    }

    /// Goes on from the input of `site` to that of the next; from the last, [`finish`](Self::finish) does.
    pub fn advance(&self, c: &Config, rotation: &Rotation, tape: &mut BlockTape, site: Site, length: usize) {
        let i = site as usize;
        let (mut out, linear_tapes) = site_forward(&self.linears[i], &tape.inputs[i]);
        tape.tapes[i] = linear_tapes;
        match site {
            Site::Attention => {
                if self.head_norms.iter().any(Option::is_some) {
                    tape.raw_joined = out.clone();
                }
                self.turn(c, rotation, &mut out, |t| t % length);
                tape.inputs[1] = attention::forward(&self.shape(c, out.len() / c.joined(), length), &out);
                tape.joined = out;
            }
            Site::Output => {
                self.after(c, 0, &mut out, &mut tape.raw_outputs[0]);
                add(&mut out, &tape.x);
                tape.inputs[2] = norm::forward(&out, &self.norms[1], c.eps);
                tape.middle = out;
            }
            Site::Feed => {
                let mut gated = vec![0f32; out.len() / 2];
                gated.par_chunks_mut(c.d_ff).zip(out.par_chunks(2 * c.d_ff)).for_each(|(y, gu)| {
                    let (g, u) = gu.split_at(c.d_ff);
                    gate(c.activation, g, y, &mut vec![0f32; c.d_ff]);
                    y.iter_mut().zip(u).for_each(|(y, u)| *y *= u);
                });
                tape.inputs[3] = gated;
                tape.gate_up = out;
            }
            Site::Down => unreachable!("the last site ends in `finish`"),
        }
    }

    /// Norms and rotates the query and key heads of joined rows; `position` says where in its window a row is.
    fn turn(
        &self,
        c: &Config,
        rotation: &Rotation,
        joined: &mut [f32],
        position: impl Fn(usize) -> usize + Sync,
    ) {
        let heads = c.heads + c.heads_kv;
        joined.par_chunks_mut(c.joined()).enumerate().for_each(|(t, row)| {
            for (i, head) in row[..heads * c.d_key].chunks_exact_mut(c.d_key).enumerate() {
                if let Some(w) = &self.head_norms[usize::from(i >= c.heads)] {
                    let normed = norm::forward(head, w, c.eps);
                    head.copy_from_slice(&normed);
                }
                rotation.forward(head, position(t));
            }
        });
    }

    /// One more token of every sequence in `cache`; `x` is `sequences x d_model`.
    pub fn extend(&self, c: &Config, rotation: &Rotation, x: Vec<f32>, cache: &mut Cache) -> Vec<f32> {
        let mut tape = self.begin(c, x);
        let mut joined = site_forward(&self.linears[0], &tape.inputs[0]).0;
        let position = cache.length();
        self.turn(c, rotation, &mut joined, |_| position);
        tape.inputs[1] = cache.attend(&self.shape(c, cache.sequences(), 1), &joined);
        for site in [Site::Output, Site::Feed] {
            self.advance(c, rotation, &mut tape, site, 1);
        }
        self.finish(c, &mut tape)
    }

    /// The output of the block, from the input of the last site.
    pub fn finish(&self, c: &Config, tape: &mut BlockTape) -> Vec<f32> {
        let (mut y, linear_tapes) = site_forward(&self.linears[3], &tape.inputs[3]);
        tape.tapes[3] = linear_tapes;
        self.after(c, 1, &mut y, &mut tape.raw_outputs[1]);
        add(&mut y, &tape.middle);
        y
    }

    /// Post norm number `i`, if the block has it; `raw` keeps what went in.
    fn after(&self, c: &Config, i: usize, out: &mut Vec<f32>, raw: &mut Vec<f32>) {
        if let Some(w) = &self.post_norms[i] {
            let normed = norm::forward(out, w, c.eps);
            *raw = std::mem::replace(out, normed);
        }
    }

    /// Gradient with respect to the block's input; those of parameters are added to `grad`.
    pub fn backward(
        &self,
        c: &Config,
        rotation: &Rotation,
        tape: &BlockTape,
        dy: Vec<f32>,
        length: usize,
        grad: &mut BlockGrad,
    ) -> Vec<f32> {
        let tokens = tape.x.len() / c.d_model;
        let [n_attn, n_feed, optional @ ..] = &mut grad.norms[..] else {
            unreachable!("a block has two norms")
        };
        let mut optional = optional.iter_mut();
        let mut take = |present: bool| present.then(|| optional.next().expect("one gradient a norm"));
        let post = [take(self.post_norms[0].is_some()), take(self.post_norms[1].is_some())];
        let [post_attn, post_feed] = post;
        let mut head = [take(self.head_norms[0].is_some()), take(self.head_norms[1].is_some())];

        let through = |w: &Option<Vec<f32>>, raw: &[f32], g: Option<&mut Vec<f32>>, dy: &[f32]| match (w, g) {
            (Some(w), Some(g)) => norm::backward(raw, w, c.eps, dy, g),
            _ => dy.to_vec(),
        };
        let d_down = through(&self.post_norms[1], &tape.raw_outputs[1], post_feed, &dy);
        let lg = &mut grad.linears;
        let d_gated = site_backward(&self.linears[3], &tape.inputs[3], &tape.tapes[3], &d_down, &mut lg[3]);
        let mut d_gate_up = vec![0f32; tokens * 2 * c.d_ff];
        d_gate_up
            .par_chunks_mut(2 * c.d_ff)
            .zip(tape.gate_up.par_chunks(2 * c.d_ff))
            .zip(d_gated.par_chunks(c.d_ff))
            .for_each(|((d, gu), dy)| {
                let ((dg, du), (g, u)) = (d.split_at_mut(c.d_ff), gu.split_at(c.d_ff));
                gate(c.activation, g, du, dg);
                for i in 0..c.d_ff {
                    dg[i] *= dy[i] * u[i];
                    du[i] *= dy[i];
                }
            });
        let d_feed = site_backward(&self.linears[2], &tape.inputs[2], &tape.tapes[2], &d_gate_up, &mut lg[2]);
        let mut d_middle = norm::backward(&tape.middle, &self.norms[1], c.eps, &d_feed, n_feed);
        add(&mut d_middle, &dy);

        let d_out = through(&self.post_norms[0], &tape.raw_outputs[0], post_attn, &d_middle);
        let d_att = site_backward(&self.linears[1], &tape.inputs[1], &tape.tapes[1], &d_out, &mut lg[1]);
        let mut d_joined = attention::backward(&self.shape(c, tokens, length), &tape.joined, &d_att);
        let heads = c.heads + c.heads_kv;
        const ROWS: usize = 32;
        let parts: Vec<[Vec<f32>; 2]> = d_joined
            .par_chunks_mut(ROWS * c.joined())
            .enumerate()
            .map(|(chunk, rows)| {
                let mut part = [0, 1].map(|kind| match &self.head_norms[kind] {
                    Some(w) => vec![0f32; w.len()],
                    None => Vec::new(),
                });
                for (t, row) in rows.chunks_exact_mut(c.joined()).enumerate() {
                    let t = chunk * ROWS + t;
                    for (i, d) in row[..heads * c.d_key].chunks_exact_mut(c.d_key).enumerate() {
                        rotation.backward(d, t % length);
                        let kind = usize::from(i >= c.heads);
                        if let Some(w) = &self.head_norms[kind] {
                            let raw = &tape.raw_joined[t * c.joined() + i * c.d_key..][..c.d_key];
                            let dx = norm::backward(raw, w, c.eps, d, &mut part[kind]);
                            d.copy_from_slice(&dx);
                        }
                    }
                }
                part
            })
            .collect();
        for (kind, g) in head.iter_mut().enumerate() {
            if let Some(g) = g {
                for part in &parts {
                    g.iter_mut().zip(&part[kind]).for_each(|(a, b)| *a += b);
                }
            }
        }
        let d_in = site_backward(&self.linears[0], &tape.inputs[0], &tape.tapes[0], &d_joined, &mut lg[0]);
        let mut dx = norm::backward(&tape.x, &self.norms[0], c.eps, &d_in, n_attn);
        add(&mut dx, &d_middle);
        dx
    }
}

//! Reads a decoder from a source.

use super::block::Block;
use super::config::Config;
use super::dense::Dense;
use super::device::Place;
use super::linear::{Linear, Weight};
use super::model::Model;
use crate::error::{Error, Result};
use crate::factorize::Device;
use crate::source::TensorSource;
use std::collections::HashMap;
use std::sync::Arc;

/// Reads a decoder part by part.
pub struct Loader<'a> {
    source: &'a dyn TensorSource,
    index: HashMap<&'a str, usize>,
    config: Config,
    place: Place,
}

impl<'a> Loader<'a> {
    /// Reads the description of the graph.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if it is not one of [`super::SUPPORTED`].
    pub fn new(source: &'a dyn TensorSource) -> Result<Self> {
        let config = Config::from_kv(source.path(), source.kv())?;
        let index = source.tensors().iter().enumerate().map(|(i, t)| (t.name.as_str(), i)).collect();
        Ok(Self { source, index, config, place: Place::default() })
    }

    /// The same; what it reads is placed on `device`.
    #[must_use]
    pub fn on(self, device: &Arc<Device>) -> Self {
        Self { place: device.into(), ..self }
    }

    /// The graph.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        self.config.blocks
    }

    /// The model without its blocks.
    ///
    /// # Errors
    /// [`Error::Tensor`] for a missing or misshapen tensor.
    pub fn frame(&self) -> Result<Model> {
        let c = self.config.clone();
        let rows = self.index.get("token_embd.weight");
        let rows = rows.and_then(|&i| self.source.tensors()[i].dims.get(1).copied());
        let vocabulary = rows.unwrap_or(0) as usize;
        let embeddings = Arc::new(Dense::from(self.need("token_embd.weight", &[c.d_model, vocabulary])?));
        let head = match self.optional("output.weight", &[c.d_model, vocabulary])? {
            Some(head) => Arc::new(head.into()),
            None => embeddings.clone(),
        };
        let long = c.context > c.original_context;
        let mut rope_factors = self.optional("rope_freqs.weight", &[c.rope_dims / 2])?;
        if rope_factors.is_none() && (long || c.arch == "phi3") {
            rope_factors = self.optional("rope_factors_short.weight", &[c.rope_dims / 2])?;
        }
        let norm = self.need("output_norm.weight", &[c.d_model])?;
        let head_bias = match c.arch.as_str() {
            "qwen2" | "phi3" => self.optional("output.bias", &[vocabulary])?,
            _ => None,
        };
        let place = self.place.clone();
        Ok(Model { config: c, embeddings, head, head_bias, norm, blocks: Vec::new(), rope_factors, place })
    }

    fn optional(&self, name: &str, dims: &[usize]) -> Result<Option<Vec<f32>>> {
        let Some(&i) = self.index.get(name) else { return Ok(None) };
        let have = &self.source.tensors()[i].dims;
        let same = have.len() == dims.len() && have.iter().zip(dims).all(|(&a, &b)| a == b as u64);
        if !same {
            let what = format!("has shape {have:?}, the architecture wants {dims:?}");
            return Err(Error::tensor(self.source.path(), name, what));
        }
        self.source.read_f32(i).map(Some)
    }

    fn need(&self, name: &str, dims: &[usize]) -> Result<Vec<f32>> {
        self.optional(name, dims)?.ok_or_else(|| Error::tensor(self.source.path(), name, "is missing"))
    }

    /// A dense weight.
    ///
    /// # Errors
    /// [`Error::Tensor`] for a missing or misshapen tensor.
    pub fn weight(&self, name: &str, d_out: usize, d_in: usize) -> Result<Weight> {
        self.need(name, &[d_in, d_out]).map(|w| Weight::Dense(w.into()))
    }

    /// A layer of the attention part.
    fn linear(&self, base: &str, d_out: usize, d_in: usize) -> Result<Linear> {
        let name = format!("{base}.weight");
        let weight = self.weight(&name, d_out, d_in)?;
        let scale = self.optional(&format!("{base}.scale"), &[1])?.map_or(1.0, |s| s[0]);
        let bias = self.optional(&format!("{base}.bias"), &[d_out])?;
        Ok(Linear { name, d_out, d_in, weight, scale, bias, place: self.place.clone() })
    }

    /// A layer of the feed-forward part, as llama.cpp's graphs have it: biases in llama only, and scaled with the
    /// product; scales in llama and qwen3.
    fn feed(&self, c: &Config, base: &str, d_out: usize, d_in: usize) -> Result<Linear> {
        let mut l = self.linear(base, d_out, d_in)?;
        if !["llama", "qwen3"].contains(&c.arch.as_str()) {
            l.scale = 1.0;
        }
        l.bias = l.bias.filter(|_| c.arch == "llama");
        l.bias.iter_mut().flatten().for_each(|b| *b *= l.scale);
        Ok(l)
    }

    /// Block `i`.
    ///
    /// # Errors
    /// [`Error::Tensor`] for a missing or misshapen tensor.
    pub fn block(&self, i: usize) -> Result<Block> {
        let (r, c) = (self, &self.config);
        let at = |name: &str| format!("blk.{i}.{name}");
        let d = c.d_model;
        let (q, k, v) = (c.heads * c.d_key, c.heads_kv * c.d_key, c.heads_kv * c.d_value);
        let joined = r.index.contains_key(at("attn_qkv.weight").as_str());
        let attention = if joined {
            let mut l = r.linear(&at("attn_qkv"), q + k + v, d)?;
            if l.bias.is_none() {
                let part = |name: &str, n| r.optional(&at(name), &[n]);
                let parts = [part("attn_q.bias", q)?, part("attn_k.bias", k)?, part("attn_v.bias", v)?];
                l.bias = parts.into_iter().collect::<Option<Vec<_>>>().map(|p| p.concat());
            }
            vec![l]
        } else {
            vec![
                r.linear(&at("attn_q"), q, d)?,
                r.linear(&at("attn_k"), k, d)?,
                r.linear(&at("attn_v"), v, d)?,
            ]
        };
        // phi3 stores gate and up in one tensor called up.
        let feed = if r.index.contains_key(at("ffn_gate.weight").as_str()) {
            vec![r.feed(c, &at("ffn_gate"), c.d_ff, d)?, r.feed(c, &at("ffn_up"), c.d_ff, d)?]
        } else {
            vec![r.feed(c, &at("ffn_up"), 2 * c.d_ff, d)?]
        };
        let post = |name: &str| match c.arch.as_str() {
            "gemma3" => r.need(&at(name), &[d]).map(Some),
            _ => Ok(None),
        };
        let head = |name: &str| match c.arch.as_str() {
            "gemma3" | "qwen3" => r.need(&at(name), &[c.d_key]).map(Some),
            _ => Ok(None),
        };
        Ok(Block {
            linears: [
                attention,
                vec![r.linear(&at("attn_output"), d, c.heads * c.d_value)?],
                feed,
                vec![r.feed(c, &at("ffn_down"), d, c.d_ff)?],
            ],
            norms: [r.need(&at("attn_norm.weight"), &[d])?, r.need(&at("ffn_norm.weight"), &[d])?],
            post_norms: [post("post_attention_norm.weight")?, post("post_ffw_norm.weight")?],
            head_norms: [head("attn_q_norm.weight")?, head("attn_k_norm.weight")?],
            window: c.windows[i],
        })
    }
}

impl Loader<'_> {
    /// `frame` with all blocks in little precision, for forward passes: two bytes a weight.
    ///
    /// # Errors
    /// As those of [`Loader::block`].
    pub fn coarse(&self, frame: &Model) -> Result<Model> {
        let blocks = (0..self.blocks()).map(|i| Ok(self.block(i)?.coarse())).collect::<Result<_>>()?;
        Ok(Model { blocks, ..frame.clone() })
    }
}

/// Reads all weights in f32.
///
/// # Errors
/// As those of [`Loader`].
pub fn load(source: &dyn TensorSource) -> Result<Model> {
    let loader = Loader::new(source)?;
    let mut model = loader.frame()?;
    model.blocks = (0..model.config.blocks).map(|i| loader.block(i)).collect::<Result<_>>()?;
    Ok(model)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{GgmlType, TensorDesc, Value, Writer};
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use std::path::Path;

    const WIDTH: usize = 24;
    const WIDE: usize = 40;
    const VOCABULARY: usize = 9;
    /// Rows of q, k and v: six heads of width 4 with three heads of k and v.
    const QKV: [usize; 3] = [24, 12, 12];

    /// Logits of a phi3 model of these tensors (name, rows, values), through a file.
    fn logits(path: &Path, tensors: &[(String, usize, Vec<f32>)]) -> Vec<f32> {
        let count = |n: usize| Value::U32(n as u32);
        let kv: Vec<(String, Value)> = [
            ("general.architecture", "phi3".into()),
            ("phi3.embedding_length", count(WIDTH)),
            ("phi3.attention.head_count", count(6)),
            ("phi3.attention.head_count_kv", count(3)),
            ("phi3.block_count", count(1)),
            ("phi3.feed_forward_length", count(WIDE)),
            ("phi3.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ]
        .into_iter()
        .map(|(k, v)| (k.to_owned(), v))
        .collect();
        let describe = |(name, rows, values): &(String, usize, Vec<f32>)| {
            let columns = (values.len() / rows) as u64;
            let dims = if *rows == 1 { vec![columns] } else { vec![columns, *rows as u64] };
            TensorDesc { name: name.clone(), dims, ty: GgmlType::F32 }
        };
        let mut w = Writer::new(Vec::new(), &kv, tensors.iter().map(describe).collect(), 32).unwrap();
        for (name, _, values) in tensors {
            let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            w.write_tensor(name, &bytes).unwrap();
        }
        std::fs::write(path, w.finish().unwrap()).unwrap();
        let source = crate::source::open(path).unwrap();
        let model = load(source.as_ref()).unwrap();
        let tokens = [1, 5, 3, 3, 8, 0, 2];
        model.logits(&model.normed(&model.stream(&tokens, tokens.len())))
    }

    /// q, k, v and gate, up in one tensor each are the same model as apart, and so is a tied head beside its copy.
    #[test]
    fn joined_and_tied_tensors_are_the_same_model() {
        let rng = &mut ChaCha8Rng::seed_from_u64(2);
        let mut matrix = |rows: usize, columns: usize| -> Vec<f32> {
            (0..rows * columns).map(|_| rng.random_range(-0.5f32..0.5)).collect()
        };
        let frame = [
            ("token_embd.weight", VOCABULARY, matrix(VOCABULARY, WIDTH)),
            ("blk.0.attn_norm.weight", 1, matrix(1, WIDTH)),
            ("blk.0.ffn_norm.weight", 1, matrix(1, WIDTH)),
            ("output_norm.weight", 1, matrix(1, WIDTH)),
            ("blk.0.attn_output.weight", WIDTH, matrix(WIDTH, WIDTH)),
            ("blk.0.ffn_down.weight", WIDTH, matrix(WIDTH, WIDE)),
        ];
        let [q, k, v] = QKV.map(|rows| matrix(rows, WIDTH));
        let biases = QKV.map(|rows| matrix(1, rows));
        let [gate, up] = [matrix(WIDE, WIDTH), matrix(WIDE, WIDTH)];
        let dir = tempfile::tempdir().unwrap();
        let with = |more: &[(&str, usize, Vec<f32>)]| {
            let all = frame.iter().chain(more).map(|(name, rows, x)| ((*name).to_owned(), *rows, x.clone()));
            logits(&dir.path().join("m.gguf"), &all.collect::<Vec<_>>())
        };
        let apart = [
            ("blk.0.attn_q.weight", QKV[0], q.clone()),
            ("blk.0.attn_k.weight", QKV[1], k.clone()),
            ("blk.0.attn_v.weight", QKV[2], v.clone()),
            ("blk.0.attn_q.bias", 1, biases[0].clone()),
            ("blk.0.attn_k.bias", 1, biases[1].clone()),
            ("blk.0.attn_v.bias", 1, biases[2].clone()),
            ("blk.0.ffn_gate.weight", WIDE, gate.clone()),
            ("blk.0.ffn_up.weight", WIDE, up.clone()),
        ];
        let joined = |gate_up: [&[f32]; 2]| {
            [
                ("blk.0.attn_qkv.weight", QKV.iter().sum(), [&q[..], &k, &v].concat()),
                ("blk.0.attn_qkv.bias", 1, biases.concat()),
                ("blk.0.ffn_up.weight", 2 * WIDE, gate_up.concat()),
            ]
        };
        let want = with(&apart);
        let close = |a: &[f32]| a.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-5);
        assert!(want.len() == 7 * VOCABULARY && want.iter().any(|x| x.abs() > 0.1), "{want:?}");
        assert!(close(&with(&joined([&gate, &up]))));
        assert!(!close(&with(&joined([&up, &gate]))), "the order of gate and up has no effect");
        let head = [("output.weight", VOCABULARY, frame[0].2.clone())];
        assert!(close(&with(&[&apart[..], &head].concat())));
        let other = [("output.weight", VOCABULARY, vec![1.0; VOCABULARY * WIDTH])];
        assert!(!close(&with(&[&apart[..], &other].concat())), "a head of its own has no effect");
    }
}

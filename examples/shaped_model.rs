//! Models of a real size and shape with random weights, to time a runtime without weights at hand.
//!
//! `shaped_model SHAPE TYPE OUT.gguf [--head TYPE]`: SHAPE is one of the names below; TYPE is f16, q8_0, q4_0, q1_0 for the
//! linear layers, or `lb:BPW` for factors of at most that many bits per weight. The head (and the embedding) takes f16
//! where the layers do, otherwise what llama-quantize gives them: q6_K for the head, the layers' type for an embedding
//! of its own (q4_K where the layers are factors). The vocabulary has a size and no tokens, so llama-bench runs these files and nothing that
//! needs text does. Values are random, so the model says nothing; times do not depend on values.

use half::f16;
use littlebit::bits::{padded_cols, padded_rows};
use littlebit::format::factors::{RANK_STEP, slice_bits};
use littlebit::format::schema::{self, Part, Shape, key};
use littlebit::gguf::{GgmlType, TensorDesc, Value, Writer, encode};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::error::Error;
use std::io::{BufWriter, Write};

/// What a decoder of the llama family consists of.
struct Model {
    name: &'static str,
    blocks: usize,
    d: usize,
    ff: usize,
    heads: usize,
    kv_heads: usize,
    vocabulary: usize,
    /// Whether the embedding serves as head.
    tied: bool,
}

const MODELS: [Model; 6] = [
    // Llama 2 70B, eight of its 80 blocks: what a block costs shows, and F16 fits on one GPU.
    Model {
        name: "70b-layers",
        blocks: 8,
        d: 8192,
        ff: 28672,
        heads: 64,
        kv_heads: 8,
        vocabulary: 32000,
        tied: false,
    },
    // Llama 2 13B
    Model {
        name: "13b",
        blocks: 40,
        d: 5120,
        ff: 13824,
        heads: 40,
        kv_heads: 40,
        vocabulary: 32000,
        tied: false,
    },
    // Llama 2 7B
    Model {
        name: "7b",
        blocks: 32,
        d: 4096,
        ff: 11008,
        heads: 32,
        kv_heads: 32,
        vocabulary: 32000,
        tied: false,
    },
    // Llama 3.1 8B
    Model {
        name: "8b",
        blocks: 32,
        d: 4096,
        ff: 14336,
        heads: 32,
        kv_heads: 8,
        vocabulary: 128_256,
        tied: false,
    },
    // Llama 3.2 1B
    Model {
        name: "1b",
        blocks: 16,
        d: 2048,
        ff: 8192,
        heads: 32,
        kv_heads: 8,
        vocabulary: 128_256,
        tied: true,
    },
    // SmolLM2 135M
    Model {
        name: "135m",
        blocks: 30,
        d: 576,
        ff: 1536,
        heads: 9,
        kv_heads: 3,
        vocabulary: 49152,
        tied: true,
    },
];

/// What the linear layers are.
enum Layers {
    Type(GgmlType),
    /// Factors of at most so many bits per weight.
    Factors(f64),
}

impl Model {
    /// Name, inputs and outputs of a block's linear layers.
    fn linears(&self) -> [(&'static str, usize, usize); 7] {
        let kv = self.d / self.heads * self.kv_heads;
        [
            ("attn_q", self.d, self.d),
            ("attn_k", self.d, kv),
            ("attn_v", self.d, kv),
            ("attn_output", self.d, self.d),
            ("ffn_gate", self.d, self.ff),
            ("ffn_up", self.d, self.ff),
            ("ffn_down", self.ff, self.d),
        ]
    }

    fn weights(&self) -> u64 {
        let block: usize = self.linears().iter().map(|(_, i, o)| i * o).sum::<usize>() + 2 * self.d;
        let tables = if self.tied { 1 } else { 2 };
        (block * self.blocks + self.d + tables * self.vocabulary * self.d) as u64
    }

    fn kv(&self, layers: &Layers) -> Vec<(String, Value)> {
        let text = |s: &str| Value::Str(s.as_bytes().to_vec());
        let number = |n: usize| Value::U32(n as u32);
        let mut kv = vec![
            ("general.architecture", text("llama")),
            ("general.name", text(&format!("random weights, shape {}", self.name))),
            ("llama.block_count", number(self.blocks)),
            ("llama.context_length", number(4096)),
            ("llama.embedding_length", number(self.d)),
            ("llama.feed_forward_length", number(self.ff)),
            ("llama.attention.head_count", number(self.heads)),
            ("llama.attention.head_count_kv", number(self.kv_heads)),
            ("llama.rope.dimension_count", number(self.d / self.heads)),
            ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
            ("llama.vocab_size", number(self.vocabulary)),
            ("tokenizer.ggml.model", text("no_vocab")),
        ];
        if matches!(layers, Layers::Factors(_)) {
            kv.extend([
                (key::VERSION, Value::U32(schema::VERSION)),
                (key::PATHS, Value::U32(1)),
                (key::N_PARAMS, Value::U64(self.weights())),
                (key::REQUIRES, text(schema::REQUIRES)),
            ]);
        }
        kv.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
    }
}

/// Largest rank whose factors keep to `bpw` bits per weight.
fn rank(d_in: usize, d_out: usize, bpw: f64) -> usize {
    let budget = (bpw * (d_in * d_out) as f64) as u64;
    (RANK_STEP..)
        .step_by(RANK_STEP)
        .take_while(|r| slice_bits(d_out, d_in, *r) <= budget)
        .last()
        .unwrap_or(RANK_STEP)
}

/// Some random blocks of every type, which tensors are filled with over and over.
struct Filler {
    rng: ChaCha8Rng,
}

impl Filler {
    const BLOCKS: usize = 4096;

    /// So many bytes of `ty`, whole blocks.
    fn values(&mut self, ty: GgmlType, bytes: usize) -> Result<Vec<u8>, Box<dyn Error>> {
        let (elements, block) = ty.block().ok_or("a type without a geometry")?;
        let mut pool = Vec::new();
        if ty == GgmlType::Q1_0 {
            for _ in 0..Self::BLOCKS {
                pool.extend_from_slice(&f16::from_f32(0.02).to_le_bytes());
                pool.extend((2..block).map(|_| self.rng.random::<u8>()));
            }
        } else {
            let n = Self::BLOCKS * elements as usize;
            let values: Vec<f32> = (0..n).map(|_| self.rng.random_range(-0.03..0.03)).collect();
            encode::encode(ty, &values, &mut pool)?;
        }
        Ok(repeated(&pool, bytes))
    }

    fn signs(&mut self, bytes: usize) -> Vec<u8> {
        // A prime length, so that rows do not repeat.
        let pool: Vec<u8> = (0..1_048_573).map(|_| self.rng.random()).collect();
        repeated(&pool, bytes)
    }

    fn part(&mut self, part: Part, shape: &Shape) -> Vec<u8> {
        let scales = |n: usize, x: f32| f16::from_f32(x).to_le_bytes().repeat(n);
        match part {
            Part::V => self.signs(padded_rows(shape.rank) * padded_cols(shape.d_in) / 8),
            Part::U => self.signs(padded_rows(shape.d_out) * padded_cols(shape.rank) / 8),
            Part::G => scales(shape.d_in, 1.0),
            // The product then has the size that a weight of such a layer has.
            Part::L => scales(shape.rank, 0.02 / (shape.rank as f32).sqrt()),
            Part::H => scales(shape.d_out, 1.0),
        }
    }
}

fn repeated(pool: &[u8], bytes: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes);
    while out.len() < bytes {
        out.extend_from_slice(&pool[..pool.len().min(bytes - out.len())]);
    }
    out
}

/// One tensor of the file: a descriptor and what fills it.
enum Content {
    Values,
    Ones,
    Part(Part, Shape),
}

fn tensors(
    model: &Model,
    layers: &Layers,
    head: GgmlType,
    embedding: GgmlType,
) -> Vec<(TensorDesc, Content)> {
    let plain = |name: String, dims: &[usize], ty: GgmlType| {
        let dims: Vec<u64> = dims.iter().map(|d| *d as u64).collect();
        let ty = encode_fitting(ty, dims[0]);
        (TensorDesc { name, dims, ty }, Content::Values)
    };
    let norm = |name: String| {
        let desc = TensorDesc { name, dims: vec![model.d as u64], ty: GgmlType::F32 };
        (desc, Content::Ones)
    };
    let table = [model.d, model.vocabulary];
    let mut all =
        vec![plain("token_embd.weight".to_owned(), &table, if model.tied { head } else { embedding })];
    for b in 0..model.blocks {
        all.push(norm(format!("blk.{b}.attn_norm.weight")));
        all.push(norm(format!("blk.{b}.ffn_norm.weight")));
        for (name, d_in, d_out) in model.linears() {
            let base = format!("blk.{b}.{name}");
            match layers {
                Layers::Type(ty) => all.push(plain(format!("{base}.weight"), &[d_in, d_out], *ty)),
                Layers::Factors(bpw) => {
                    let shape = Shape { d_out, d_in, rank: rank(d_in, d_out, *bpw), slices: 1 };
                    let parts = schema::descriptors(&base, &shape).into_iter().zip(Part::ALL);
                    all.extend(parts.map(|(desc, part)| (desc, Content::Part(part, shape))));
                }
            }
        }
    }
    all.push(norm("output_norm.weight".to_owned()));
    if !model.tied {
        all.push(plain("output.weight".to_owned(), &table, head));
    }
    all
}

/// As [`encode::fitting`], and types that are written here only (Q1_0) where rows fill their blocks.
fn encode_fitting(ty: GgmlType, ne0: u64) -> GgmlType {
    if ty == GgmlType::Q1_0 && ty.row_bytes(ne0).is_none() {
        GgmlType::Q4_0
    } else {
        encode::fitting(ty, ne0)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let usage =
        "usage: shaped_model 70b-layers|13b|8b|7b|1b|135m f16|q8_0|q4_0|q1_0|lb:BPW OUT.gguf [--head TYPE]";
    let (shape, kind, out, head) = match args.as_slice() {
        [shape, kind, out] => (shape, kind, out, None),
        [shape, kind, out, flag, head] if flag == "--head" => (shape, kind, out, Some(head)),
        _ => return Err(usage.into()),
    };
    let model = MODELS.iter().find(|m| m.name == shape).ok_or(usage)?;
    let ty =
        |name: &str| GgmlType::from_name(name).ok_or_else(|| format!("no type is called {name}; {usage}"));
    let layers = match kind.strip_prefix("lb:") {
        Some(bpw) => Layers::Factors(bpw.parse()?),
        None => Layers::Type(ty(kind)?),
    };
    let head = match (head, &layers) {
        (Some(name), _) => ty(name)?,
        (None, Layers::Type(t @ (GgmlType::F16 | GgmlType::Q8_0))) => *t,
        (None, _) => GgmlType::Q6_K,
    };
    let embedding = match layers {
        Layers::Type(t) => t,
        Layers::Factors(_) => GgmlType::Q4_K,
    };
    if let Some(bad) = model.linears().iter().find(|(_, i, o)| i % 16 != 0 || o % 32 != 0) {
        return Err(format!("{}: padding of such a shape is not written here", bad.0).into());
    }
    let tensors = tensors(model, &layers, head, embedding);
    let mut kv = model.kv(&layers);
    let descriptors: Vec<TensorDesc> = tensors.iter().map(|(d, _)| d.clone()).collect();
    schema::set_file_type(&mut kv, &descriptors);
    let mut writer =
        Writer::new(BufWriter::new(std::fs::File::create(out)?), &kv, descriptors, schema::ALIGNMENT)?;
    let mut filler = Filler { rng: ChaCha8Rng::seed_from_u64(1) };
    for (desc, content) in &tensors {
        let bytes = desc.nbytes().ok_or("a size that overflows")? as usize;
        let data = match content {
            Content::Values => filler.values(desc.ty, bytes)?,
            Content::Ones => 1f32.to_le_bytes().repeat(bytes / 4),
            Content::Part(part, shape) => filler.part(*part, shape),
        };
        writer.write_tensor(&desc.name, &data)?;
    }
    writer.finish()?.flush()?;
    Ok(())
}

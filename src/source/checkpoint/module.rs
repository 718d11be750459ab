//! The tensors of one factorized layer.
//!
//! Official: `U_packed` and `V_packed` with `U_shape` and `V_shape`, or latents `U` and `V` of any float type, with `u1`
//! (h), `u2` and `v1` (l is their product) and `v2` (g); a second path has `_R` after the letter. NanoQuant: the same
//! signs, `scale_post` (h), `scale_pre` (g) and sometimes `scale_mid` (l). Ranks differ from layer to layer, so shapes are
//! read and never inferred.

use crate::bits::words_per_row;
use crate::error::{Error, Result};
use crate::format::factors::RANK_STEP;
use crate::source::hf::{Found, Slot};
use crate::source::shard::{Entry, Shard};
use safetensors::Dtype;

/// Who wrote the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    LittleBit,
    NanoQuant,
}

/// What official modules record and nobody needs.
const RECORDS: [&str; 3] = ["_eff_bit_target", "_split_dim_final", "_eff_bit_actual"];

impl Layout {
    pub fn name(self) -> &'static str {
        match self {
            Layout::LittleBit => "LittleBit",
            Layout::NanoQuant => "NanoQuant",
        }
    }

    /// Whether a tensor of this name shows that a checkpoint has factors.
    pub fn announced_by(name: &str) -> bool {
        name.ends_with(".U_packed") || name.ends_with(".U")
    }
}

/// A tensor with the shard that holds it.
#[derive(Clone, Debug)]
pub(super) struct Located {
    pub shard: usize,
    pub entry: Entry,
}

/// Signs as stored.
#[derive(Debug)]
pub(super) enum Signs {
    /// Words, 1 is -1.
    Packed(Located),
    /// Values whose signs count.
    Latent(Located),
}

/// Tensors of one path.
#[derive(Debug)]
pub(super) struct PathTensors {
    pub rank: usize,
    pub u: Signs,
    pub v: Signs,
    pub h: Located,
    /// Vectors whose product is l.
    pub l: Vec<Located>,
    pub g: Located,
}

/// One factorized layer.
#[derive(Debug)]
pub(super) struct Module {
    /// GGUF's name without `.weight`.
    pub base: String,
    pub layout: Layout,
    pub d_out: usize,
    pub d_in: usize,
    /// Heads whose rows are ordered otherwise in a GGUF.
    pub rotary_heads: Option<usize>,
    pub paths: Vec<PathTensors>,
    /// Shard of its first tensor.
    pub shard: usize,
}

impl Module {
    /// Rank of all its paths in the GGUF.
    pub fn rank(&self) -> usize {
        let most = self.paths.iter().map(|p| p.rank).max().unwrap_or(0);
        most.next_multiple_of(RANK_STEP)
    }

    /// Takes the tensors of the layer that stand for the weight `slot` out of `found`; `None` if there are none.
    pub fn take(slot: &Slot, found: &mut Found, shards: &[Shard]) -> Result<Option<Self>> {
        let (Some(module), &[d_out, d_in]) = (slot.hf.strip_suffix(".weight"), &slot.shape[..]) else {
            return Ok(None);
        };
        let mut take = Taker { module, found, shards, d_out: d_out as usize, d_in: d_in as usize };
        let layout = match (take.has("U_packed") || take.has("U"), take.has("scale_post")) {
            (false, _) => return Ok(None),
            (true, true) => Layout::NanoQuant,
            (true, false) => Layout::LittleBit,
        };
        let mut paths = vec![take.path(layout, "")?];
        if take.has("U_R_packed") || take.has("U_R") {
            paths.push(take.path(layout, "_R")?);
        }
        for record in RECORDS {
            take.found.remove(format!("{module}.{record}").as_str());
        }
        let shard = paths[0].h.shard;
        Ok(Some(Self {
            base: slot.gguf.strip_suffix(".weight").unwrap_or(&slot.gguf).to_owned(),
            layout,
            d_out: d_out as usize,
            d_in: d_in as usize,
            rotary_heads: slot.rotary_heads,
            paths,
            shard,
        }))
    }
}

/// Takes the tensors of a module.
struct Taker<'a, 'b, 'c> {
    module: &'a str,
    found: &'b mut Found<'c>,
    shards: &'a [Shard],
    d_out: usize,
    d_in: usize,
}

impl Taker<'_, '_, '_> {
    fn has(&self, name: &str) -> bool {
        self.found.contains_key(format!("{}.{name}", self.module).as_str())
    }

    fn optional(&mut self, name: &str) -> Option<Located> {
        let (shard, entry) = self.found.remove(format!("{}.{name}", self.module).as_str())?;
        Some(Located { shard, entry: entry.clone() })
    }

    fn needed(&mut self, name: &str) -> Result<Located> {
        self.optional(name).ok_or_else(|| {
            // Some tensor of the module is there; the first shard stands for the checkpoint.
            let what = "missing from the checkpoint; the layer has other tensors of a factorized one";
            Error::tensor(&self.shards[0].path, format!("{}.{name}", self.module), what)
        })
    }

    fn fault(&self, at: &Located, what: String) -> Error {
        Error::tensor(&self.shards[at.shard].path, &at.entry.name, what)
    }

    /// A vector of `n` floats, whatever dimensions of 1 it has.
    fn vector(&self, at: Located, n: usize) -> Result<Located> {
        at.entry.float(&self.shards[at.shard].path)?;
        if at.entry.shape.iter().product::<u64>() == n as u64 {
            return Ok(at);
        }
        Err(self.fault(&at, format!("shape {:?}, {n} values are needed", at.entry.shape)))
    }

    /// Signs of one side, `rows x cols`; `None` for a number that is not known yet.
    fn signs(
        &mut self,
        side: &str,
        residual: &str,
        rows: Option<usize>,
        cols: Option<usize>,
    ) -> Result<(Signs, [usize; 2])> {
        let fits = |shape: [usize; 2]| {
            shape[0] > 0
                && shape[1] > 0
                && rows.is_none_or(|r| r == shape[0])
                && cols.is_none_or(|c| c == shape[1])
        };
        let want = |n: Option<usize>| n.map_or("r".to_owned(), |n| n.to_string());
        let wanted = format!("[{}, {}] is needed", want(rows), want(cols));
        let size = |d: Option<&u64>| d.and_then(|d| usize::try_from(*d).ok()).unwrap_or(0);
        if let Some(latent) = self.optional(&format!("{side}{residual}")) {
            latent.entry.float(&self.shards[latent.shard].path)?;
            let shape = [size(latent.entry.shape.first()), size(latent.entry.shape.get(1))];
            if latent.entry.shape.len() != 2 || !fits(shape) {
                return Err(self.fault(&latent, format!("shape {:?}, {wanted}", latent.entry.shape)));
            }
            return Ok((Signs::Latent(latent), shape));
        }
        let packed = self.needed(&format!("{side}{residual}_packed"))?;
        let said = self.needed(&format!("{side}{residual}_shape"))?;
        let shape = self.sizes(&said)?;
        if !fits(shape) {
            return Err(self.fault(&said, format!("says {shape:?}, {wanted}")));
        }
        let words = [shape[0] as u64, words_per_row(shape[1]) as u64];
        if packed.entry.dtype != Dtype::I32 || packed.entry.shape != words {
            let (dtype, got) = (packed.entry.dtype, &packed.entry.shape);
            return Err(self.fault(&packed, format!("{dtype} {got:?}, its shape implies I32 {words:?}")));
        }
        Ok((Signs::Packed(packed), shape))
    }

    /// The two numbers in a `*_shape` tensor.
    fn sizes(&self, at: &Located) -> Result<[usize; 2]> {
        if at.entry.dtype != Dtype::I64 || at.entry.shape != [2] {
            let (dtype, shape) = (at.entry.dtype, &at.entry.shape);
            return Err(self.fault(at, format!("{dtype} {shape:?}, I64 [2] is needed")));
        }
        let numbers = self.shards[at.shard].read_i64(&at.entry)?;
        // Negative sizes are as wrong as 0.
        Ok([0, 1].map(|i| usize::try_from(numbers[i]).unwrap_or(0)))
    }

    /// All tensors of one path, whose names have `residual` in them.
    fn path(&mut self, layout: Layout, residual: &str) -> Result<PathTensors> {
        let (d_out, d_in) = (self.d_out, self.d_in);
        let (u, [_, rank]) = self.signs("U", residual, Some(d_out), None)?;
        let (v, _) = self.signs("V", residual, Some(rank), Some(d_in))?;
        let mut vector = |name: String, n: usize| {
            let at = self.needed(&name)?;
            self.vector(at, n)
        };
        let (h, g, l) = match layout {
            Layout::LittleBit => {
                let h = vector(format!("u1{residual}"), d_out)?;
                let l = [format!("u2{residual}"), format!("v1{residual}")];
                let l = l.into_iter().map(|name| vector(name, rank)).collect::<Result<_>>()?;
                (h, vector(format!("v2{residual}"), d_in)?, l)
            }
            Layout::NanoQuant => {
                let h = vector("scale_post".to_owned(), d_out)?;
                let g = vector("scale_pre".to_owned(), d_in)?;
                let middle = self.optional("scale_mid").map(|at| self.vector(at, rank)).transpose()?;
                (h, g, middle.into_iter().collect())
            }
        };
        Ok(PathTensors { rank, u, v, h, l, g })
    }
}

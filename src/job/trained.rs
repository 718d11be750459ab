//! What training has left, as the file holds it.

use super::sequential::Made;
use crate::decoder::{Model, Weight};
use crate::error::Result;
use crate::factorize;
use std::collections::HashMap;

/// Rounds the trained scales to what the file holds, and the model with them. Returns the trained norms by tensor name.
pub(super) fn store(
    model: &mut Model,
    made: &mut HashMap<String, Made>,
) -> Result<HashMap<String, Vec<f32>>> {
    let mut norms = HashMap::new();
    norms.insert("output_norm.weight".to_owned(), model.norm.clone());
    for (i, block) in model.blocks.iter_mut().enumerate() {
        for l in block.linears.iter_mut().flatten() {
            let (Weight::Binary(paths), Some(f)) = (&mut l.weight, made.get_mut(&l.name)) else {
                continue;
            };
            for (p, stored) in paths.iter_mut().zip(&mut f.factors.slices) {
                *stored = factorize::with_scales(&l.name, stored, &p.h, &p.l, &p.g)?;
                p.set_scales(stored);
            }
        }
        let names =
            ["attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm", "attn_q_norm", "attn_k_norm"];
        let present = [
            Some(&block.norms[0]),
            Some(&block.norms[1]),
            block.post_norms[0].as_ref(),
            block.post_norms[1].as_ref(),
            block.head_norms[0].as_ref(),
            block.head_norms[1].as_ref(),
        ];
        for (name, norm) in names.iter().zip(present) {
            if let Some(norm) = norm {
                norms.insert(format!("blk.{i}.{name}.weight"), norm.clone());
            }
        }
    }
    Ok(norms)
}

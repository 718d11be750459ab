//! What a model writes.

use crate::decoder::Model;

/// The `count` tokens after `prompt` that `model` holds most likely, one after the other.
pub fn greedy(model: &Model, prompt: &[u32], count: usize) -> Vec<u32> {
    let d = model.config.d_model;
    let mut tokens = prompt.to_vec();
    for _ in 0..count {
        let x = model.stream(&tokens, tokens.len());
        let logits = model.logits(&model.normed(&x[x.len() - d..]));
        let top = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
        tokens.push(top.map_or(0, |(i, _)| i as u32));
    }
    tokens.split_off(prompt.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoder::tests::small;

    #[test]
    fn every_token_is_the_most_likely_after_those_before() {
        let model = small();
        let out = greedy(&model, &[1, 2], 4);
        assert_eq!(out.len(), 4);
        let all: Vec<u32> = [&[1, 2], &out[..]].concat();
        let v = model.vocabulary();
        let logits = model.logits(&model.normed(&model.stream(&all, all.len())));
        for (i, &token) in out.iter().enumerate() {
            let row = &logits[(i + 1) * v..(i + 2) * v];
            assert!(row.iter().all(|&x| x <= row[token as usize] + 1e-4), "token {i}");
        }
    }
}

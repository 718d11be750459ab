use super::*;

fn array(tokens: &[&str]) -> Value {
    Value::Array(Array::Str(tokens.iter().map(|t| t.as_bytes().to_vec()).collect()))
}

fn kv(pairs: Vec<(&str, Value)>) -> Vec<(String, Value)> {
    pairs.into_iter().map(|(k, v)| (format!("tokenizer.ggml.{k}"), v)).collect()
}

fn byte_pairs(pre: &str) -> Result<Tokenizer> {
    let tokens = ["a", "b", "c", "Ġ", "ab", "Ġab", "abc", "<x>", "<s>", "Ċ", "1", "Ã", "¤"];
    let mut types = [1; 13];
    (types[7], types[8]) = (USER_DEFINED, CONTROL);
    Tokenizer::from_kv(
        "model.gguf".as_ref(),
        &kv(vec![
            ("model", "gpt2".into()),
            ("pre", pre.into()),
            ("tokens", array(&tokens)),
            ("token_type", Value::Array(Array::I32(types.to_vec()))),
            ("merges", array(&["a b", "Ġ ab", "ab c"])),
            ("bos_token_id", Value::U32(8)),
            ("add_bos_token", Value::Bool(true)),
        ]),
    )
}

#[test]
fn merges_go_by_rank_and_words_do_not_join() {
    let t = byte_pairs("gpt-2").unwrap();
    assert_eq!(t.encode("abc ab"), [6, 5]);
    assert_eq!(t.encode("abab"), [4, 4]);
    assert_eq!(t.encode(" abc"), [5, 2], "the lower rank first");
    assert_eq!(t.encode("a<x>b"), [0, 7, 1]);
    assert_eq!(t.encode("ä"), [11, 12]);
    assert_eq!(t.encode(""), [0u32; 0]);
    assert_eq!(t.decode(&[8, 6, 5, 9, 11, 12, 7]), "abc ab\nä<x>");
    assert_eq!(t.windows("abc ab abc", 2), [[8, 6], [8, 5]]);
}

#[test]
fn unknown_pre_tokenizers_are_refused_with_the_known_ones() {
    let e = byte_pairs("novel").unwrap_err().to_string();
    assert!(e.contains("'novel'") && e.contains("smollm"), "{e}");
}

#[test]
fn sentence_pieces_go_by_score_with_bytes_for_the_rest() {
    let tokens = ["<unk>", "\u{2581}", "a", "b", "ab", "\u{2581}a", "<0xC3>", "<0xA4>"];
    let t = Tokenizer::from_kv(
        "model.gguf".as_ref(),
        &kv(vec![
            ("model", "llama".into()),
            ("tokens", array(&tokens)),
            ("scores", Value::Array(Array::F32(vec![0.0, -9.0, -9.0, -9.0, -2.0, -1.0, 0.0, 0.0]))),
            ("token_type", Value::Array(Array::I32(vec![2, 1, 1, 1, 1, 1, BYTE, BYTE]))),
        ]),
    )
    .unwrap();
    assert_eq!(t.encode("ab"), [5, 3], "the space prefix takes the a by its higher score");
    assert_eq!(t.encode("bab"), [1, 3, 4]);
    assert_eq!(t.encode("ä"), [1, 6, 7]);
    assert_eq!(t.decode(&[5, 3, 6, 7]), " abä");
}

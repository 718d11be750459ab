//! From a tokenizer's definition to the name of llama.cpp's pre-tokenizer.
//!
//! llama.cpp's converter names the pre-tokenizer by a hash of what the tokenizer makes of a test text. Without a
//! tokenizer at hand, the definition itself decides here: the steps in tokenizer.json that cut text into words must
//! be those that llama.cpp applies for the name. Several names share one set of steps; the table has the one that
//! models of the Llama family use.

use serde_json::{Value, json};

/// The cut that GPT-2's byte-level step makes by itself: contractions, letters, digits, other signs, spaces.
const GPT2: &str = "byte-level regex";
/// One word per digit.
const DIGITS: &str = "single digits";

/// A pre-tokenizer of llama.cpp.
struct Known {
    name: &'static str,
    /// Steps in order: [`GPT2`], [`DIGITS`], or the regex of an isolating split.
    steps: &'static [&'static str],
    /// Whether words of the vocabulary skip the merges (`ignore_merges`).
    whole_words: bool,
    /// Whether the tokenizer composes Unicode first (NFC). llama.cpp does not, for these names by its own choice.
    nfc: bool,
}

const TABLE: &[Known] = &[
    Known { name: "smollm", steps: &[DIGITS, GPT2], whole_words: false, nfc: false },
    Known { name: "gpt-2", steps: &[GPT2], whole_words: false, nfc: false },
    Known {
        name: "llama-bpe",
        steps: &[concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )],
        whole_words: true,
        nfc: false,
    },
    Known {
        name: "qwen2",
        steps: &[concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )],
        whole_words: false,
        nfc: true,
    },
    Known {
        name: "deepseek-coder",
        steps: &["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", DIGITS],
        whole_words: false,
        nfc: false,
    },
];

/// Names that [`detect`] can return and [`definition`] accepts.
pub fn names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().map(|k| k.name)
}

/// The name for the definition in `tokenizer` (the root of tokenizer.json); `Err` says what is not understood.
pub fn detect(tokenizer: &Value) -> Result<&'static str, String> {
    let nfc = normalizer(&tokenizer["normalizer"])?;
    let steps = steps(&tokenizer["pre_tokenizer"])?;
    let whole_words = tokenizer.pointer("/model/ignore_merges").and_then(Value::as_bool).unwrap_or(false);
    TABLE
        .iter()
        .find(|k| k.steps == steps && k.whole_words == whole_words && (k.nfc || !nfc))
        .map(|k| k.name)
        .ok_or_else(|| {
            format!("its steps {steps:?} with ignore_merges = {whole_words} are none of llama.cpp's")
        })
}

/// The `normalizer` and `pre_tokenizer` of a tokenizer.json, and whether it ignores merges, for a name of the table.
pub fn definition(name: &str) -> Option<(Value, Value, bool)> {
    let known = TABLE.iter().find(|k| k.name == name)?;
    let byte_level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let mut steps: Vec<Value> = known
        .steps
        .iter()
        .map(|step| match *step {
            GPT2 => byte_level(true),
            DIGITS => json!({"type": "Digits", "individual_digits": true}),
            regex => json!({
                "type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false
            }),
        })
        .collect();
    if known.steps.last() != Some(&GPT2) {
        steps.push(byte_level(false));
    }
    let normalizer = if known.nfc { json!({"type": "NFC"}) } else { Value::Null };
    Some((normalizer, json!({"type": "Sequence", "pretokenizers": steps}), known.whole_words))
}

/// Whether text is composed (NFC); other normalizers are not understood.
fn normalizer(normalizer: &Value) -> Result<bool, String> {
    let parts = match normalizer["type"].as_str() {
        None if normalizer.is_null() => return Ok(false),
        Some("Sequence") => normalizer["normalizers"].as_array().map(Vec::as_slice).unwrap_or_default(),
        _ => std::slice::from_ref(normalizer),
    };
    match parts {
        [] => Ok(false),
        [one] if one["type"] == "NFC" => Ok(true),
        _ => Err(format!("normalizer {normalizer}")),
    }
}

/// The steps that cut text, in order. The last one must turn bytes into letters, as all vocabularies here do.
fn steps(pre_tokenizer: &Value) -> Result<Vec<&str>, String> {
    let parts = match pre_tokenizer["type"].as_str() {
        Some("Sequence") => pre_tokenizer["pretokenizers"].as_array().map(Vec::as_slice).unwrap_or_default(),
        _ => std::slice::from_ref(pre_tokenizer),
    };
    let mut steps = Vec::new();
    let mut bytes = false;
    for part in parts {
        if bytes {
            return Err(format!("step {part} after the byte-level step"));
        }
        match part["type"].as_str() {
            Some("ByteLevel") if part["add_prefix_space"] == false => {
                bytes = true;
                if part["use_regex"].as_bool().unwrap_or(true) {
                    steps.push(GPT2);
                }
            }
            Some("Digits") if part["individual_digits"] == true => steps.push(DIGITS),
            Some("Split") if part["behavior"] == "Isolated" && part["invert"] != true => {
                let regex = part["pattern"]["Regex"].as_str();
                steps.push(regex.ok_or_else(|| format!("split without a regex: {part}"))?);
            }
            _ => return Err(format!("step {part}")),
        }
    }
    if bytes { Ok(steps) } else { Err("no byte-level step".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokenizer(normalizer: Value, pre_tokenizer: Value, ignore_merges: bool) -> Value {
        json!({
            "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "model": {"ignore_merges": ignore_merges}
        })
    }

    #[test]
    fn every_definition_of_the_table_is_detected() {
        for name in names() {
            let (normalizer, pre_tokenizer, ignore_merges) = definition(name).unwrap();
            assert_eq!(detect(&tokenizer(normalizer, pre_tokenizer, ignore_merges)), Ok(name));
        }
        assert!(definition("tekken").is_none());
    }

    #[test]
    fn defaults_and_empty_sequences_are_understood() {
        let gpt2 = json!({"type": "ByteLevel", "add_prefix_space": false});
        let none = json!({"type": "Sequence", "normalizers": []});
        assert_eq!(detect(&json!({"normalizer": none, "pre_tokenizer": gpt2})), Ok("gpt-2"));
    }

    #[test]
    fn anything_else_is_refused() {
        let byte_level = |prefix: bool| json!({"type": "ByteLevel", "add_prefix_space": prefix});
        let sequence = |steps: Vec<Value>| json!({"type": "Sequence", "pretokenizers": steps});
        let metaspace = json!({"type": "Metaspace", "replacement": "▁"});
        let digits = json!({"type": "Digits", "individual_digits": true});
        let groups = json!({"type": "Digits", "individual_digits": false});
        for (normalizer, pre_tokenizer, ignore_merges) in [
            (Value::Null, byte_level(true), false),
            (Value::Null, metaspace, false),
            (Value::Null, Value::Null, false),
            (Value::Null, digits.clone(), false),
            (Value::Null, sequence(vec![groups, byte_level(false)]), false),
            (Value::Null, sequence(vec![byte_level(false), digits]), false),
            (Value::Null, byte_level(false), true),
            (json!({"type": "Lowercase"}), byte_level(false), false),
            (json!({"type": "NFC"}), byte_level(false), false),
            (json!(7), byte_level(false), false),
        ] {
            let t = tokenizer(normalizer, pre_tokenizer, ignore_merges);
            assert!(detect(&t).is_err(), "{t} is {:?}", detect(&t));
        }
    }
}

//! Tokens against llama.cpp's. Needs the pinned source tree and a stock build: run by `scripts/test` with the feature
//! `e2e` and LITTLEBIT_LLAMA_SOURCE, LITTLEBIT_STOCK, LITTLEBIT_MODEL as in `tests/e2e.rs`.

use littlebit::source;
use littlebit::tokenize::Tokenizer;
use std::path::{Path, PathBuf};
use std::process::Command;

fn var(name: &str) -> PathBuf {
    std::env::var_os(name).unwrap_or_else(|| panic!("{name} is not set: run scripts/test")).into()
}

fn tokenizer(model: &Path) -> Tokenizer {
    let source = source::open(model).unwrap();
    Tokenizer::from_kv(source.path(), source.kv()).unwrap()
}

/// English, code, numbers, white space of all kinds, scripts, emoji, unassigned and combining characters.
const MIXED: &str = "The U.S.' economy grew 3.14% (about $12,345,678) in '24; we'll see, THEY'LL see.\n\n\
    \tfn main() {\r\n\t    println!(\"{:?}\", x[0]..=0x1F);   // done\r\n}\n   \n\n  trailing   \n\
    Привет, мир! 你好,世界。こんにちは 안녕하세요 مرحبا नमस्ते ไทย ½ ² Ⅷ ㋿ \u{301}e\u{301} ﬁ\n\
    🙂👩‍👩‍👧‍👦🇩🇪 \u{a0}nbsp\u{2003}em \u{200b}zero \u{feff}bom İıſß ǅ ᾳ <s> </s> <|im_end|> <unk> [INST]\n\
    a_b-c/d\\e@f#g 1234567890 12 3456 'tis don't DON'T 'Ve x're ''' \"\"\" ... ?!?! --- === \u{7}\u{1b}[0m end";

/// Ends every text of the vocabularies' test files.
const END: &str = "\n__ggml_vocab_test__\n";

/// Texts and tokens that come with llama.cpp's vocabularies.
#[test]
fn vocabularies_of_llama_cpp() {
    let dir = var("LITTLEBIT_LLAMA_SOURCE").join("models");
    for name in ["gpt-2", "llama-bpe", "qwen2", "deepseek-coder", "llama-spm"] {
        let model = dir.join(format!("ggml-vocab-{name}.gguf"));
        let t = tokenizer(&model);
        let with = |suffix: &str| std::fs::read_to_string(format!("{}{suffix}", model.display())).unwrap();
        let texts = with(".inp");
        let expected = with(".out");
        let mut lines = expected.lines();
        let mut compared = 0;
        for text in texts.strip_suffix(END).unwrap_or(&texts).split(END) {
            let want: Vec<u32> =
                lines.next().unwrap().split_whitespace().map(|n| n.parse().unwrap()).collect();
            assert_eq!(t.encode(text), want, "{name}: {text:?}");
            compared += 1;
        }
        assert!(compared > 30, "{name}: only {compared} texts");
    }
}

#[test]
fn mixed_text_as_llama_tokenize_has_it() {
    let dir = var("LITTLEBIT_LLAMA_SOURCE").join("models");
    let vocabulary = |n: &str| dir.join(format!("ggml-vocab-{n}.gguf"));
    let mut models: Vec<PathBuf> =
        ["gpt-2", "llama-bpe", "qwen2", "deepseek-coder", "llama-spm", "phi-3"].map(vocabulary).to_vec();
    models.push(var("LITTLEBIT_MODEL"));
    let text = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(text.path(), MIXED).unwrap();
    for model in models {
        let run = Command::new(var("LITTLEBIT_STOCK").join("bin/llama-tokenize"))
            .args(["--ids", "--no-bos", "--no-parse-special", "--log-disable", "-m"])
            .arg(&model)
            .arg("-f")
            .arg(text.path())
            .output()
            .unwrap();
        let out = String::from_utf8_lossy(&run.stdout);
        assert!(run.status.success(), "{}: {}", model.display(), String::from_utf8_lossy(&run.stderr));
        let list = out.trim().trim_start_matches('[').trim_end_matches(']');
        let want: Vec<u32> = list.split(", ").map(|n| n.parse().unwrap()).collect();
        let t = tokenizer(&model);
        let ours = t.encode(MIXED);
        let at = ours.iter().zip(&want).position(|(a, b)| a != b).unwrap_or(ours.len().min(want.len()));
        let near = |x: &[u32]| t.decode(&x[at.saturating_sub(3)..(at + 5).min(x.len())]);
        assert!(ours == want, "{}: token {at}: {:?} against {:?}", model.display(), near(&ours), near(&want));
    }
}

//! How text is cut into words before byte pairs are merged, by `tokenizer.ggml.pre`.

/// A pre-tokenizer.
#[derive(Clone, Copy, Debug)]
pub struct PreTokenizer {
    names: &'static [&'static str],
    /// Applied in turn; each cuts the pieces of the one before into its matches and what lies between.
    pub expressions: &'static [&'static str],
    /// Words of the vocabulary are taken whole, without merges.
    pub ignore_merges: bool,
    /// A beginning token is added unless the model says otherwise.
    pub add_bos: bool,
}

const ENGLISH: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";

const KNOWN: [PreTokenizer; 6] = [
    PreTokenizer { names: &["gpt-2"], expressions: &[ENGLISH], ignore_merges: false, add_bos: false },
    PreTokenizer {
        names: &["smollm", "codeshell"],
        expressions: &[r"\p{N}", ENGLISH],
        ignore_merges: false,
        add_bos: false,
    },
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3"],
        expressions: &[
            r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        ignore_merges: true,
        add_bos: true,
    },
    PreTokenizer {
        names: &["qwen2", "deepseek-r1-qwen"],
        expressions: &[
            r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        ignore_merges: false,
        add_bos: false,
    },
    PreTokenizer {
        names: &["deepseek-coder"],
        expressions: &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}"],
        ignore_merges: false,
        add_bos: false,
    },
    PreTokenizer {
        names: &["tekken"],
        expressions: &[
            r"[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))*((?=[\p{L}])([^A-Z]))+|[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))+((?=[\p{L}])([^A-Z]))*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        ignore_merges: true,
        add_bos: true,
    },
];

/// The pre-tokenizer called `name`.
pub fn find(name: &str) -> Option<&'static PreTokenizer> {
    KNOWN.iter().find(|p| p.names.contains(&name))
}

/// All names.
pub fn names() -> Vec<&'static str> {
    KNOWN.iter().flat_map(|p| p.names).copied().collect()
}

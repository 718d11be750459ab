//! A finished conversion for people outside the terminal: a page to read and a card for a hub.
//!
//! Both are functions of the [`Report`] alone, so equal reports give equal bytes. They are made to be published: of a
//! path only the file's name is shown, and nothing that comes from a model or a file system can add markup.

mod card;
mod html;
mod plot;

pub use card::model_card;
pub use html::html;

use crate::job::report::Evaluation;
use crate::job::{Report, file_name};
use crate::verify::{Coherence, Writing};

/// `bytes` as a person reads it.
pub fn size(bytes: u64) -> String {
    match bytes {
        b if b >= 1 << 30 => format!("{:.2} GiB", b as f64 / f64::from(1 << 30)),
        b if b >= 1 << 20 => format!("{:.1} MiB", b as f64 / f64::from(1 << 20)),
        b => format!("{:.1} KiB", b as f64 / 1024.0),
    }
}

/// `attn_q` of `blk.7.attn_q.weight`: matrices of one class do the same job in different blocks.
pub fn class(name: &str) -> &str {
    let base = name.strip_suffix(".weight").unwrap_or(name);
    base.rsplit('.').next().unwrap_or(base)
}

/// `n` with its digits in groups of three.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let groups = digits.as_bytes().rchunks(3).rev();
    let groups: Vec<&str> = groups.map(|g| std::str::from_utf8(g).expect("digits are ASCII")).collect();
    groups.join(",")
}

/// A wall time in the units that fit it.
fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

/// Text that means the same inside elements and quoted attributes of HTML.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            '\n' | '\r' | '\t' => out.push(c),
            // HTML has no way to hold other control characters.
            c if c.is_control() => out.push(char::REPLACEMENT_CHARACTER),
            c => out.push(c),
        }
    }
    out
}

/// What [`figures`] are, in order.
const FIGURES: [&str; 8] = [
    "perplexity",
    "source's perplexity",
    "ratio",
    "KLD mean",
    "KLD median",
    "KLD 99.9 %",
    "same top %",
    "tokens",
];

/// The comparison on one text: each figure as it is shown and as a number.
fn figures(e: &Evaluation) -> [(String, f64); 8] {
    let c = &e.comparison;
    let fixed = |value: f64, digits: usize| (format!("{value:.digits$}"), value);
    let with_error =
        |value: f64, error: f64, digits: usize| (format!("{value:.digits$} ± {error:.digits$}"), value);
    [
        with_error(c.perplexity.value, c.perplexity.error, 3),
        with_error(c.source_perplexity.value, c.source_perplexity.error, 3),
        fixed(c.perplexity.value / c.source_perplexity.value, 3),
        with_error(c.kld.value, c.kld.error, 4),
        fixed(c.kld_median, 4),
        fixed(c.kld_999, 3),
        with_error(100.0 * c.same_top.value, 100.0 * c.same_top.error, 2),
        (grouped(c.tokens as u64), c.tokens as f64),
    ]
}

/// What [`writing`] are, in order.
const WRITING: [&str; 5] =
    ["repeated, most likely %", "repeated, drawn %", "distinct pairs %", "entropy", "surprise to the source"];

/// What is said of [`WRITING`].
fn about_writing(c: &Coherence) -> String {
    format!(
        "Both models went on with {} fixed beginnings by {} tokens. Repeated is the share of runs of four tokens that stood in \
         the same text before, once with the most likely tokens and once with drawn ones; distinct is the share of different \
         pairs of tokens among all, drawn. Entropy is that of a model's own predictions and surprise how unlikely the source \
         finds what was drawn, both in nats a token.",
        c.continuations.len(),
        c.tokens
    )
}

/// Figures of what a model has written: each as it is shown and as a number.
fn writing(w: &Writing) -> [(String, f64); WRITING.len()] {
    let percent = |share: f64| (format!("{:.1}", 100.0 * share), share);
    let nats = |x: f64| (format!("{x:.3}"), x);
    [
        percent(w.repeated_likely),
        percent(w.repeated_drawn),
        percent(w.distinct),
        nats(w.entropy),
        nats(w.surprise),
    ]
}

/// What a reader must know of a result that no text has tuned.
fn untuned(report: &Report) -> Option<String> {
    (!report.calibrated()).then(|| {
        format!(
            "This model is not tuned. Its rebuilt weights are off by {:.0} % on average (relative Frobenius error), and a \
             model that is factorized layer by layer and not tuned afterwards usually writes nonsense. Use it to test \
             runtimes and kernels, not to read its text.",
            100.0 * report.mean_error
        )
    })
}

/// The texts that the result was tuned on.
fn calibration(report: &Report) -> String {
    let mut texts: Vec<String> = report.calibration.iter().map(|p| file_name(p)).collect();
    if report.generated_windows > 0 {
        texts.push(format!("{} windows of text that the source wrote", report.generated_windows));
    }
    if texts.is_empty() { "none".to_owned() } else { texts.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::report::{KeptReport, MatrixReport, Sample, StageReport};
    use crate::verify::{Comparison, Continuation, Estimate};

    /// A matrix of the example.
    pub(super) fn matrix(name: &str, error: f64) -> MatrixReport {
        MatrixReport {
            name: name.to_owned(),
            d_out: 1536,
            d_in: 576,
            experts: 1,
            rank: 416,
            paths: 1,
            bits: 884_736,
            bpw: 0.9876,
            error,
            weighted_error: 0.2345,
            seconds: 3.21,
        }
    }

    /// What a model and its source wrote.
    fn coherence() -> Coherence {
        let writing = |repeated_likely, entropy, surprise| Writing {
            repeated_likely,
            repeated_drawn: 0.0123,
            distinct: 0.8765,
            entropy,
            surprise,
        };
        Coherence {
            tokens: 64,
            model: writing(0.4321, 3.3333, 5.5555),
            source: writing(0.2109, 3.1111, 3.2222),
            continuations: vec![Continuation {
                kind: "story".to_owned(),
                prompt: "Once <upon>".to_owned(),
                likely: "a & time".to_owned(),
                source_likely: "a_time".to_owned(),
                drawn: "many | moons".to_owned(),
                source_drawn: "there *was*".to_owned(),
            }],
        }
    }

    /// A report in which every list has entries, with characters that mean something in HTML and Markdown.
    pub(super) fn example() -> Report {
        let estimate = |value, error| Estimate { value, error };
        let comparison = Comparison {
            tokens: 8160,
            source_perplexity: estimate(10.0, 0.25),
            perplexity: estimate(25.5, 0.5),
            kld: estimate(0.98768, 0.01234),
            kld_median: 0.4321,
            kld_999: 7.6543,
            same_top: estimate(0.5678, 0.0055),
        };
        let sample = Sample {
            prompt: "if a < b && c > d {\n    it's".to_owned(),
            continuation: "</td><b>\"bold\"</b>".to_owned(),
            source: "the source's <text>".to_owned(),
        };
        Report {
            tool: "littlebit-convert 0.1.0".to_owned(),
            input: "secret/models/base-f16.gguf".into(),
            output: "secret/models/base-LB1.0.gguf".into(),
            form: "littlebit".to_owned(),
            method: "lb-admm paths=1 effort=fast".to_owned(),
            seed: 4711,
            threads: 2,
            device: "cpu".to_owned(),
            imatrix: None,
            calibration: vec!["secret/texts/prose.txt".into()],
            generated_windows: 256,
            evaluations: vec![Evaluation {
                text: "secret/texts/a|b.txt".into(),
                windows: 32,
                sample,
                comparison,
            }],
            coherence: Some(coherence()),
            failures: Vec::new(),
            bpw: 0.9998,
            bpw_file: 2.5912,
            n_params: 134_515_008,
            factorized_weights: 106_168_320,
            bytes: 45_300_000,
            mean_error: 0.4567,
            seconds: 754.0,
            stages: vec![
                StageReport { name: "factorize".into(), seconds: 700.0, peak_rss: 1 << 30 },
                StageReport { name: "write".into(), seconds: 54.0, peak_rss: 3 << 29 },
            ],
            matrices: vec![
                matrix("blk.0.attn_q.weight", 0.3111),
                matrix("blk.1.attn_q.weight", 0.3222),
                matrix("blk.10.<script>alert(1)</script>.weight", 0.3333),
                matrix("no_block.weight", 0.3444),
            ],
            kept: vec![KeptReport {
                name: "token_embd.weight".to_owned(),
                dims: vec![576, 49152],
                r#type: "q6_K".to_owned(),
                bytes: 23_224_320,
                reason: "embeddings & <more>".to_owned(),
            }],
        }
    }

    /// The example of a run that had nothing to do.
    pub(super) fn empty() -> Report {
        Report {
            evaluations: Vec::new(),
            coherence: None,
            matrices: Vec::new(),
            kept: Vec::new(),
            stages: Vec::new(),
            ..example()
        }
    }

    #[test]
    fn amounts_are_shown_in_fitting_units() {
        assert_eq!([size(512), size(3 << 19), size(5 << 29)], ["0.5 KiB", "1.5 MiB", "2.50 GiB"]);
        assert_eq!([grouped(0), grouped(999), grouped(1_234_567)], ["0", "999", "1,234,567"]);
        let times = [0.04, 59.4, 59.7, 754.0, 3600.0, 7384.0].map(duration);
        assert_eq!(times, ["0.0 s", "59.4 s", "1 min 00 s", "12 min 34 s", "1 h 00 min", "2 h 03 min"]);
    }

    #[test]
    fn names_lose_block_and_folder() {
        assert_eq!(class("blk.7.attn_q.weight"), "attn_q");
        assert_eq!([class("output"), class("")], ["output", ""]);
        assert_eq!(file_name(std::path::Path::new("secret/a.txt")), "a.txt");
        assert_eq!(calibration(&example()), "prose.txt, 256 windows of text that the source wrote");
    }

    #[test]
    fn markup_and_control_characters_are_escaped() {
        assert_eq!(escape("<a b=\"c\" d='e'>&amp;"), "&lt;a b=&quot;c&quot; d=&#39;e&#39;&gt;&amp;amp;");
        assert_eq!(escape("a\n\tb\0\u{1b}"), "a\n\tb\u{fffd}\u{fffd}");
    }

    #[test]
    fn figures_have_their_digits() {
        let shown = figures(&example().evaluations[0]).map(|(shown, _)| shown);
        let expected = [
            "25.500 ± 0.500",
            "10.000 ± 0.250",
            "2.550",
            "0.9877 ± 0.0123",
            "0.4321",
            "7.654",
            "56.78 ± 0.55",
            "8,160",
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn only_a_result_without_texts_is_untuned() {
        let mut report = example();
        assert_eq!(untuned(&report), None);
        report.calibration.clear();
        assert_eq!(untuned(&report), None);
        report.generated_windows = 0;
        assert!(untuned(&report).is_some_and(|text| text.contains("off by 46 %")));
        assert_eq!(calibration(&report), "none");
    }
}

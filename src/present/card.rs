//! The report as the README.md of a model on the Hugging Face Hub.

use super::{
    FIGURES, WRITING, about_writing, calibration, figures, file_name, grouped, size, untuned, writing,
};
use crate::job::Report;

/// How files of one form are told apart from others, and used.
struct Form {
    /// Lines of the front matter.
    library: &'static str,
    tags: &'static [&'static str],
    /// What the file is.
    what: String,
    /// Commands.
    use_it: String,
}

/// A model card: front matter, sizes, figures, how to run the file and how it was made.
///
/// The report does not know the base model's id on the Hub nor its licence; a comment asks the publisher for them.
pub fn model_card(report: &Report) -> String {
    let name = file_name(&report.output);
    let form = form(report, &name);
    let tags: String = form.tags.iter().map(|tag| format!("  - {tag}\n")).collect();
    let mut out = format!(
        "---\n{}model_name: {}\ntags:\n{tags}base_model_relation: quantized\n---\n\n\
         <!-- Publisher: add `base_model` and `license` to the block above. -->\n\n# {}\n\n",
        form.library,
        quoted(&name),
        inline(&name)
    );
    if !report.failures.is_empty() {
        out += "> **Rejected.** This result did not pass what was asked of it:\n";
        out += &report.failures.iter().map(|f| format!("> - {}\n", inline(f))).collect::<String>();
        out += "\n";
    }
    if let Some(text) = untuned(report) {
        out += &format!("> **Warning.** {}\n\n", inline(&text));
    }
    out += &format!("{}\n\n", form.what);
    let sizes = [
        ("file size", size(report.bytes)),
        ("bits per factorized weight", format!("{:.4}", report.bpw)),
        ("bits per weight, whole file", format!("{:.4}", report.bpw_file)),
        ("factorized weights", grouped(report.factorized_weights)),
        ("weights", grouped(report.n_params)),
        ("mean relative error of the rebuilt weights", format!("{:.4}", report.mean_error)),
    ];
    out += &row(["", "value"].map(str::to_owned));
    out += "|---|---|\n";
    out += &sizes.map(|(what, value)| row([what.to_owned(), value])).concat();
    out += &format!("\n## Compared with the source\n\n{}\n", evaluations(report));
    out += &writing_section(report);
    out += &format!("## Use\n\n{}\n", form.use_it);
    out += &format!("## How it was made\n\n{}", making(report));
    out
}

fn form(report: &Report, name: &str) -> Form {
    let factors = format!(
        "A language model whose linear layers are products of binary matrices and scales (LittleBit, arXiv:2506.13771): \
         {} of its {} weights take {:.4} bits each.",
        grouped(report.factorized_weights),
        grouped(report.n_params),
        report.bpw
    );
    let gguf = ["gguf", "littlebit", "quantized", "llama.cpp"].as_slice();
    let library = "library_name: gguf\n";
    let run = |name: &str| format!("llama-completion -m {} -p \"Hello\"", shell(name));
    if report.form.starts_with("lossy") {
        let what = format!(
            "{factors} This file is a standard GGUF ({}) of the weights rebuilt from those factors: it has their quality, \
             not their size.",
            inline(&report.form)
        );
        let use_it = format!("Any llama.cpp runs it:\n\n```sh\n{}\n```\n", run(name));
        return Form { library, tags: gguf, what, use_it };
    }
    let patched =
        "a llama.cpp with the littlebit patches; `scripts/llama` of the littlebit project builds one";
    if report.form.ends_with("container") {
        let model = format!("{}.gguf", name.strip_suffix(".littlebit").unwrap_or(name));
        let use_it = format!(
            "For PyTorch as it is. As a GGUF it needs {patched}:\n\n```sh\nlittlebit-convert {} {}\n{}\n```\n",
            shell(name),
            shell(&model),
            run(&model)
        );
        let what = format!("{factors} This file holds them as safetensors.");
        return Form { library: "", tags: &["safetensors", "littlebit", "quantized"], what, use_it };
    }
    let what = format!("{factors} Every GGUF tool can list the file; stock llama.cpp cannot run it.");
    let use_it = format!("It needs {patched}:\n\n```sh\n{}\n```\n", run(name));
    Form { library, tags: gguf, what, use_it }
}

fn evaluations(report: &Report) -> String {
    if report.evaluations.is_empty() {
        return "It was compared with its source on no text.\n".to_owned();
    }
    let cells = |first: String, rest: [String; FIGURES.len()]| row([first].into_iter().chain(rest));
    let mut out = cells("text".to_owned(), FIGURES.map(str::to_owned));
    out += &format!("|---{}|\n", "|---:".repeat(FIGURES.len()));
    for e in &report.evaluations {
        out += &cells(file_name(&e.text), figures(e).map(|(shown, _)| shown));
    }
    out + "\nKLD is the divergence from the source in nats; \"same top\" is how often both hold the same token most likely. \
           ± is one standard error.\n"
}

/// Repetition and entropy of what both models write, and how both go on with the texts compared on.
fn writing_section(report: &Report) -> String {
    let Some(c) = &report.coherence else { return String::new() };
    let mut out = format!("### Text that it writes\n\n{}\n\n", inline(&about_writing(c)));
    out += &row(["model"].into_iter().chain(WRITING).map(str::to_owned));
    out += &format!("|---{}|\n", "|---:".repeat(WRITING.len()));
    for (name, w) in [("this model", &c.model), ("its source", &c.source)] {
        out += &row([name.to_owned()].into_iter().chain(writing(w).map(|(shown, _)| shown)));
    }
    out += "\n";
    for e in &report.evaluations {
        out += &format!(
            "- {}: given \"{}\", it goes on \"{}\", its source \"{}\"\n",
            inline(&file_name(&e.text)),
            inline(&e.sample.prompt),
            inline(&e.sample.continuation),
            inline(&e.sample.source)
        );
    }
    if report.evaluations.is_empty() { out } else { out + "\n" }
}

fn making(report: &Report) -> String {
    let mut all = vec![
        ("source", file_name(&report.input)),
        ("method", report.method.clone()),
        ("calibration", calibration(report)),
    ];
    all.extend(report.imatrix.as_ref().map(|path| ("importance matrix", file_name(path))));
    all.extend([("seed", report.seed.to_string()), ("tool", report.tool.clone())]);
    all.iter().map(|(what, value)| format!("- {what}: {}\n", inline(value))).collect()
}

/// A row of a table.
fn row(cells: impl IntoIterator<Item = String>) -> String {
    let cells: Vec<String> = cells.into_iter().map(|c| inline(&c)).collect();
    format!("| {} |\n", cells.join(" | "))
}

/// Text that stays text, on one line, anywhere in Markdown: in a table, too.
fn inline(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if "\\`*_[]<>&|~#$".contains(c) {
            out.push('\\');
        }
        out.push(if c.is_control() { ' ' } else { c });
    }
    out
}

/// A string of YAML in double quotes.
fn quoted(text: &str) -> String {
    let mut out = "\"".to_owned();
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            // Not printable for YAML, or a line break of its own.
            c if c.is_control() || ['\u{2028}', '\u{2029}', '\u{feff}'].contains(&c) => {
                out += &format!("\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out + "\""
}

/// A word of a shell command on one line.
fn shell(word: &str) -> String {
    if !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "._-+".contains(c)) {
        return word.to_owned();
    }
    let line: String = word.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    format!("'{}'", line.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{empty, example};
    use super::*;

    #[test]
    fn front_matter_comes_first_and_ends() {
        let card = model_card(&example());
        let expected = "---\nlibrary_name: gguf\nmodel_name: \"base-LB1.0.gguf\"\ntags:\n  - gguf\n  - littlebit\n  \
                        - quantized\n  - llama.cpp\nbase_model_relation: quantized\n---\n\n<!-- Publisher";
        assert!(card.starts_with(expected), "{card}");
        assert!(!card.contains("base_model:"));
    }

    #[test]
    fn figures_and_provenance_stand_in_the_card() {
        let card = model_card(&example());
        for text in [
            "# base-LB1.0.gguf\n",
            "| file size | 43.2 MiB |",
            "| bits per factorized weight | 0.9998 |",
            "| bits per weight, whole file | 2.5912 |",
            "| a\\|b.txt | 25.500 ± 0.500 | 10.000 ± 0.250 | 2.550 | 0.9877 ± 0.0123 | 0.4321 | 7.654 | 56.78 ± 0.55 | 8,160 |",
            "| this model | 43.2 | 1.2 | 87.6 | 3.333 | 5.556 |",
            "it goes on \"\\</td\\>",
            "llama-completion -m base-LB1.0.gguf -p",
            "`scripts/llama`",
            "- source: base-f16.gguf\n",
            "- method: lb-admm paths=1 effort=fast\n",
            "- calibration: prose.txt, 256 windows",
            "- seed: 4711\n",
            "- tool: littlebit-convert 0.1.0\n",
        ] {
            assert!(card.contains(text), "{text}\n{card}");
        }
        assert!(!card.contains("secret") && !card.contains("importance matrix"));
    }

    #[test]
    fn rows_have_as_many_cells_as_their_heads() {
        let card = model_card(&example());
        let bars = |line: &str| line.matches('|').count() - line.matches("\\|").count();
        let tables: Vec<Vec<usize>> = card
            .split("\n\n")
            .filter(|part| part.starts_with('|'))
            .map(|part| part.lines().map(bars).collect())
            .collect();
        assert_eq!(tables, [vec![3; 8], vec![10; 3], vec![7; 4]]);
    }

    #[test]
    fn doubts_are_told() {
        let mut report = example();
        assert!(!model_card(&report).contains("\n> "));
        report.failures = vec!["a_b.txt: too bad".to_owned()];
        let card = model_card(&report);
        assert!(card.contains("\n> **Rejected.**") && card.contains("\n> - a\\_b.txt: too bad\n"), "{card}");
        report.calibration.clear();
        report.generated_windows = 0;
        let card = model_card(&report);
        assert!(card.contains("\n> **Warning.** This model is not tuned") && card.contains("off by 46 %"));
        assert!(card.contains("- calibration: none\n"));
        assert!(model_card(&empty()).contains("on no text"));
    }

    #[test]
    fn other_forms_are_used_in_other_ways() {
        let mut report = example();
        report.form = "lossy q8_0".to_owned();
        let card = model_card(&report);
        assert!(
            card.contains("Any llama.cpp runs it")
                && !card.contains("patches")
                && card.contains("lossy q8\\_0")
        );
        report.form = "littlebit container".to_owned();
        report.output = "secret/it's.littlebit".into();
        let card = model_card(&report);
        let command = "littlebit-convert 'it'\\''s.littlebit' 'it'\\''s.gguf'\n";
        assert!(
            card.contains(command) && !card.contains("library_name") && !card.contains("- gguf"),
            "{card}"
        );
    }

    #[test]
    fn text_stays_text() {
        assert_eq!(inline("a|b\nc <d> *e* `f`"), "a\\|b c \\<d\\> \\*e\\* \\`f\\`");
        assert_eq!(quoted("a\"b\\c\nd: #e"), "\"a\\\"b\\\\c\\u000ad: #e\"");
        let words = [shell("a-b_1.gguf"), shell("a b"), shell("$x\n")];
        assert_eq!(words, ["a-b_1.gguf", "'a b'", "'$x?'"]);
    }
}

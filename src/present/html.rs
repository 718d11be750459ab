//! The report as one HTML page that needs nothing but itself.

use super::{
    FIGURES, WRITING, about_writing, calibration, duration, escape, figures, file_name, grouped,
    plot::over_blocks, size, untuned, writing,
};
use crate::job::Report;
use crate::job::report::{Evaluation, KeptReport, MatrixReport, StageReport};
use crate::verify::Writing;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
/// Binds the browser to what the page promises: no request leaves it.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'";

/// The whole report as a self-contained HTML5 file: figures, samples, charts by block, and every tensor.
pub fn html(report: &Report) -> String {
    let name = escape(&file_name(&report.output));
    let body = [
        banners(report),
        cards(report),
        section("Compared with the source", &evaluations(report)),
        section("Text that it writes", &writing_table(report)),
        section("Samples", &samples(report)),
        section("By block", &plots(report)),
        section("Factorized matrices", &matrices(&report.matrices)),
        section("Tensors that were not factorized", &kept(&report.kept)),
        section("Stages", &stages(&report.stages)),
    ]
    .concat();
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{name} - littlebit</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n\
         <h1>{name}</h1>\n{body}</main>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n"
    )
}

/// A part with a title, unless there is nothing in it.
fn section(title: &str, body: &str) -> String {
    match body {
        "" => String::new(),
        _ => format!("<section>\n<h2>{title}</h2>\n{body}</section>\n"),
    }
}

/// What a reader must know first.
fn banners(report: &Report) -> String {
    let mut out = String::new();
    if !report.failures.is_empty() {
        let failures: Vec<String> =
            report.failures.iter().map(|f| format!("<li>{}</li>\n", escape(f))).collect();
        out += &format!(
            "<div class=\"banner bad\" role=\"alert\">\n<p><strong>Rejected.</strong> This result did not pass \
             what was asked of it:</p>\n<ul>\n{}</ul>\n</div>\n",
            failures.concat()
        );
    }
    if let Some(text) = untuned(report) {
        out += &format!("<div class=\"banner note\"><p>{}</p></div>\n", escape(&text));
    }
    out
}

fn cards(report: &Report) -> String {
    let mut all = vec![
        ("File size", size(report.bytes)),
        ("Bits per factorized weight", format!("{:.4}", report.bpw)),
        ("Bits per weight, whole file", format!("{:.4}", report.bpw_file)),
        (
            "Factorized weights",
            format!("{} of {}", grouped(report.factorized_weights), grouped(report.n_params)),
        ),
        ("Mean relative error", format!("{:.4}", report.mean_error)),
        ("Time", duration(report.seconds)),
        ("Threads", report.threads.to_string()),
        ("Factorized on", report.device.clone()),
    ];
    // 0 where the system does not tell.
    let peak = report.stages.iter().map(|s| s.peak_rss).max().filter(|&bytes| bytes > 0);
    all.extend(peak.map(|bytes| ("Peak memory", size(bytes))));
    all.extend([("Form", report.form.clone()), ("Method", report.method.clone())]);
    all.push(("Calibration", calibration(report)));
    all.extend(report.imatrix.as_ref().map(|path| ("Importance matrix", file_name(path))));
    all.extend([
        ("Seed", report.seed.to_string()),
        ("Source", file_name(&report.input)),
        ("Tool", report.tool.clone()),
    ]);
    let all =
        all.iter().map(|(what, value)| format!("<div><dt>{what}</dt><dd>{}</dd></div>\n", escape(value)));
    format!("<dl class=\"cards\">\n{}</dl>\n", all.collect::<String>())
}

fn evaluations(report: &Report) -> String {
    if report.evaluations.is_empty() {
        return "<p>The result was compared with its source on no text.</p>\n".to_owned();
    }
    let row = |e: &Evaluation| -> Vec<Cell> {
        let numbers = figures(e).map(|(shown, value)| Cell::Number(shown, value));
        [Cell::Text(file_name(&e.text))].into_iter().chain(numbers).collect()
    };
    let rows: Vec<Vec<Cell>> = report.evaluations.iter().map(row).collect();
    table("Comparison with the source", &[&["text"][..], &FIGURES].concat(), &rows)
}

/// Repetition and entropy of what both models write.
fn writing_table(report: &Report) -> String {
    let Some(c) = &report.coherence else { return String::new() };
    let row = |name: &str, w: &Writing| -> Vec<Cell> {
        let numbers = writing(w).map(|(shown, value)| Cell::Number(shown, value));
        [Cell::Text(name.to_owned())].into_iter().chain(numbers).collect()
    };
    let rows = [row("this model", &c.model), row("its source", &c.source)];
    let table = table("Text that both models write", &[&["model"][..], &WRITING].concat(), &rows);
    format!("<p>{}</p>\n{table}", about_writing(c))
}

/// Both models' continuations of the texts compared on, and of the fixed beginnings.
fn samples(report: &Report) -> String {
    let pair = |labels: [&str; 2], ours: &str, theirs: &str| {
        format!(
            "<div class=\"pair\">\n<div>\n<p class=\"label\">{}</p>\n<blockquote>{}</blockquote>\n</div>\n\
             <div>\n<p class=\"label\">{}</p>\n<blockquote>{}</blockquote>\n</div>\n</div>\n",
            labels[0],
            escape(ours),
            labels[1],
            escape(theirs)
        )
    };
    let given = |prompt: &str| {
        format!("<p class=\"label\">Given</p>\n<blockquote class=\"given\">{}</blockquote>\n", escape(prompt))
    };
    let likely = ["This model goes on, most likely tokens", "Its source"];
    let mut out = String::new();
    for e in &report.evaluations {
        out += &format!("<h3>{}</h3>\n{}", escape(&file_name(&e.text)), given(&e.sample.prompt));
        out += &pair(likely, &e.sample.continuation, &e.sample.source);
    }
    for (i, c) in report.coherence.iter().flat_map(|c| &c.continuations).enumerate() {
        // One shows what is in the others.
        let open = if i == 0 { " open" } else { "" };
        out += &format!("<details{open}>\n<summary>{}</summary>\n{}", escape(&c.kind), given(&c.prompt));
        out += &pair(likely, &c.likely, &c.source_likely);
        out += &pair(["This model, drawn tokens", "Its source"], &c.drawn, &c.source_drawn);
        out += "</details>\n";
    }
    out
}

fn plots(report: &Report) -> String {
    let of =
        |value: fn(&MatrixReport) -> f64| report.matrices.iter().map(move |m| (m.name.as_str(), value(m)));
    let all = over_blocks("Relative error of the rebuilt weights", "relative error", of(|m| m.error))
        + &over_blocks("Bits per weight of the factors", "bits per weight", of(|m| m.bpw));
    if all.is_empty() { all } else { format!("<div class=\"plots\">\n{all}</div>\n") }
}

fn matrices(matrices: &[MatrixReport]) -> String {
    let heads =
        ["name", "shape", "experts", "rank", "paths", "bpw", "error", "weighted error", "seconds", "size"];
    let whole = |n: usize| Cell::Number(n.to_string(), n as f64);
    let row = |m: &MatrixReport| {
        vec![
            Cell::Text(m.name.clone()),
            Cell::Number(format!("{} x {}", m.d_out, m.d_in), m.d_out as f64 * m.d_in as f64),
            whole(m.experts),
            whole(m.rank),
            whole(m.paths),
            Cell::Number(format!("{:.4}", m.bpw), m.bpw),
            Cell::Number(format!("{:.4}", m.error), m.error),
            Cell::Number(format!("{:.4}", m.weighted_error), m.weighted_error),
            Cell::Number(format!("{:.1}", m.seconds), m.seconds),
            Cell::Number(size(m.bits / 8), m.bits as f64),
        ]
    };
    table("Factorized matrices", &heads, &matrices.iter().map(row).collect::<Vec<_>>())
}

fn kept(kept: &[KeptReport]) -> String {
    let row = |k: &KeptReport| {
        let dims: Vec<String> = k.dims.iter().map(u64::to_string).collect();
        vec![
            Cell::Text(k.name.clone()),
            Cell::Text(k.r#type.clone()),
            Cell::Number(dims.join(" x "), k.dims.iter().map(|&d| d as f64).product()),
            Cell::Number(size(k.bytes), k.bytes as f64),
            Cell::Text(k.reason.clone()),
        ]
    };
    let heads = ["name", "type", "dimensions, fastest first", "size", "reason"];
    table("Tensors that were not factorized", &heads, &kept.iter().map(row).collect::<Vec<_>>())
}

fn stages(stages: &[StageReport]) -> String {
    let row = |s: &StageReport| {
        vec![
            Cell::Text(s.name.to_string()),
            Cell::Number(format!("{:.1}", s.seconds), s.seconds),
            Cell::Number(size(s.peak_rss), s.peak_rss as f64),
        ]
    };
    table("Stages", &["stage", "seconds", "peak RSS so far"], &stages.iter().map(row).collect::<Vec<_>>())
}

/// A cell as it is shown; a number also as what its column is sorted by.
enum Cell {
    Text(String),
    Number(String, f64),
}

/// A table whose columns can be sorted; wider than the page it scrolls by itself. Nothing without rows.
fn table(label: &str, heads: &[&str], rows: &[Vec<Cell>]) -> String {
    let Some(first) = rows.first() else { return String::new() };
    let mut out = format!(
        "<div class=\"scroll\" role=\"region\" aria-label=\"{label}\" tabindex=\"0\">\n<table>\n<thead>\n<tr>"
    );
    for (head, cell) in heads.iter().zip(first) {
        let class = if matches!(cell, Cell::Number(..)) { " class=\"n\"" } else { "" };
        out += &format!("<th scope=\"col\"{class}><button type=\"button\">{head}</button></th>");
    }
    out += "</tr>\n</thead>\n<tbody>\n";
    for row in rows {
        out += "<tr>";
        for cell in row {
            out += &match cell {
                Cell::Text(shown) => format!("<td>{}</td>", escape(shown)),
                Cell::Number(shown, value) => {
                    format!("<td class=\"n\" data-value=\"{value}\">{}</td>", escape(shown))
                }
            };
        }
        out += "</tr>\n";
    }
    out + "</tbody>\n</table>\n</div>\n"
}

#[cfg(test)]
mod tests {
    use super::super::tests::{empty, example, matrix};
    use super::*;

    /// Opening and closing tags of `tag`.
    fn tags(page: &str, tag: &str) -> [usize; 2] {
        let opened = page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
        [opened, page.matches(&format!("</{tag}>")).count()]
    }

    #[test]
    fn what_comes_from_outside_is_escaped() {
        let mut report = example();
        report.output = "/x/<b>.gguf".into();
        report.failures = vec!["<i>text</i>".to_owned()];
        let page = html(&report);
        // Only the page's own script; the name stands in the table, in the legend and at its points.
        assert_eq!(tags(&page, "script"), [1, 1]);
        assert!(page.matches("&lt;script&gt;alert(1)&lt;/script&gt;").count() > 4);
        for text in [
            "if a &lt; b &amp;&amp; c &gt; d {\n    it&#39;s",
            "&lt;/td&gt;&lt;b&gt;&quot;bold&quot;&lt;/b&gt;",
            "embeddings &amp; &lt;more&gt;",
            "<title>&lt;b&gt;.gguf",
            "<li>&lt;i&gt;text&lt;/i&gt;</li>",
        ] {
            assert!(page.contains(text), "{text}");
        }
        assert_eq!([tags(&page, "b"), tags(&page, "i")], [[0, 0]; 2]);
    }

    #[test]
    fn figures_stand_in_the_page() {
        let page = html(&example());
        for figure in [
            "<dd>43.2 MiB</dd>",
            "<dd>0.9998</dd>",
            "<dd>2.5912</dd>",
            "<dd>106,168,320 of 134,515,008</dd>",
            "<dd>12 min 34 s</dd>",
            "<dd>1.50 GiB</dd>",
            "<dd>4711</dd>",
            ">25.500 ± 0.500</td>",
            ">2.550</td>",
            ">56.78 ± 0.55</td>",
            "data-value=\"0.3111\">0.3111</td>",
            ">1536 x 576</td>",
            ">576 x 49152</td>",
            ">108.0 KiB</td>",
            ">q6_K</td>",
            ">700.0</td>",
            ">43.2</td>",
            ">5.556</td>",
            ">87.6</td>",
        ] {
            assert!(page.contains(figure), "{figure}");
        }
    }

    #[test]
    fn the_page_needs_nothing_else_and_tells_no_folders() {
        let page = html(&example());
        for request in ["src=", "href=", "://", "url(", "@import", "fetch("] {
            assert!(!page.contains(request), "{request}");
        }
        assert!(page.contains("prose.txt") && page.contains("a|b.txt") && page.contains("base-f16.gguf"));
        assert!(!page.contains("secret"));
    }

    #[test]
    fn tags_are_balanced() {
        let page = html(&example());
        let five_tables = tags(&page, "table")[0] == 5 && tags(&page, "figure")[0] == 2;
        assert!(five_tables && tags(&page, "tr")[0] == 5 + 1 + 2 + 4 + 1 + 2, "{page}");
        for tag in [
            "html",
            "head",
            "style",
            "body",
            "main",
            "section",
            "div",
            "dl",
            "dd",
            "table",
            "thead",
            "tbody",
            "tr",
            "th",
            "td",
            "button",
            "svg",
            "g",
            "circle",
            "text",
            "ul",
            "li",
            "figure",
            "details",
            "summary",
            "blockquote",
            "p",
        ] {
            let [opened, closed] = tags(&page, tag);
            // Dots of the legend close themselves.
            let alone = if tag == "circle" { page.matches("r=\"3\"/>").count() } else { 0 };
            assert_eq!(opened, closed + alone, "{tag}");
            assert!(opened > 0, "{tag}");
        }
    }

    #[test]
    fn banners_stand_where_they_must() {
        let mut report = example();
        assert!(!html(&report).contains("class=\"banner"));
        report.failures = vec!["a.txt: perplexity is 9 times the source's".to_owned()];
        let page = html(&report);
        assert!(page.contains("banner bad") && page.contains("9 times the source&#39;s"));
        assert!(!page.contains("banner note"));
        report.failures.clear();
        report.calibration.clear();
        report.generated_windows = 0;
        let page = html(&report);
        assert!(page.contains("banner note") && page.contains("off by 46 %") && !page.contains("banner bad"));
    }

    #[test]
    fn one_block_and_no_matrix() {
        let mut report = empty();
        let page = html(&report);
        assert_eq!([tags(&page, "table"), tags(&page, "svg")], [[0, 0]; 2]);
        assert!(page.contains("on no text"));
        report.matrices = vec![matrix("blk.0.attn_q.weight", f64::NAN), matrix("blk.0.attn_k.weight", 0.5)];
        let page = html(&report);
        // Two charts, one of which has one dot less, and a swatch for each class that is drawn.
        assert_eq!(tags(&page, "svg"), [2 + 1 + 2; 2]);
        assert_eq!(page.matches("r=\"2.5\"").count(), 3);
        for svg in page.split("<svg").skip(1).map(|part| part.split("</svg>").next().unwrap()) {
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }
}

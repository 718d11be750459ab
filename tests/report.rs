//! The JSON of the real binary against the page that describes it, and results that are rejected.

mod support;

use littlebit::gguf::{Gguf, TensorDesc, Writer};
use serde_json::Value as Json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use support::checkpoint::{SMOLLM, Shape, write_gguf};
use support::{keys_hold_evaluation, ok, run, s};

const PAGE: &str = include_str!("../specs/report.md");

/// Types by path.
type Fields = BTreeMap<String, BTreeSet<String>>;

/// Fields of each heading of the page, by the heading.
fn documented() -> BTreeMap<&'static str, Fields> {
    let mut all: BTreeMap<&str, Fields> = BTreeMap::new();
    let mut heading = "";
    for line in PAGE.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            heading = title;
        } else if let Some(row) = line.strip_prefix("| `") {
            let mut cells = row.split('|').map(str::trim);
            let path = cells.next().unwrap().strip_suffix('`').expect(line);
            let types = cells.next().expect(line).split(" or ").map(str::to_owned).collect();
            let twice = all.entry(heading).or_default().insert(path.to_owned(), types);
            assert!(twice.is_none(), "{heading}: {path} stands there twice");
        }
    }
    all
}

/// Adds every path of `value`, which is at `path`, with its type.
fn collect(value: &Json, path: &str, out: &mut Fields) {
    let kind = match value {
        Json::Null => "null",
        Json::Bool(_) => "boolean",
        Json::Number(n) if n.is_u64() => "integer",
        Json::Number(_) => "number",
        Json::String(_) => "string",
        Json::Array(_) => "list",
        Json::Object(_) => "object",
    };
    if !path.is_empty() {
        out.entry(path.to_owned()).or_default().insert(kind.to_owned());
    }
    match value {
        Json::Object(fields) => {
            for (key, value) in fields {
                collect(value, format!("{path}.{key}").trim_start_matches('.'), out);
            }
        }
        // A pair of different things has places, a list has elements.
        Json::Array(all) => {
            let pair = all.len() == 2 && all[0].is_string() && !all[1].is_string();
            for (i, value) in all.iter().enumerate() {
                let at = if pair { i.to_string() } else { String::new() };
                collect(value, &format!("{path}[{at}]"), out);
            }
        }
        _ => {}
    }
}

/// Everything that was printed, by the heading of the page that describes it.
#[derive(Default)]
struct Printed(BTreeMap<String, Fields>);

impl Printed {
    /// One line of a conversion.
    fn event(&mut self, line: &str) {
        let mut value: Json = serde_json::from_str(line).expect(line);
        let mut heading = format!("Event `{}`", value["event"].as_str().expect(line));
        if value["event"] == "done" && value.get("report").is_none() {
            heading += " of a repacked model";
        } else if value["event"] == "done" {
            collect(&value["report"], "", self.0.entry("`report`".to_owned()).or_default());
            value["report"] = serde_json::json!({});
        }
        collect(&value, "", self.0.entry(heading).or_default());
    }

    /// The line of a verification; what it has in common with a report is described there.
    fn verification(&mut self, line: &str) {
        let mut value: Json = serde_json::from_str(line).expect(line);
        if let Some(coherence) = value.pointer_mut("/found/coherence").filter(|c| !c.is_null()) {
            collect(coherence, "coherence", self.0.entry("`report`".to_owned()).or_default());
            *coherence = serde_json::json!({});
        }
        let fields = self.0.entry("`verify --json`".to_owned()).or_default();
        collect(&value, "", fields);
    }
}

impl Printed {
    /// The line of another command; the keys of `littlebit.kv` are the file's.
    fn line(&mut self, heading: &str, line: &str) {
        let mut value: Json = serde_json::from_str(line).expect(line);
        if let Some(kv) = value.pointer_mut("/littlebit/kv") {
            assert!(kv.as_object().is_some_and(|kv| kv.contains_key("version")), "{kv}");
            *kv = serde_json::json!({});
        }
        collect(&value, "", self.0.entry(heading.to_owned()).or_default());
    }
}

/// A text in the words of the test model: two windows of 512 tokens and some.
fn text(dir: &Path) -> PathBuf {
    let path = dir.join("eval.txt");
    let words: Vec<&str> = (0u32..1400).map(|i| ["a", "ab", "b"][(i * i % 7 % 3) as usize]).collect();
    std::fs::write(&path, words.join(" ")).unwrap();
    path
}

/// Copies a file of F32 tensors; `edit` may change the values of each.
fn edited(file: &Path, copy: &Path, edit: impl Fn(&str, &mut Vec<f32>)) {
    let file = Gguf::open(file).unwrap();
    let tensors = file.tensors.iter();
    let tensors = tensors.map(|t| TensorDesc { name: t.name.clone(), dims: t.dims.clone(), ty: t.ty });
    let mut w = Writer::new(Vec::new(), &file.kv, tensors.collect(), 32).unwrap();
    for t in &file.tensors {
        let mut values = file.read_f32(t).unwrap();
        edit(&t.name, &mut values);
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        w.write_tensor(&t.name, &bytes).unwrap();
    }
    std::fs::write(copy, w.finish().unwrap()).unwrap();
}

/// Flags of a short calibrated run.
const SHORT: [&str; 8] =
    ["--generated-windows", "2", "--effort", "fast", "--tune-steps", "2", "--threads", "1"];

fn out_of(code: i32, args: &[&str]) -> String {
    let out = run(args);
    assert_eq!(out.status.code(), Some(code), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// Every path that the binary prints is on the page with its type, and the page has no others.
#[test]
fn the_page_names_every_field() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let (input, eval, rejected) =
        (write_gguf(dir.path(), &SMOLLM), text(dir.path()), path("o.gguf.rejected"));
    let (plain, json) = (path("p.gguf"), path("r.json"));
    let mut printed = Printed::default();
    let rule = ["--tensor-rule", "blk.1.ffn_down=rank:64"];

    let out = path("o.gguf");
    let calibrated = [s(&input), s(&out), "--calibration", s(&eval), "--eval", s(&eval), "--json"];
    let search = ["--report", s(&json), "--auto-bpw", "3..3.2", "--min-same-top", "1", "--block-passes", "1"];
    let lines = out_of(3, &[&calibrated[..], &search, &SHORT, &rule].concat());
    lines.lines().for_each(|line| printed.event(line));
    // The file has the report of the last line, nothing else.
    let last: Json = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!(last["report"], serde_json::from_slice::<Json>(&std::fs::read(&json).unwrap()).unwrap());
    // It was tuned on the text of its figures.
    assert!(lines.contains("eval.txt is a text of the calibration"), "{lines}");
    let info: Json = serde_json::from_str(&ok(&["info", s(&rejected), "--json"])).unwrap();
    let kv = &info["littlebit"]["kv"];
    assert_eq!(kv["evaluation.text"], serde_json::json!(["eval.txt"]));
    keys_hold_evaluation(kv, 0, &last["report"]["evaluations"][0]);

    // Statistics that saw nothing of a weight are warned of.
    let (imatrix, unseen) = (path("i.gguf"), path("unseen.gguf"));
    ok(&[&[s(&input), s(&plain), "--save-imatrix", s(&imatrix), "--rank", "32", "-q"], &SHORT[..]].concat());
    edited(&imatrix, &unseen, |name, values| {
        if name == "blk.0.attn_q.weight.counts" {
            values.fill(0.0);
        }
    });
    let other = path("q.gguf");
    let with = [s(&input), s(&other), "--imatrix", s(&unseen), "--rank", "32", "--json"];
    ok(&with).lines().for_each(|line| printed.event(line));
    ok(&[&[s(&input), "--dry-run", "--json"], &rule[..]].concat())
        .lines()
        .for_each(|line| printed.event(line));
    ok(&[s(&plain), s(&path("f.gguf")), "--lossy", "f16", "--json"]).lines().for_each(|l| printed.event(l));

    printed.verification(&ok(&["verify", s(&plain), "--json"]));
    let against = ["--against", s(&input), "--json"];
    printed.verification(&ok(&[&["verify", s(&plain)], &against[..]].concat()));
    let gate = ["--eval", s(&eval), "--min-same-top", "1"];
    printed.verification(&out_of(3, &[&["verify", s(&rejected)], &against[..], &gate].concat()));
    // A source of another form: a file without what the source has.
    let untied = tempfile::tempdir().unwrap();
    let foreign = write_gguf(untied.path(), &Shape { tied: false, ..SMOLLM });
    let against = ["--against", s(&foreign), "--json"];
    printed.verification(&out_of(3, &[&["verify", s(&plain)], &against[..]].concat()));

    for file in [&input, &plain] {
        printed.line("`info --json`", &ok(&["info", s(file), "--json"]));
    }
    for (a, b) in [(&plain, &other), (&input, &plain)] {
        printed.line("`diff --json`", &out_of(4, &["diff", s(a), s(b), "--json"]));
    }

    let page = documented();
    let headings: Vec<&str> = printed.0.keys().map(String::as_str).collect();
    assert_eq!(headings, page.keys().copied().collect::<Vec<_>>());
    for (heading, fields) in &printed.0 {
        let page = &page[heading.as_str()];
        for (path, types) in fields {
            let said = page.get(path).unwrap_or_else(|| panic!("{heading}: {path} is not on the page"));
            for kind in types {
                // A number may happen to be whole.
                let whole = kind == "integer" && said.contains("number");
                assert!(said.contains(kind) || whole, "{heading}: {path} is {kind}, on the page {said:?}");
            }
        }
        for path in page.keys() {
            assert!(fields.contains_key(path), "{heading}: {path} is on the page and was not printed");
        }
    }
}

/// Results that one gate refuses and the next lets pass, by the figure that the run itself reports.
#[test]
fn each_gate_rejects_by_its_figure() {
    let dir = tempfile::tempdir().unwrap();
    let (input, eval) = (dir.path().join("decided.gguf"), text(dir.path()));
    // The weights of the test model say next to nothing; of these some tokens are far more likely than others.
    edited(&write_gguf(dir.path(), &Shape { tied: false, ..SMOLLM }), &input, |name, values| {
        let larger = if name.starts_with("blk.") { 5.0 } else { 10.0 };
        match name.contains("norm") {
            true => values.fill(1.0),
            false => values.iter_mut().for_each(|x| *x *= larger),
        }
    });
    let (out, rejected) = (dir.path().join("o.gguf"), dir.path().join("o.gguf.rejected"));
    let statistics = dir.path().join("statistics");
    let run_with = |seed: &str, more: &[&str]| {
        let own = [s(&input), s(&out), "--rank", "32", "--force", "--seed", seed, "--json"];
        let texts = ["--eval", s(&eval), "--statistics", s(&statistics)];
        run(&[&own[..], &texts, &SHORT, more].concat())
    };
    let figures = |seed: &str| -> [f64; 3] {
        let _ = std::fs::remove_file(&statistics);
        let ended = run_with(seed, &[]);
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
        let last: Json =
            serde_json::from_str(String::from_utf8(ended.stdout).unwrap().lines().last().unwrap()).unwrap();
        let c = &last["report"]["coherence"];
        let of = |who: &str, what: &str| c[who][what].as_f64().unwrap();
        let excess = |what: &str| of("model", what) - of("source", what);
        let repetition = excess("repeated_likely").max(excess("repeated_drawn"));
        let same = last["report"]["evaluations"][0]["same_top"]["value"].as_f64().unwrap();
        [same, repetition, excess("entropy").abs()]
    };
    // A source of random weights repeats itself, too; by some seed the result does it more.
    let (seed, [same, repetition, entropy]) = (0..6)
        .map(|seed| (seed.to_string(), figures(&seed.to_string())))
        .find(|(_, [same, repetition, entropy])| *same < 0.999 && *repetition > 0.001 && *entropy > 0.001)
        .expect("a seed by which the result differs from its source");
    std::fs::remove_file(&out).unwrap();
    for (flag, value, strict, loose, words) in [
        ("--min-same-top", same, same + 5e-4, same - 5e-4, "eval.txt: the same token is on top at "),
        (
            "--max-repetition",
            repetition,
            repetition - 5e-4,
            repetition + 5e-4,
            "the share of repetitions in it is ",
        ),
        ("--max-entropy-change", entropy, entropy - 5e-4, entropy + 5e-4, "its entropy is "),
    ] {
        let ended = run_with(&seed, &[flag, &strict.to_string()]);
        let said = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(3), "{flag}: {said}");
        let message: Vec<&str> =
            said.lines().filter(|l| l.starts_with("littlebit-convert: rejected: ")).collect();
        assert_eq!(message.len(), 1, "{said}");
        assert!(message[0].contains(&format!("{words}{value:.4} ")), "{flag} {value}: {said}");
        assert!(message[0].contains(&strict.to_string()) && said.contains("o.gguf.rejected"), "{said}");
        assert!(!out.exists(), "{flag}: a rejected file has the name of an accepted one");
        littlebit::format::LittleBitFile::open(&rejected).unwrap();
        let last: Json =
            serde_json::from_str(String::from_utf8(ended.stdout).unwrap().lines().last().unwrap()).unwrap();
        assert_eq!(last["report"]["output"], s(&rejected));
        let failure = last["report"]["failures"][0].as_str().unwrap();
        assert!(message[0].ends_with(failure), "{failure}");
        std::fs::remove_file(&rejected).unwrap();

        let ended = run_with(&seed, &[flag, &loose.to_string()]);
        assert!(ended.status.success(), "{flag}: {}", String::from_utf8_lossy(&ended.stderr));
        assert!(out.exists() && !rejected.exists(), "{flag}");
        std::fs::remove_file(&out).unwrap();
    }
    // Also if nobody reads the report.
    let (reader, unread) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = std::process::Command::new(support::BIN);
    command.args([s(&input), s(&out), "--rank", "32", "--seed", &seed, "--eval", s(&eval)]).args(SHORT);
    command.args(["--statistics", s(&statistics), "--min-same-top", &(same + 5e-4).to_string(), "-q"]);
    let ended = command.stdout(unread).output().unwrap();
    assert_eq!(ended.status.code(), Some(3), "{}", String::from_utf8_lossy(&ended.stderr));
    assert!(!out.exists() && rejected.exists());
}

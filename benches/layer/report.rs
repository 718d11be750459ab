//! Tables of the measurements, for people and as JSON.

use littlebit::kernel;
use serde_json::{Value, json};

/// One candidate of one case.
pub struct Row {
    pub name: String,
    pub weight_bytes: usize,
    /// Seconds per layer and column, ascending.
    seconds: Vec<f64>,
}

impl Row {
    pub fn new(name: &str, weight_bytes: usize, mut seconds: Vec<f64>) -> Self {
        seconds.sort_by(f64::total_cmp);
        Row { name: name.to_owned(), weight_bytes, seconds }
    }

    /// Seconds at quantile `q`.
    fn at(&self, q: f64) -> f64 {
        self.seconds[((self.seconds.len() - 1) as f64 * q).round() as usize]
    }

    fn median(&self) -> f64 {
        self.at(0.5)
    }
}

/// One layer shape in one mode.
pub struct Case {
    pub d_out: usize,
    pub d_in: usize,
    pub rank: usize,
    pub bpw: f64,
    pub stream: bool,
    pub rows: Vec<Row>,
}

impl Case {
    fn ours(&self) -> &Row {
        &self.rows[0]
    }
    fn mode(&self) -> &'static str {
        if self.stream { "stream" } else { "cached" }
    }
    fn macs(&self) -> f64 {
        (self.rank * (self.d_out + self.d_in)) as f64
    }
}

/// Model name and the vector extensions of this CPU.
fn cpu() -> (String, Vec<String>) {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = info.lines().find(|l| l.split(':').next().is_some_and(|k| k.trim() == name));
        line.and_then(|l| l.split_once(':')).map(|(_, v)| v.trim().to_owned()).unwrap_or_default()
    };
    let known = ["avx", "avx2", "fma", "f16c", "bmi2"];
    let flags = field("flags");
    let flags =
        flags.split(' ').filter(|f| known.contains(f) || f.starts_with("avx512") || f.starts_with("avx_"));
    (field("model name"), flags.map(str::to_owned).collect())
}

pub fn print_head(threads: usize, batch: usize, ggml: Option<&str>) {
    let (model, flags) = cpu();
    println!("* CPU: {model} ({})", flags.join(" "));
    println!("* kernel: {}, {threads} thread(s), {batch} column(s)", kernel::active());
    match ggml {
        Some(features) => println!("* ggml: {features}"),
        None => println!(
            "* ggml was not given: set LITTLEBIT_LLAMA_PREFIX, or LITTLEBIT_GGML_INCLUDE and LITTLEBIT_GGML_LIB, to compare"
        ),
    }
    println!();
    println!("| layer | r | bpw | mode | candidate | us median | us p10-p90 | GB/s | GMAC/s | time / ours |");
    println!("|---|---|---|---|---|---|---|---|---|---|");
}

pub fn print_case(case: &Case) {
    for (i, row) in case.rows.iter().enumerate() {
        let us = |q: f64| row.at(q) * 1e6;
        let macs = if i == 0 { case.macs() } else { (case.d_out * case.d_in) as f64 };
        println!(
            "| {}x{} | {} | {:.3} | {} | {} | {:.1} | {:.1}-{:.1} | {:.1} | {:.0} | {:.2} |",
            case.d_out,
            case.d_in,
            case.rank,
            case.bpw,
            case.mode(),
            row.name,
            us(0.5),
            us(0.1),
            us(0.9),
            row.weight_bytes as f64 / row.median() / 1e9,
            macs / row.median() / 1e9,
            row.median() / case.ours().median(),
        );
    }
}

/// How many times as long each of ggml's products takes, one line per case.
pub fn print_ratios(cases: &[Case]) {
    let mut names: Vec<&str> = Vec::new();
    for row in cases.iter().flat_map(|c| &c.rows[1..]) {
        if !names.contains(&row.name.as_str()) {
            names.push(&row.name);
        }
    }
    println!();
    println!("| layer | r | mode | littlebit us | vs {} |", names.join(" | vs "));
    println!("|---|---|---|---|{}", "---|".repeat(names.len()));
    for case in cases {
        let ours = case.ours().median();
        let ratio = |name: &&str| match case.rows.iter().find(|r| r.name == **name) {
            Some(row) => format!("{:.1}", row.median() / ours),
            None => "-".into(),
        };
        let ratios: Vec<String> = names.iter().map(ratio).collect();
        println!(
            "| {}x{} | {} | {} | {:.1} | {} |",
            case.d_out,
            case.d_in,
            case.rank,
            case.mode(),
            ours * 1e6,
            ratios.join(" | ")
        );
    }
}

/// Everything that was measured.
pub fn json(cases: &[Case], threads: usize, batch: usize, ggml: Option<&str>) -> String {
    let (model, flags) = cpu();
    let case = |c: &Case| -> Value {
        let row = |r: &Row| json!({ "name": r.name, "weight_bytes": r.weight_bytes, "seconds": r.seconds });
        json!({
            "d_out": c.d_out, "d_in": c.d_in, "rank": c.rank, "bpw": c.bpw, "mode": c.mode(),
            "rows": c.rows.iter().map(row).collect::<Vec<_>>(),
        })
    };
    let value = json!({
        "cpu": model, "flags": flags, "kernel": kernel::active().name(), "ggml": ggml,
        "threads": threads, "batch": batch, "cases": cases.iter().map(case).collect::<Vec<_>>(),
    });
    format!("{value:#}\n")
}

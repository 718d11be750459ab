//! Tables of the measurements, for people and as JSON.

use crate::{Clock, Setting};
use serde_json::{Value, json};

/// One candidate of one case.
pub struct Row {
    pub name: String,
    pub weight_bytes: usize,
    /// Seconds per layer and column, ascending.
    seconds: Vec<f64>,
}

impl Row {
    pub fn new(name: String, weight_bytes: usize, mut seconds: Vec<f64>) -> Self {
        seconds.sort_by(f64::total_cmp);
        Row { name, weight_bytes, seconds }
    }

    /// Seconds at quantile `q`.
    fn at(&self, q: f64) -> f64 {
        self.seconds[((self.seconds.len() - 1) as f64 * q).round() as usize]
    }

    pub fn median(&self) -> f64 {
        self.at(0.5)
    }

    /// Of a product that a streaming case reads its weights for; of the reading loop as a whole.
    fn bytes_per_second(&self, batch: usize) -> f64 {
        self.weight_bytes as f64 / (self.median() * batch as f64)
    }
}

/// The loop that only reads.
const READ: &str = "read";

/// One layer shape in one setting.
pub struct Case {
    pub at: Setting,
    pub rank: usize,
    pub bpw: f64,
    pub rows: Vec<Row>,
}

impl Case {
    pub fn ours(&self) -> &Row {
        &self.rows[0]
    }
    /// What does the same as ours.
    pub fn others(&self) -> impl Iterator<Item = &Row> {
        self.rows[1..].iter().filter(|row| row.name != READ)
    }
    fn mode(&self) -> &'static str {
        if self.at.stream { "stream" } else { "cached" }
    }
    fn layer(&self) -> String {
        format!("{}x{}", self.at.d_out, self.at.d_in)
    }
    pub fn title(&self) -> String {
        let Setting { batch, threads, .. } = self.at;
        format!(
            "{}, {:.2} bpw, {batch} column(s), {threads} thread(s), {}: {:.1} us a column",
            self.layer(),
            self.bpw,
            self.mode(),
            self.ours().median() * 1e6
        )
    }
    /// Multiply-adds of a row's product for one column.
    fn macs(&self, row: &Row) -> f64 {
        let factors = row.name.starts_with("littlebit") || row.name.starts_with("2x");
        let Setting { d_out, d_in, .. } = self.at;
        (if factors { self.rank * (d_out + d_in) } else { d_out * d_in }) as f64
    }
    /// Our share of the bandwidth that reading alone reaches.
    fn share_of_reading(&self) -> Option<f64> {
        let read = self.rows.iter().find(|row| row.name == READ)?;
        let batch = self.at.batch;
        Some(self.ours().bytes_per_second(batch) / read.bytes_per_second(batch))
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

pub fn print_head(ggml: Option<&str>) {
    let (model, flags) = cpu();
    println!("* CPU: {model} ({})", flags.join(" "));
    match ggml {
        Some(features) => println!("* ggml: {features}"),
        None => println!(
            "* ggml was not given: set LITTLEBIT_LLAMA_PREFIX, or LITTLEBIT_GGML_INCLUDE and LITTLEBIT_GGML_LIB, to compare"
        ),
    }
    println!("* us: microseconds a column, of the thread's own clock with one thread, else of the wall's");
    println!();
    println!(
        "| layer | r | bpw | n | threads | mode | candidate | us median | us p10-p90 | GB/s | GMAC/s | time / ours |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|");
}

pub fn print_case(case: &Case) {
    let Setting { batch, threads, .. } = case.at;
    for row in &case.rows {
        let us = |q: f64| row.at(q) * 1e6;
        let of_a_product = |text: String| if row.name == READ { "-".to_owned() } else { text };
        println!(
            "| {} | {} | {:.3} | {batch} | {threads} | {} | {} | {} | {} | {:.1} | {} | {} |",
            case.layer(),
            case.rank,
            case.bpw,
            case.mode(),
            row.name,
            of_a_product(format!("{:.1}", us(0.5))),
            of_a_product(format!("{:.1}-{:.1}", us(0.1), us(0.9))),
            row.bytes_per_second(batch) / 1e9,
            of_a_product(format!("{:.0}", case.macs(row) / row.median() / 1e9)),
            of_a_product(format!("{:.2}", row.median() / case.ours().median())),
        );
    }
}

/// How many times as long each of the others takes, one line per case.
pub fn print_ratios(cases: &[Case]) {
    let mut names: Vec<&str> = Vec::new();
    for row in cases.iter().flat_map(Case::others) {
        if !names.contains(&row.name.as_str()) {
            names.push(&row.name);
        }
    }
    let heads: String = names.iter().map(|name| format!("vs {name} | ")).collect();
    println!();
    println!("| layer | r | n | threads | mode | littlebit us (p10-p90) | {heads}of reading |");
    println!("|---|---|---|---|---|---|{}---|", "---|".repeat(names.len()));
    for case in cases {
        let ours = case.ours();
        let ratio = |name: &&str| match case.rows.iter().find(|r| r.name == **name) {
            Some(row) => format!("{:.1} | ", row.median() / ours.median()),
            None => "- | ".into(),
        };
        let ratios: String = names.iter().map(ratio).collect();
        println!(
            "| {} | {} | {} | {} | {} | {:.1} ({:.1}-{:.1}) | {ratios}{} |",
            case.layer(),
            case.rank,
            case.at.batch,
            case.at.threads,
            case.mode(),
            ours.median() * 1e6,
            ours.at(0.1) * 1e6,
            ours.at(0.9) * 1e6,
            case.share_of_reading().map_or("-".into(), |share| format!("{:.0} %", 100.0 * share)),
        );
    }
}

/// Threads and seconds of a node of ggml's graph that does nothing.
pub fn print_nodes(nodes: &[(usize, f64)]) {
    println!();
    for (threads, seconds) in nodes {
        println!("* a node of ggml's graph that does nothing, {threads} thread(s): {:.2} us", seconds * 1e6);
    }
}

/// Everything that was measured.
pub fn json(cases: &[Case], nodes: &[(usize, f64)], ggml: Option<&str>) -> String {
    let (model, flags) = cpu();
    let case = |c: &Case| -> Value {
        let row = |r: &Row| json!({ "name": r.name, "weight_bytes": r.weight_bytes, "seconds": r.seconds });
        let Setting { d_out, d_in, batch, threads, .. } = c.at;
        json!({
            "d_out": d_out, "d_in": d_in, "rank": c.rank, "bpw": c.bpw, "mode": c.mode(),
            "batch": batch, "threads": threads,
            "clock": if Clock::of(threads) == Clock::Thread { "thread" } else { "wall" },
            "rows": c.rows.iter().map(row).collect::<Vec<_>>(),
        })
    };
    let value = json!({
        "cpu": model, "flags": flags, "ggml": ggml,
        "nodes": nodes.iter().map(|(threads, s)| json!({ "threads": threads, "seconds": s })).collect::<Vec<_>>(),
        "cases": cases.iter().map(case).collect::<Vec<_>>(),
    });
    format!("{value:#}\n")
}

//! Times over ours as bars on a logarithmic axis, in a plain SVG.

use crate::report::Case;
use std::fmt::Write;

const WIDTH: f64 = 760.0;
/// Where bars begin and end; names stand before, figures after.
const BARS: [f64; 2] = [150.0, 690.0];
const LINE: f64 = 17.0;
/// Colours of bars slower and faster than ours.
const COLOURS: [&str; 2] = ["#4878a8", "#c44e52"];

/// One group of bars for every case, one bar for each of its candidates but ours.
pub fn bars(cases: &[Case]) -> String {
    let ratios = |case: &Case| -> Vec<(String, f64)> {
        let ours = case.ours().median();
        case.others().map(|row| (row.name.clone(), row.median() / ours)).collect()
    };
    let largest = cases.iter().flat_map(ratios).fold(10.0, |m, (_, r)| r.max(m));
    let lines: usize = cases.iter().map(|c| c.others().count() + 2).sum();
    let height = 40.0 + LINE * lines as f64;
    // From a half, so that what is faster than ours has a bar, too.
    let at = |ratio: f64| {
        let share = (ratio.max(0.5) / 0.5).ln() / (largest / 0.5).ln();
        BARS[0] + share * (BARS[1] - BARS[0])
    };
    let mut out = String::new();
    let mut put = |text: std::fmt::Arguments<'_>| writeln!(out, "{text}").expect("writing to a string");
    put(format_args!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">"
    ));
    put(format_args!("<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"white\"/>"));
    put(format_args!(
        "<text x=\"{}\" y=\"16\" text-anchor=\"middle\">time / littlebit's time</text>",
        WIDTH / 2.0
    ));
    for tick in [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0].into_iter().filter(|t| *t <= largest) {
        let x = at(tick);
        put(format_args!("<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"36\" y2=\"{height}\" stroke=\"#ccc\"/>"));
        put(format_args!("<text x=\"{x:.1}\" y=\"32\" text-anchor=\"middle\" fill=\"#555\">{tick}</text>"));
    }
    let mut y = 38.0;
    for case in cases {
        y += LINE;
        put(format_args!("<text x=\"8\" y=\"{y:.1}\" font-weight=\"bold\">{}</text>", case.title()));
        for (name, ratio) in ratios(case) {
            y += LINE;
            let (from, to) = (at(ratio.min(1.0)), at(ratio.max(1.0)));
            let colour = COLOURS[usize::from(ratio < 1.0)];
            put(format_args!(
                "<text x=\"{:.1}\" y=\"{y:.1}\" text-anchor=\"end\">{name}</text>",
                BARS[0] - 8.0
            ));
            put(format_args!(
                "<rect x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"12\" fill=\"{colour}\"/>",
                y - 10.5,
                to - from
            ));
            put(format_args!("<text x=\"{:.1}\" y=\"{y:.1}\">{ratio:.1}</text>", to + 5.0));
        }
        y += LINE;
    }
    put(format_args!("</svg>"));
    out
}

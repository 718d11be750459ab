//! Charts as inline SVG. Colours and dashes are classes of the page's style sheet, so that they follow its scheme.

use super::{class, escape};

/// Width and height in the chart's own units: text of 12 units can still be read where a phone scales it to 0.8.
const SIZE: [f64; 2] = [480.0, 280.0];
/// What labels take at the left, at the right, above and below.
const MARGINS: [f64; 4] = [64.0, 14.0, 28.0, 42.0];
/// Ticks to aim at, by axis.
const TICKS: [usize; 2] = [8, 5];
/// Larger values come from damage and would press all others flat.
const DRAWABLE: f64 = 1e6;
/// Values that differ by less are drawn as equal.
const SAME: f64 = 1e-5;
/// Colours of the style sheet, and dashes for when they run out.
const STYLES: [usize; 2] = [8, 3];

/// Draws `values`, each with its matrix's name, over the number of the block: one line for each class of matrix.
/// Matrices outside of blocks and values that are no numbers are left out; if nothing remains, so is the chart.
pub(super) fn over_blocks<'a>(
    title: &str,
    unit: &str,
    values: impl Iterator<Item = (&'a str, f64)>,
) -> String {
    let lines = lines(values);
    let points = || lines.iter().flat_map(|l| &l.points);
    if points().next().is_none() {
        return String::new();
    }
    let [left, right, top, bottom] = [MARGINS[0], SIZE[0] - MARGINS[1], MARGINS[2], SIZE[1] - MARGINS[3]];
    let x = Axis::new(points().map(|p| p[0]), TICKS[0], [left, right]);
    let y = Axis::new(points().map(|p| p[1]), TICKS[1], [bottom, top]);

    let title = escape(title);
    let mut out = format!("<figure class=\"plot\">\n<figcaption>{title}</figcaption>\n");
    out += &format!("<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{title}\">\n", SIZE[0], SIZE[1]);
    let decimals = y.ticks.decimals;
    for &value in &y.ticks.values {
        let at = y.at(value);
        out += &format!(
            "<line class=\"grid\" x1=\"{left:.1}\" x2=\"{right:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text class=\"end\" x=\"{:.1}\" y=\"{:.1}\">{value:.decimals$}</text>\n",
            left - 6.0,
            at + 4.0
        );
    }
    // Half blocks and blocks below 0, which room around a single block may bring, do not exist.
    for &value in x.ticks.values.iter().filter(|v| **v >= 0.0 && v.fract() == 0.0) {
        let at = x.at(value);
        out += &format!(
            "<line class=\"tick\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{bottom:.1}\" y2=\"{:.1}\"/>\
             <text class=\"middle\" x=\"{at:.1}\" y=\"{:.1}\">{value:.0}</text>\n",
            bottom + 4.0,
            bottom + 17.0
        );
    }
    out += &format!(
        "<text class=\"name\" x=\"4.0\" y=\"14.0\">{}</text>\
         <text class=\"name middle\" x=\"{:.1}\" y=\"{:.1}\">block</text>\n",
        escape(unit),
        (left + right) / 2.0,
        SIZE[1] - 6.0
    );
    // A class keeps its colour in every chart of a page, whether all its values can be drawn or not.
    let drawn = lines.iter().enumerate().filter(|(_, line)| !line.points.is_empty());
    for (i, line) in drawn.clone() {
        out += &line.draw(i, &x, &y);
    }
    out += "</svg>\n<ul class=\"legend\">\n";
    for (i, line) in drawn {
        out += &format!(
            "<li><svg class=\"swatch {}\" viewBox=\"0 0 24 10\" aria-hidden=\"true\">\
             <polyline points=\"0,5 24,5\"/><circle cx=\"12\" cy=\"5\" r=\"3\"/></svg> {}</li>\n",
            style(i),
            escape(&line.name)
        );
    }
    out + "</ul>\n</figure>\n"
}

/// Classes of the style sheet for line `i`.
fn style(i: usize) -> String {
    format!("s{} d{}", i % STYLES[0], i / STYLES[0] % STYLES[1])
}

/// One class of matrices.
struct Line {
    name: String,
    /// Block and value.
    points: Vec<[f64; 2]>,
}

impl Line {
    fn draw(&self, i: usize, x: &Axis, y: &Axis) -> String {
        let at: Vec<[f64; 2]> = self.points.iter().map(|p| [x.at(p[0]), y.at(p[1])]).collect();
        let corners: Vec<String> = at.iter().map(|[x, y]| format!("{x:.1},{y:.1}")).collect();
        let mut out = format!("<g class=\"{}\"><polyline points=\"{}\"/>\n", style(i), corners.join(" "));
        for ([x, y], [block, value]) in at.iter().zip(&self.points) {
            out += &format!(
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.5\"><title>{}, block {block:.0}: {value:.4}</title></circle>\n",
                escape(&self.name)
            );
        }
        out + "</g>\n"
    }
}

/// Lines in the order in which their classes appear, points in the order of blocks.
fn lines<'a>(values: impl Iterator<Item = (&'a str, f64)>) -> Vec<Line> {
    let mut all: Vec<Line> = Vec::new();
    for (matrix, value) in values {
        let Some((name, block)) = place(matrix) else { continue };
        let at = all.iter().position(|line| line.name == name).unwrap_or_else(|| {
            all.push(Line { name, points: Vec::new() });
            all.len() - 1
        });
        if value.abs() <= DRAWABLE {
            all[at].points.push([f64::from(block), value]);
        }
    }
    all.iter_mut().for_each(|line| line.points.sort_by(|a, b| a[0].total_cmp(&b[0])));
    all
}

/// Class and block of a matrix; encoder and decoder (`enc.blk.0.attn_q.weight`) have classes of their own.
fn place(matrix: &str) -> Option<(String, u32)> {
    let (stack, rest) = matrix.split_once("blk.")?;
    let (block, _) = rest.split_once('.')?;
    let whole_word = stack.is_empty() || stack.ends_with('.');
    Some((format!("{stack}{}", class(matrix)), block.parse().ok().filter(|_| whole_word)?))
}

/// A range of values and where it lies in the chart.
struct Axis {
    ticks: Ticks,
    ends: [f64; 2],
}

impl Axis {
    /// For at least one value.
    fn new(values: impl Iterator<Item = f64>, count: usize, ends: [f64; 2]) -> Self {
        let (min, max) =
            values.fold((f64::INFINITY, f64::NEG_INFINITY), |(min, max), v| (min.min(v), max.max(v)));
        Self { ticks: round_ticks(min, max, count), ends }
    }

    fn at(&self, value: f64) -> f64 {
        let (first, last) = (self.ticks.values[0], self.ticks.values[self.ticks.values.len() - 1]);
        self.ends[0] + (value - first) / (last - first) * (self.ends[1] - self.ends[0])
    }
}

/// Values with labels.
#[derive(Debug, PartialEq)]
struct Ticks {
    /// At least two, rising.
    values: Vec<f64>,
    /// Digits behind the point that tell them apart.
    decimals: usize,
}

/// About `count` multiples of 1, 2 or 5 times a power of ten, from `min` or below to `max` or above.
fn round_ticks(min: f64, max: f64, count: usize) -> Ticks {
    let magnitude = min.abs().max(max.abs());
    // Equal values get room around them, or there would be no scale.
    let room = match magnitude {
        _ if max - min > SAME.max(1e-9 * magnitude) => 0.0,
        m if m > 10.0 * SAME => 0.1 * m,
        _ => 1.0,
    };
    let (low, high) = (min - room, max + room);
    let least = (high - low) / count.max(1) as f64;
    let mut power = least.log10().floor() as i32;
    let unit = 10f64.powi(power);
    let factor = [1, 2, 5].into_iter().find(|f| f64::from(*f) * unit >= least).unwrap_or_else(|| {
        power += 1;
        1
    });
    let step = f64::from(factor) * 10f64.powi(power);
    // A bound that is a tick up to rounding does not need another one beyond it.
    let (first, last) = ((low / step + 1e-9).floor() as i64, (high / step - 1e-9).ceil() as i64);
    // Division by an exact power of ten rounds once, so that whole ticks are whole.
    let value = |i: i64| match (i * i64::from(factor)) as f64 {
        v if power < 0 => v / 10f64.powi(-power),
        v => v * 10f64.powi(power),
    };
    Ticks { values: (first..=last).map(value).collect(), decimals: usize::try_from(-power).unwrap_or(0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_ticks() {
        let blocks = vec![0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0];
        assert_eq!(round_ticks(0.0, 29.0, 8), Ticks { values: blocks, decimals: 0 });
        assert_eq!(round_ticks(0.31, 0.58, 5), Ticks { values: vec![0.3, 0.4, 0.5, 0.6], decimals: 1 });
        let whole = round_ticks(0.0, 1.0, 5).values;
        assert_eq!(whole.iter().filter(|v| v.fract() == 0.0).count(), 2, "{whole:?}");
    }

    #[test]
    fn ticks_are_round_and_cover_the_range() {
        let ranges = [
            (0.0, 1.0),
            (0.3, 0.7),
            (0.99871, 0.99912),
            (-3.0, 17.0),
            (0.0, 93.0),
            (12.0, 12_345.0),
            (5.0, 5.0),
            (0.0, 0.0),
            (-0.25, -0.25),
            (1.0, 1.0 + f64::EPSILON),
            (0.0, f64::MIN_POSITIVE),
            (-DRAWABLE, DRAWABLE),
            (4e9, 4e9 + 1.0),
        ];
        for (min, max) in ranges {
            for count in [1, 5, 8] {
                let Ticks { values, decimals } = round_ticks(min, max, count);
                assert!((2..=count + 3).contains(&values.len()), "{min} {max} {count}: {values:?}");
                let (first, last) = (values[0], values[values.len() - 1]);
                let slack = 1e-8 * (last - first);
                assert!(first <= min + slack && last >= max - slack, "{min} {max} {count}: {values:?}");
                let step = (last - first) / (values.len() - 1) as f64;
                let digit = step / 10f64.powf((step.log10() + 1e-6).floor());
                assert!([1.0, 2.0, 5.0].iter().any(|d| (digit - d).abs() < 1e-4), "{min} {max}: {step}");
                for pair in values.windows(2) {
                    assert!((pair[1] - pair[0] - step).abs() < 1e-6 * step, "{values:?}");
                    let labels = [0, 1].map(|i| format!("{:.decimals$}", pair[i]));
                    assert_ne!(labels[0], labels[1]);
                }
            }
        }
    }

    #[test]
    fn places_in_a_model() {
        assert_eq!(place("blk.12.attn_q.weight"), Some(("attn_q".to_owned(), 12)));
        assert_eq!(place("enc.blk.3.ffn_up.weight"), Some(("enc.ffn_up".to_owned(), 3)));
        for outside in ["output.weight", "blk.x.attn_q.weight", "myblk.1.attn_q.weight", "blk.7", ""] {
            assert_eq!(place(outside), None, "{outside}");
        }
    }

    /// Values of an attribute all over `svg`.
    fn numbers(svg: &str, attribute: &str) -> Vec<f64> {
        let start = format!(" {attribute}=\"");
        let parts = svg.split(&start).skip(1);
        parts.map(|p| p.split('"').next().unwrap().parse().expect("a number")).collect()
    }

    #[test]
    fn every_value_has_a_point_inside_the_chart() {
        let values = [("blk.10.a.weight", 0.5), ("blk.2.a.weight", 0.25), ("blk.2.b.weight", 0.75)];
        let svg = over_blocks("Errors", "error", values.into_iter());
        let dots = svg.split("</svg>").next().unwrap();
        let (x, y) = (numbers(dots, "cx"), numbers(dots, "cy"));
        assert_eq!((x.len(), y.len()), (3, 3));
        assert!(x.iter().all(|x| (MARGINS[0]..=SIZE[0] - MARGINS[1]).contains(x)), "{x:?}");
        assert!(y.iter().all(|y| (MARGINS[2]..=SIZE[1] - MARGINS[3]).contains(y)), "{y:?}");
        // Blocks by number, not by text; larger values higher up.
        assert!(x[0] < x[1] && x[0] == x[2] && y[2] < y[1] && y[1] < y[0], "{x:?} {y:?}");
        assert!(svg.contains("a, block 10: 0.5000"), "{svg}");
        assert_eq!(svg.matches("<li>").count(), 2);
    }

    #[test]
    fn what_is_no_number_is_left_out() {
        let bad = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX].map(|v| ("blk.1.a.weight", v));
        assert_eq!(over_blocks("", "", bad.into_iter()), "");
        assert_eq!(over_blocks("", "", [("output.weight", 1.0)].into_iter()), "");
        assert_eq!(over_blocks("", "", std::iter::empty()), "");
        for value in [0.0, 1e-9, 0.3, 1.0, DRAWABLE] {
            let svg = over_blocks("", "", bad.into_iter().chain([("blk.0.b.weight", value)]));
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            let dots = numbers(svg.split("</svg>").next().unwrap(), "cx");
            assert_eq!(dots.len(), 1, "{svg}");
            // The second class keeps the second colour although nothing of the first is drawn.
            assert!(svg.contains("<g class=\"s1 d0\">") && !svg.contains("s0 d0"), "{svg}");
        }
    }

    #[test]
    fn names_add_no_markup() {
        let svg = over_blocks("<t>", "<u>", [("blk.0.<b>\"'&.weight", 1.0)].into_iter());
        assert!(svg.contains("&lt;b&gt;&quot;&#39;&amp;"), "{svg}");
        assert!(!["<t>", "<u>", "<b>"].iter().any(|tag| svg.contains(tag)), "{svg}");
    }
}

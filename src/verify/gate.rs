//! Limits that a result must keep to be taken for good.

use super::{Coherence, Comparison};

/// What a result is to reach on every text it is evaluated on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Gates {
    /// Highest perplexity, as a multiple of the source's.
    pub ppl_ratio: Option<f64>,
    /// Highest mean KL divergence from the source, nats.
    pub kld: Option<f64>,
    /// Lowest share of positions where both models hold the same token most likely, 0 to 1.
    pub same_top: Option<f64>,
    /// Largest share of repetitions in what the model writes, above the source's.
    pub repetition: Option<f64>,
    /// Largest distance of the entropy of what it writes from the source's, nats.
    pub entropy: Option<f64>,
    /// Largest surprise of the source at what it writes, above that at its own text, nats a token.
    pub surprise: Option<f64>,
}

impl Gates {
    /// Whether there are any.
    pub fn any(&self) -> bool {
        *self != Self::default()
    }

    /// Whether some of them are on a comparison on text.
    pub fn on_text(&self) -> bool {
        [self.ppl_ratio, self.kld, self.same_top].iter().any(Option::is_some)
    }

    /// Whether some of them are on what the model writes.
    pub fn on_writing(&self) -> bool {
        [self.repetition, self.entropy, self.surprise].iter().any(Option::is_some)
    }

    /// A sentence for every limit that what the model writes does not keep.
    pub fn incoherence(&self, found: &Coherence) -> Vec<String> {
        let limits = [
            (
                self.repetition,
                found.repetition_excess(),
                "the share of repetitions in it is",
                "above the source's",
            ),
            (self.entropy, found.entropy_change(), "its entropy is", "nats from the source's"),
            (
                self.surprise,
                found.surprise_excess(),
                "it surprises the source by",
                "nats a token more than its own text",
            ),
        ];
        limits
            .into_iter()
            .filter_map(|(most, value, what, than)| {
                let most = most.filter(|most| value.is_nan() || value > *most)?;
                Some(format!(
                    "text that the result writes: {what} {value:.4} {than}, at most {most} is allowed"
                ))
            })
            .collect()
    }

    /// A sentence for every limit that `comparison` on `text` does not keep. What is not a number keeps none.
    pub fn failures(&self, text: &str, comparison: &Comparison) -> Vec<String> {
        let c = comparison;
        let ratio = c.perplexity.value / c.source_perplexity.value;
        let (kld, same) = (c.kld.value, c.same_top.value);
        let mut out = Vec::new();
        if let Some(most) = self.ppl_ratio.filter(|most| ratio.is_nan() || ratio > *most) {
            out.push(format!(
                "{text}: perplexity is {ratio:.3} times the source's, at most {most} is allowed"
            ));
        }
        if let Some(most) = self.kld.filter(|most| kld.is_nan() || kld > *most) {
            out.push(format!("{text}: mean KL divergence is {kld:.4}, at most {most} is allowed"));
        }
        if let Some(least) = self.same_top.filter(|least| same.is_nan() || same < *least) {
            out.push(format!("{text}: the same token is on top at {same:.4} of all positions, at least {least} is asked for"));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::{Estimate, Writing};

    #[test]
    fn each_limit_by_itself() {
        let value = |value| Estimate { value, error: 0.0 };
        let c = Comparison {
            perplexity: value(30.0),
            source_perplexity: value(10.0),
            kld: value(1.2),
            same_top: value(0.5),
            ..Comparison::default()
        };
        let failures = |ppl_ratio, kld, same_top| {
            Gates { ppl_ratio, kld, same_top, ..Gates::default() }.failures("t", &c)
        };
        assert!(failures(None, None, None).is_empty());
        assert!(failures(Some(3.0), Some(1.2), Some(0.5)).is_empty());
        assert!(failures(Some(2.9), None, None)[0].contains("3.000 times"));
        assert!(failures(None, Some(1.1), None)[0].contains("1.2000"));
        assert!(failures(None, None, Some(0.51))[0].contains("0.5000"));
        assert_eq!(failures(Some(1.0), Some(1.0), Some(1.0)).len(), 3);
        let lost = Comparison { perplexity: value(f64::NAN), kld: value(f64::NAN), ..c };
        let all = Gates { ppl_ratio: Some(3.0), kld: Some(2.0), ..Gates::default() };
        assert_eq!(all.failures("t", &lost).len(), 2);
    }

    #[test]
    fn limits_of_writing() {
        let writing = |repeated_drawn, entropy, surprise| Writing {
            repeated_drawn,
            entropy,
            surprise,
            ..Writing::default()
        };
        let found = Coherence {
            model: writing(0.3, 4.0, 6.0),
            source: writing(0.1, 3.0, 3.5),
            ..Coherence::default()
        };
        let failures = |repetition, entropy, surprise| {
            Gates { repetition, entropy, surprise, ..Gates::default() }.incoherence(&found)
        };
        assert!(failures(None, None, None).is_empty());
        assert!(failures(Some(0.21), Some(1.0), Some(2.5)).is_empty());
        assert!(failures(Some(0.19), None, None)[0].contains("0.2000 above"));
        assert!(failures(None, Some(0.9), None)[0].contains("1.0000 nats from"));
        assert!(failures(None, None, Some(2.4))[0].contains("by 2.5000 nats"));
        let lost = Coherence { model: writing(0.0, f64::NAN, f64::NAN), ..found.clone() };
        let gates = Gates { entropy: Some(9.0), surprise: Some(9.0), ..Gates::default() };
        assert_eq!(gates.incoherence(&lost).len(), 2);
        assert!(gates.any() && gates.on_writing() && !gates.on_text());
    }
}

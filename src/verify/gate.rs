//! Limits that a result must keep to be taken for good.

use super::Comparison;

/// What a result is to reach on every text it is evaluated on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Gates {
    /// Highest perplexity, as a multiple of the source's.
    pub ppl_ratio: Option<f64>,
    /// Highest mean KL divergence from the source, nats.
    pub kld: Option<f64>,
    /// Lowest share of positions where both models hold the same token most likely, 0 to 1.
    pub same_top: Option<f64>,
}

impl Gates {
    /// Whether there are any.
    pub fn any(&self) -> bool {
        *self != Self::default()
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
    use crate::verify::Estimate;

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
        let failures = |ppl_ratio, kld, same_top| Gates { ppl_ratio, kld, same_top }.failures("t", &c);
        assert!(failures(None, None, None).is_empty());
        assert!(failures(Some(3.0), Some(1.2), Some(0.5)).is_empty());
        assert!(failures(Some(2.9), None, None)[0].contains("3.000 times"));
        assert!(failures(None, Some(1.1), None)[0].contains("1.2000"));
        assert!(failures(None, None, Some(0.51))[0].contains("0.5000"));
        assert_eq!(failures(Some(1.0), Some(1.0), Some(1.0)).len(), 3);
        let lost = Comparison { perplexity: value(f64::NAN), kld: value(f64::NAN), ..c };
        let all = Gates { ppl_ratio: Some(3.0), kld: Some(2.0), same_top: None };
        assert_eq!(all.failures("t", &lost).len(), 2);
    }
}

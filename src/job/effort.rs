//! How much of everything a calibrated conversion does.

use crate::error::{Error, Result};

/// How much work a calibrated conversion does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// Minutes on a small model.
    Fast,
    /// The default.
    Normal,
    /// As long as it pays.
    Best,
}

/// How much of what an effort does.
pub(super) struct Amounts {
    /// Windows that the source writes.
    pub generated: usize,
    /// Windows for sensitivities.
    pub sensitivity: usize,
    /// Windows for moments.
    pub moments: usize,
    /// Iterations of ADMM.
    pub iterations: usize,
    /// Passes of block tuning over the windows for moments.
    pub passes: usize,
    /// Distillation steps.
    pub steps: usize,
}

impl Effort {
    pub(super) fn amounts(self) -> Amounts {
        let [generated, sensitivity, moments, iterations, passes, steps] = match self {
            Effort::Fast => [40, 4, 112, 12, 0, 60],
            Effort::Normal => [72, 8, 192, 16, 1, 200],
            Effort::Best => [216, 16, 384, 24, 1, 850],
        };
        Amounts { generated, sensitivity, moments, iterations, passes, steps }
    }
}

impl std::str::FromStr for Effort {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        match s {
            "fast" => Ok(Effort::Fast),
            "normal" => Ok(Effort::Normal),
            "best" => Ok(Effort::Best),
            _ => Err(Error::usage(format!("unknown effort '{s}'; there are fast, normal and best"))),
        }
    }
}

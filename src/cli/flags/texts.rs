//! Which text a conversion is calibrated on, and what it means if there is none.

use super::ConvertArgs;
use crate::calibrate::moments::Shares;
use crate::error::{Error, Result};
use crate::factorize::Method;
use crate::job::Options;
use crate::job::tuned::{self, POLISH_ROUNDS};
use crate::source::TensorSource;

/// Where text to calibrate on comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Texts {
    /// There is none.
    None,
    /// Flags say so.
    Named,
    /// No flag says anything: the source writes it, if it can.
    Own,
}

impl ConvertArgs {
    /// Where text to calibrate on comes from.
    pub(super) fn texts(&self) -> Texts {
        match self.generated_windows {
            _ if !self.calibration.is_empty() => Texts::Named,
            Some(0) => Texts::None,
            Some(_) => Texts::Named,
            // What is named instead says how the columns weigh, or asks for the paper's start.
            None if self.imatrix.is_some() || self.method == Method::DualSvid => Texts::None,
            None => Texts::Own,
        }
    }

    /// A flag that was given and means nothing without text to calibrate on; a number at its default does no harm.
    pub(super) fn needs_text(&self) -> Option<&'static str> {
        let shares = Shares::default();
        let given = [
            ("--eval", !self.eval.is_empty()),
            ("--auto-bpw", self.auto_bpw.is_some()),
            ("--save-imatrix", self.save_imatrix.is_some()),
            ("--statistics", self.statistics.is_some()),
            ("--effort", self.effort.is_some()),
            ("--tune-steps", self.tune_steps.is_some()),
            ("--block-passes", self.block_passes.is_some()),
            ("--time-budget", self.time_budget.is_some()),
            ("--drift-correction", self.drift_correction != shares.inputs),
            ("--residual-correction", self.residual_correction != shares.residual),
            ("--polish-rounds", self.polish_rounds != POLISH_ROUNDS),
            ("--absorb-passes", self.absorb_passes != 0),
        ];
        given.into_iter().find(|(_, given)| *given).map(|(flag, _)| flag)
    }

    /// Refuses what means nothing without text.
    pub(super) fn check_untuned(&self) -> Result<()> {
        if self.coherence {
            return Err(Error::usage(
                "what a model writes is compared in a calibrated conversion: give --calibration TEXT or \
                 --generated-windows N, or compare a finished file by littlebit-convert verify FILE --against SOURCE --coherence",
            ));
        }
        match self.needs_text() {
            Some(flag) => Err(Error::usage(format!(
                "{flag} needs text: --calibration FILE..., or --generated-windows above 0"
            ))),
            None => Ok(()),
        }
    }

    /// Settles a run that names no text: it goes on what the source writes, or, where the source cannot write, without
    /// text. Returns what there is to tell about it.
    ///
    /// # Errors
    /// Flags that need text where the source cannot write any.
    pub fn settle(&self, options: &mut Options, source: &dyn TensorSource) -> Result<Option<String>> {
        if self.texts() != Texts::Own {
            return Ok(None);
        }
        let Err(e) = tuned::check(source) else {
            return Ok(Some(
                "no --calibration TEXT: the model writes text itself to be tuned on; text of what it is used for makes a better \
                 one, and --generated-windows 0 leaves tuning out"
                    .to_owned(),
            ));
        };
        let why = format!("without tuning: {e}");
        self.check_untuned().map_err(|_| e)?;
        options.calibration = None;
        Ok(Some(why))
    }
}

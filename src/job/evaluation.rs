//! The result of a calibrated conversion beside its source: on texts, and in what both write.

use super::header::file_name;
use super::report::{Evaluation, Event, Sample};
use super::tuned::{Calibrated, Calibration, WINDOW};
use crate::calibrate::text;
use crate::decoder::{Loader, Model};
use crate::error::{Error, Result};
use crate::source::{TensorSource, sha256};
use crate::tokenize::Tokenizer;
use crate::verify::{self, Coherence};
use std::path::PathBuf;

/// Windows that one text is evaluated on at most.
pub const EVALUATION_WINDOWS: usize = 32;

/// Tokens of the prompt of a sample.
const SAMPLE: usize = 24;

impl Calibrated<'_> {
    /// Compares `source`, of which the last rows for the windows of the texts are given, with the result.
    pub(super) fn compare(
        &self,
        loader: &Loader,
        [source, model]: [&Model; 2],
        rows: &[Vec<f32>],
        progress: &mut dyn FnMut(Event),
    ) -> Result<(Vec<Evaluation>, Option<Coherence>)> {
        let mut evaluations = Vec::new();
        let (coherence, samples) = self.written(loader, source, model, progress)?;
        let mut at = 0;
        for ((file, windows), sample) in self.calibration.evaluation.iter().zip(&self.texts).zip(samples) {
            let windows: Vec<&[u32]> = windows.iter().map(Vec::as_slice).collect();
            let rows = &rows[at..at + windows.len()];
            at += windows.len();
            let comparison = verify::compare(source, rows, model, &windows, |done| {
                progress(Event::Stage { name: "evaluate", done, total: windows.len(), value: None });
            });
            evaluations.push(Evaluation { text: file.clone(), windows: windows.len(), sample, comparison });
        }
        Ok((evaluations, coherence))
    }

    /// What source and result write, and how both go on with the beginning of every evaluation text.
    fn written(
        &self,
        loader: &Loader,
        frame: &Model,
        model: &Model,
        progress: &mut dyn FnMut(Event),
    ) -> Result<(Option<Coherence>, Vec<Sample>)> {
        if !self.calibration.coherence && self.texts.is_empty() {
            return Ok((None, Vec::new()));
        }
        let prompts: Vec<&[u32]> = self.texts.iter().map(|windows| &windows[0][..SAMPLE]).collect();
        let task = verify::Task::new(&self.tokenizer, &prompts, self.options.seed);
        let total = 2 * task.len();
        let mut write = |model: &Model, before: usize| {
            task.write(model, |done| {
                let done = before + done;
                progress(Event::Stage { name: "continue", done, total, value: None });
            })
        };
        let by_model = write(model, 0);
        let source = loader.coarse(frame)?;
        let by_source = write(&source, task.len());
        let text = |tokens: &[u32]| self.tokenizer.decode(tokens);
        let both = task.others(&by_model).iter().zip(task.others(&by_source));
        let samples = prompts.iter().zip(both).map(|(prompt, (ours, theirs))| Sample {
            prompt: text(prompt),
            continuation: text(ours),
            source: text(theirs),
        });
        let samples = samples.collect();
        Ok((Some(task.compare(&source, &by_source, &by_model, &self.tokenizer)), samples))
    }
}

/// Tokens that a source has embeddings for, and whether its head is a matrix of its own.
pub(super) fn vocabulary(source: &dyn TensorSource) -> (usize, bool) {
    let find = |name: &str| source.tensors().iter().find(|t| t.name == name);
    let rows = find("token_embd.weight").and_then(|t| t.dims.get(1).copied()).unwrap_or(0);
    (rows as usize, find("output.weight").is_some())
}

/// The windows of every text that models are compared on.
pub(super) fn evaluation_windows(texts: &[PathBuf], tokenizer: &Tokenizer) -> Result<Vec<Vec<Vec<u32>>>> {
    let mut windows = text::windows_of(texts, tokenizer, WINDOW)?;
    windows.iter_mut().for_each(|t| t.truncate(EVALUATION_WINDOWS));
    Ok(windows)
}

/// A sentence for every text of the evaluation that the model is calibrated on as well, by its content.
pub(super) fn repeated_texts(calibration: &Calibration) -> Result<Vec<String>> {
    if calibration.evaluation.is_empty() {
        return Ok(Vec::new());
    }
    let digests = |texts: &[PathBuf]| texts.iter().map(|t| sha256([t])).collect::<Result<Vec<String>>>();
    let learned = digests(&calibration.files)?;
    let scored = calibration.evaluation.iter().zip(digests(&calibration.evaluation)?);
    let both = scored.filter(|(_, digest)| learned.contains(digest));
    let sentence = |text: &PathBuf| {
        format!(
            "{} is a text of the calibration: figures on it say how well the model has learned it, not what it is worth on others",
            file_name(text)
        )
    };
    Ok(both.map(|(text, _)| sentence(text)).collect())
}

/// Refuses tokens that `source` has no embedding for.
pub(super) fn check_embeddings<'a>(
    source: &dyn TensorSource,
    windows: impl Iterator<Item = &'a Vec<u32>>,
) -> Result<()> {
    let rows = source.tensors().iter().find(|t| t.name == "token_embd.weight").map(|t| t.dims[1]);
    match windows.flatten().find(|&&t| rows.is_some_and(|rows| u64::from(t) >= rows)) {
        Some(t) => {
            let what = format!("token {t} of the tokenizer has no embedding");
            Err(Error::unsupported(source.path(), what))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::moments::Shares;
    use crate::job::tuned::Effort;

    #[test]
    fn texts_are_told_apart_by_what_they_say() {
        let dir = tempfile::tempdir().unwrap();
        let text = |name: &str, says: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, says).unwrap();
            path
        };
        let (learned, copy, other) = (text("a.txt", "one"), text("copy.txt", "one"), text("b.txt", "two"));
        let mut c = Calibration {
            files: vec![other.clone(), learned.clone()],
            effort: Effort::Fast,
            generated: None,
            passes: None,
            correction: Shares::default(),
            polish_rounds: 0,
            absorb_passes: 0,
            steps: None,
            time_budget: None,
            save_imatrix: None,
            statistics: None,
            evaluation: vec![learned, copy, text("c.txt", "three")],
            coherence: false,
        };
        let notes = repeated_texts(&c).unwrap();
        assert_eq!(notes.len(), 2, "{notes:?}");
        assert!(
            notes[0].starts_with("a.txt is a text") && notes[1].starts_with("copy.txt is a text"),
            "{notes:?}"
        );
        c.files = vec![other];
        assert!(repeated_texts(&c).unwrap().is_empty());
    }
}

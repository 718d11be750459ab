//! Factorization of the layers that read one input of a block.

use super::sequential::{Made, Margins, Stage};
use crate::calibrate::moments::Moments;
use crate::decoder::{Linear, Weight};
use crate::error::Result;
use crate::factorize::{self, Job, Method, polish};
use crate::format::Factors;
use std::collections::HashMap;
use std::time::Instant;

impl Stage<'_> {
    /// Factorizes the layers that read the inputs of `moments`, unless they are made already. Returns margins if they are
    /// to be tuned.
    pub(super) fn site(
        &self,
        linears: &[Linear],
        moments: &Moments,
        made: &mut HashMap<String, Made>,
    ) -> Result<Margins> {
        let mut margins = Vec::new();
        let importance = moments.importance();
        let metric = polish::metric(&moments.compressed(), importance.len());
        let correction = moments.correction(&linears[0].name, self.correction)?;
        for l in linears {
            let (Some(&(index, rank)), Weight::Dense(w)) = (self.ranks.get(l.name.as_str()), &l.weight)
            else {
                continue;
            };
            let started = Instant::now();
            let target = match &correction {
                Some(c) => c.target(&l.name, w, l.scale)?,
                None => w.to_vec(),
            };
            // Rows whose errors cost more count more.
            let rows = self.measured.get(&l.name).map(|s| row_weights(&s.output));
            if !made.contains_key(&l.name) {
                // The moments were to be the device's.
                self.device.check()?;
                let factors = self.factors(l, rank, &target, rows.as_deref(), &importance, &metric)?;
                let one = Made { factors, seconds: started.elapsed().as_secs_f64() };
                self.journal.put(
                    &format!("matrix-{index}"),
                    &format!("the factors of '{}'", l.name),
                    &one,
                )?;
                made.insert(l.name.clone(), one);
            }
            if self.tuning.passes > 0 {
                let slices = &made[&l.name].factors.slices;
                let rows = rows.as_deref();
                margins.extend(polish::margins(self.device, &l.name, &target, slices, &metric, rows)?);
            }
        }
        Ok(margins)
    }

    /// Factors of `target`, polished under `metric` where the method allows it.
    fn factors(
        &self,
        l: &Linear,
        rank: usize,
        target: &[f32],
        rows: Option<&[f32]>,
        importance: &[f32],
        metric: &[f32],
    ) -> Result<Factors> {
        let options = self.options;
        // Rows that count more are scaled up for the factorization.
        let mut target = target.to_vec();
        for (row, s) in target.chunks_exact_mut(l.d_in).zip(rows.iter().copied().flatten()) {
            row.iter_mut().for_each(|x| *x *= s);
        }
        let job = Job {
            name: &l.name,
            w: &target,
            d_out: l.d_out,
            d_in: l.d_in,
            rank,
            paths: options.paths,
            method: options.method,
            rotate: options.rotate,
            importance: Some(importance),
            seed: options.seed,
            iterations: options.iterations,
        };
        let mut outcome = factorize::factorize_on(self.device, &job)?;
        if options.method == Method::Admm && options.paths == 1 && self.polish_rounds > 0 {
            let (path, rounds) = (&outcome.paths[0], self.polish_rounds);
            outcome.paths[0] = polish::polish(self.device, &l.name, &target, path, metric, rounds)?;
        }
        if let Some(rows) = rows {
            for p in &mut outcome.paths {
                let wide = |x: &[half::f16]| x.iter().map(|x| x.to_f32()).collect::<Vec<f32>>();
                let h: Vec<f32> = wide(&p.h).iter().zip(rows).map(|(h, s)| h / s).collect();
                *p = factorize::with_scales(&l.name, p, &h, &wide(&p.l), &wide(&p.g))?;
            }
        }
        Ok(Factors { paths: options.paths, slices: outcome.paths })
    }
}

/// Share of the uniform weight in that of the rows.
const ROW_SHRINKAGE: f32 = 0.3;

/// Square roots of the rows' weights.
pub(super) fn row_weights(output: &[f32]) -> Vec<f32> {
    let mean = output.iter().sum::<f32>() / output.len() as f32;
    if mean.is_normal() && mean > 0.0 {
        output.iter().map(|o| ((1.0 - ROW_SHRINKAGE) * o / mean + ROW_SHRINKAGE).sqrt()).collect()
    } else {
        vec![1.0; output.len()]
    }
}

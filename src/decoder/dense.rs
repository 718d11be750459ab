//! A dense weight in f32.

#[cfg(feature = "cuda")]
use crate::cuda::compute::Kept;
use std::ops::{Deref, DerefMut};
#[cfg(feature = "cuda")]
use std::sync::OnceLock;

/// Numbers of a weight, row-major. A device that has seen them may keep a copy, which is gone once they change.
#[derive(Debug, Default)]
pub struct Dense {
    values: Vec<f32>,
    #[cfg(feature = "cuda")]
    kept: OnceLock<Kept>,
}

#[cfg(feature = "cuda")]
impl Dense {
    /// The device's copy.
    pub(super) fn kept(&self) -> &OnceLock<Kept> {
        &self.kept
    }
}

impl From<Vec<f32>> for Dense {
    fn from(values: Vec<f32>) -> Self {
        Self {
            values,
            #[cfg(feature = "cuda")]
            kept: OnceLock::new(),
        }
    }
}

impl Clone for Dense {
    fn clone(&self) -> Self {
        self.values.clone().into()
    }
}

impl Deref for Dense {
    type Target = Vec<f32>;
    fn deref(&self) -> &Vec<f32> {
        &self.values
    }
}

impl DerefMut for Dense {
    fn deref_mut(&mut self) -> &mut Vec<f32> {
        #[cfg(feature = "cuda")]
        self.kept.take();
        &mut self.values
    }
}

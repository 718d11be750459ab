//! Random starts that depend on the seed, the matrix and the path, and on nothing else.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

/// Generator for path `path` of the matrix `name`. Matrices can be computed in any order, by any thread.
pub(super) fn rng(seed: u64, name: &str, path: usize) -> ChaCha8Rng {
    let mut hash = Sha256::new();
    hash.update(seed.to_le_bytes());
    hash.update((path as u64).to_le_bytes());
    hash.update(name.as_bytes());
    ChaCha8Rng::from_seed(hash.finalize().into())
}

/// `n` numbers, uniform in [-1, 1). Uniform rather than normal, because it needs no function of the system's
/// mathematics library and so has the same bits everywhere.
pub(super) fn uniform(rng: &mut ChaCha8Rng, n: usize) -> Vec<f32> {
    (0..n).map(|_| rng.random::<f32>() * 2.0 - 1.0).collect()
}

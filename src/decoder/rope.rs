//! Rotary position embedding of heads.

use super::config::RopeStyle;

/// Cosines and sines for positions `0..length`.
#[derive(Clone, Debug)]
pub struct Rotation {
    pairs: usize,
    /// `length x pairs`.
    cos: Vec<f32>,
    sin: Vec<f32>,
    style: RopeStyle,
}

impl Rotation {
    /// Angles `p * scale * base^(-2i/dims) / factors[i]`, both components times `magnitude`.
    pub fn new(
        length: usize,
        dims: usize,
        base: f64,
        scale: f64,
        magnitude: f32,
        factors: Option<&[f32]>,
        style: RopeStyle,
    ) -> Self {
        let pairs = dims / 2;
        let (mut cos, mut sin) = (Vec::with_capacity(length * pairs), Vec::with_capacity(length * pairs));
        for p in 0..length {
            for i in 0..pairs {
                let frequency = base.powf(-2.0 * i as f64 / dims as f64);
                let factor = factors.map_or(1.0, |f| f64::from(f[i]));
                let angle = p as f64 * scale * frequency / factor;
                cos.push(angle.cos() as f32 * magnitude);
                sin.push(angle.sin() as f32 * magnitude);
            }
        }
        Self { pairs, cos, sin, style }
    }

    /// Rotates `head` as the one at `position`.
    pub fn forward(&self, head: &mut [f32], position: usize) {
        self.rotate(head, position, 1.0);
    }

    /// Gradient of [`forward`](Self::forward): the transposed rotation.
    pub fn backward(&self, head: &mut [f32], position: usize) {
        self.rotate(head, position, -1.0);
    }

    fn rotate(&self, head: &mut [f32], position: usize, sign: f32) {
        let at = position * self.pairs;
        for i in 0..self.pairs {
            let (a, b) = match self.style {
                RopeStyle::Adjacent => (2 * i, 2 * i + 1),
                RopeStyle::Halves => (i, i + self.pairs),
            };
            let (c, s) = (self.cos[at + i], sign * self.sin[at + i]);
            let (x, y) = (head[a], head[b]);
            head[a] = x * c - y * s;
            head[b] = x * s + y * c;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_scaling_is_a_division_of_positions() {
        for style in [RopeStyle::Adjacent, RopeStyle::Halves] {
            let turns =
                |length, scale| Rotation::new(length, 6, 100.0, scale, 1.0, Some(&[1.0, 1.5, 4.0]), style);
            let (plain, scaled) = (turns(8, 1.0), turns(29, 0.25));
            for p in 0..8 {
                // What stands beyond the rotated components stays.
                let head = [0.3, -1.0, 0.7, 2.0, -0.2, 0.9, 5.0];
                let (mut a, mut b) = (head, head);
                plain.forward(&mut a, p);
                scaled.forward(&mut b, 4 * p);
                assert_eq!(a, b, "position {p}");
                assert!(p == 0 || a != head);
                scaled.backward(&mut b, 4 * p);
                assert!(b.iter().zip(head).all(|(b, h)| (b - h).abs() < 1e-6), "{b:?}");
            }
        }
    }
}

//! Every buffer ends at a page that must not be touched.

use crate::oracle::Random;
use littlebit::kernel::{self, Mode, Stage};

#[path = "../support/guarded.rs"]
mod memory;

use memory::Guarded;

#[test]
fn nothing_beyond_the_buffers_is_touched() {
    let mut random = Random(10);
    for (rows, cols) in [(1, 1), (33, 17), (9, 4097), (40, 31), (64, 64), (12, 8203)] {
        for n in [1, 3, 13] {
            let signs = random.signs(rows, cols);
            let tile = Guarded::new(signs.as_bytes());
            let pre = Guarded::new(&random.scales(cols, 1.0));
            let post = Guarded::new(&random.scales(rows, 1.0));
            let x: Vec<f32> = (0..cols * n).map(|_| random.normal()).collect();
            let x = Guarded::new(&x);
            let add = Guarded::new(&vec![1f32; rows * n]);
            for (kernel, mode) in
                kernel::available().into_iter().flat_map(|k| [(k, Mode::Int), (k, Mode::F32)])
            {
                let stage = Stage {
                    rows,
                    cols,
                    tile: tile.as_slice(),
                    pre: Some(pre.as_slice()),
                    post: Some(post.as_slice()),
                };
                let mut work = Guarded::new(&vec![0u8; stage.work_size(n, mode)]);
                let mut y = Guarded::new(&vec![0f32; rows * n]);
                let addend = Some((add.as_slice().as_ptr(), rows));
                let (xp, yp) = (x.as_slice().as_ptr(), y.as_mut_slice().as_mut_ptr());
                // SAFETY: n dense columns each.
                unsafe { stage.run(kernel, mode, xp, cols, n, addend, yp, rows, work.as_mut_slice(), 0, 1) };
                assert!(y.as_slice().iter().all(|y| y.is_finite()));
            }
        }
    }
}

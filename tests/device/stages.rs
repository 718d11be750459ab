//! `lb_cuda_stage_run` and `lb_cuda_group_run` from the C ABI down to `cuLaunchKernel`, on the host model of the driver: the bits of
//! the scalar kernel. The kernels by themselves, at all shapes, are tested in `tests/cuda`.

use crate::model::Model;
use crate::oracle::Random;
use half::f16;
use littlebit::bits::SignMatrix;
use littlebit::capi::*;
use littlebit::kernel::{Kernel, Mode, Stage};
use std::ffi::{c_int, c_void};
use std::ptr::{null, null_mut};

/// The model's device in the hands of this thread, with its context.
struct Gpu<'m> {
    model: &'m Model,
    cuda: *mut lb_cuda,
}

impl<'m> Gpu<'m> {
    fn new(model: &'m Model) -> Self {
        let init: unsafe extern "C" fn(u32) -> c_int = model.get("cuInit");
        let retain: unsafe extern "C" fn(*mut *mut c_void, c_int) -> c_int =
            model.get("cuDevicePrimaryCtxRetain");
        let set: unsafe extern "C" fn(*mut c_void) -> c_int = model.get("cuCtxSetCurrent");
        let (mut context, mut cuda) = (null_mut(), null_mut());
        // SAFETY: as the driver's manual has these functions; a place for each handle.
        unsafe {
            assert_eq!((init(0), retain(&mut context, 0), set(context)), (0, 0, 0));
            assert_eq!(lb_cuda_open(&mut cuda), LB_OK, "{}", message());
        }
        Gpu { model, cuda }
    }

    /// Device memory with a copy of `values`; it stays until the process ends.
    fn copy<T: Copy>(&self, values: &[T]) -> *mut T {
        let allocate: unsafe extern "C" fn(*mut u64, usize) -> c_int = self.model.get("cuMemAlloc_v2");
        let send: unsafe extern "C" fn(u64, *const c_void, usize) -> c_int =
            self.model.get("cuMemcpyHtoD_v2");
        let (mut at, bytes) = (0, size_of_val(values));
        // SAFETY: as the driver's manual has these functions; so many bytes on either side.
        unsafe {
            assert_eq!(allocate(&mut at, bytes.max(1)), 0);
            assert_eq!(send(at, values.as_ptr().cast(), bytes), 0);
        }
        at as *mut T
    }

    fn read(&self, at: *const f32, n: usize) -> Vec<f32> {
        let fetch: unsafe extern "C" fn(*mut c_void, u64, usize) -> c_int = self.model.get("cuMemcpyDtoH_v2");
        let mut out = vec![0f32; n];
        // SAFETY: as above.
        unsafe { assert_eq!(fetch(out.as_mut_ptr().cast(), at as u64, 4 * n), 0) };
        out
    }
}

impl Drop for Gpu<'_> {
    fn drop(&mut self) {
        // SAFETY: made by lb_cuda_open, given back once.
        unsafe { lb_cuda_free(self.cuda) }
    }
}

fn message() -> String {
    // SAFETY: a C string of this thread.
    unsafe { std::ffi::CStr::from_ptr(lb_last_error_message()) }.to_string_lossy().into_owned()
}

/// A stage in the host's memory.
struct Data {
    signs: SignMatrix,
    pre: Option<Vec<f16>>,
    post: Vec<f16>,
    x: Vec<f32>,
    n: usize,
}

impl Data {
    fn new(random: &mut Random, rows: usize, cols: usize, n: usize, pre: bool) -> Self {
        Data {
            signs: random.signs(rows, cols),
            pre: pre.then(|| random.scales(cols, 1.0)),
            post: random.scales(rows, 0.1),
            x: (0..cols * n).map(|_| random.normal()).collect(),
            n,
        }
    }

    /// Adds its product to `y` by the scalar kernel, or writes it where there is none.
    fn expected(&self, y: Option<&[f32]>) -> Vec<f32> {
        let (rows, cols) = (self.signs.rows(), self.signs.cols());
        let tile = self.signs.as_bytes();
        let stage = Stage { rows, cols, tile, pre: self.pre.as_deref(), post: Some(&self.post) };
        let mut out = vec![0f32; rows * self.n];
        let mut work = vec![0u8; stage.work_size(self.n, Mode::Int)];
        let add = y.map(|y| (y.as_ptr(), rows));
        // SAFETY: n columns each, one after the other.
        unsafe {
            let (x, y) = (self.x.as_ptr(), out.as_mut_ptr());
            stage.run(Kernel::Scalar, Mode::Int, x, cols, self.n, add, y, rows, &mut work, 0, 1);
        }
        out
    }

    /// The stage in the device's memory, with results at `y`, added to what is there if `further`.
    fn call(&self, gpu: &Gpu, y: *mut f32, further: bool) -> lb_cuda_call {
        let (rows, cols) = (self.signs.rows(), self.signs.cols());
        let bits = |v: &[f16]| v.iter().map(|v| v.to_bits()).collect::<Vec<u16>>();
        let tile = self.signs.as_bytes();
        let stage = lb_stage {
            struct_size: size_of::<lb_stage>() as u32,
            reserved: 0,
            rows: rows as u64,
            cols: cols as u64,
            tile: gpu.copy(tile),
            tile_size: tile.len(),
            pre: self.pre.as_ref().map_or(null(), |p| gpu.copy(&bits(p)).cast_const()),
            post: gpu.copy(&bits(&self.post)),
        };
        lb_cuda_call {
            struct_size: size_of::<lb_cuda_call>() as u32,
            reserved: 0,
            stage,
            x: gpu.copy(&self.x),
            x_stride: cols,
            add: if further { y } else { null() },
            add_stride: rows,
            y,
            y_stride: rows,
        }
    }
}

fn same(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

/// Every kernel, one stage at a time; a fault of any of them changes the bits.
#[test]
fn a_stage_has_the_bits_of_the_cpu() {
    let model = Model::new();
    let gpu = Gpu::new(&model);
    let mut random = Random(21);
    let cases = [
        (70, 300, 1, ["lbk_fused", "lbk_fused"]),
        (40, 9000, 1, ["lbk_extent", "lbk_split"]),
        (70, 45, 3, ["lbk_quantize", "lbk_small4"]),
        (33, 160, 9, ["lbk_quantize", "lbk_small8"]),
        (160, 130, 40, ["lbk_quantize", "lbk_large"]),
    ];
    for (rows, cols, n, kernels) in cases {
        let data = Data::new(&mut random, rows, cols, n, n != 3);
        let want = data.expected(None);
        let call = data.call(&gpu, gpu.copy(&vec![7.5f32; rows * n]), false);
        let mut size = 0;
        // SAFETY: a stage.
        assert_eq!(unsafe { lb_cuda_stage_work_size(&call.stage, n, &mut size) }, LB_OK);
        let work = gpu.copy(&vec![0xa5u8; size]).cast();
        let run = || {
            // SAFETY: memory of the model's device, of these sizes.
            let status = unsafe {
                let (y, stride) = (call.y, call.y_stride);
                let (x, none) = ((call.x, call.x_stride), null());
                lb_cuda_stage_run(
                    gpu.cuda,
                    &call.stage,
                    x.0,
                    x.1,
                    n,
                    none,
                    0,
                    y,
                    stride,
                    work,
                    size,
                    null_mut(),
                )
            };
            assert_eq!(status, LB_OK, "{}", message());
            gpu.read(call.y, rows * n)
        };
        assert!(same(&run(), &want), "{rows} x {cols}, n = {n}");
        for kernel in kernels {
            model.fault(Some(kernel));
            assert!(!same(&run(), &want), "{kernel} did not run");
        }
        model.fault(None);
    }
}

/// Members with one and two paths in the fewest launches, and a group whose members differ in paths, which goes stage by stage.
#[test]
fn a_group_has_the_bits_of_the_cpu() {
    let model = Model::new();
    let gpu = Gpu::new(&model);
    let mut random = Random(22);
    for paths in [[1, 1, 1], [2, 2, 2], [2, 1, 2]] {
        for n in [1, 5, 17] {
            let (mut calls, mut wanted) = (Vec::new(), Vec::new());
            for ((rows, cols), paths) in [(96, 64), (33, 32), (70, 160)].into_iter().zip(paths) {
                let y = gpu.copy(&vec![7.5f32; rows * n]);
                let mut want: Option<Vec<f32>> = None;
                for path in 0..paths {
                    let data = Data::new(&mut random, rows, cols, n, true);
                    want = Some(data.expected(want.as_deref()));
                    calls.push(data.call(&gpu, y, path > 0));
                }
                wanted.push((y, want.unwrap()));
            }
            let mut size = 0;
            // SAFETY: calls of the model's device, of the sizes that they say.
            let status = unsafe {
                assert_eq!(lb_cuda_group_work_size(calls.as_ptr(), calls.len(), n, &mut size), LB_OK);
                let work = gpu.copy(&vec![0xa5u8; size]).cast();
                lb_cuda_group_run(gpu.cuda, calls.as_ptr(), calls.len(), n, work, size, null_mut())
            };
            assert_eq!(status, LB_OK, "{}", message());
            for (m, (y, want)) in wanted.iter().enumerate() {
                assert!(same(&gpu.read(*y, want.len()), want), "member {m} of {paths:?}, n = {n}");
            }
        }
    }
}

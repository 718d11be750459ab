//! The CUDA calls on machines without a GPU: statuses, never a panic. What they launch is tested in `tests/cuda`.

use crate::fixture::{Model, blank_stage, message, stage};
use littlebit::capi::*;
use std::ptr::{null, null_mut};

fn open() -> (lb_status, *mut lb_cuda) {
    let mut cuda = null_mut();
    // SAFETY: a place for the handle.
    (unsafe { lb_cuda_open(&mut cuda) }, cuda)
}

#[test]
fn opening_without_cuda_is_a_status() {
    // SAFETY: NULL is refused.
    assert_eq!(unsafe { lb_cuda_open(null_mut()) }, LB_ERROR_NULL_POINTER);
    // SAFETY: NULL is allowed.
    unsafe { lb_cuda_free(null_mut()) };
    let (status, cuda) = open();
    if cfg!(feature = "cuda") && status != LB_ERROR_NO_CUDA {
        // With a driver: this thread has no context.
        assert_eq!((status, cuda), (LB_ERROR_INVALID_ARGUMENT, null_mut()), "{}", message());
        assert!(message().contains("no CUDA context"), "{}", message());
        return;
    }
    assert_eq!((status, cuda), (LB_ERROR_NO_CUDA, null_mut()));
    assert!(message().starts_with("no CUDA: "), "{}", message());
    assert!(
        message().contains(if cfg!(feature = "cuda") { "driver" } else { "built without" }),
        "{}",
        message()
    );
}

#[test]
fn work_size_needs_no_cuda_and_checks_the_stage() {
    let model = Model::new();
    let v = stage(&model, 0, 0, 0, 0); // 64 x 45
    let size = |stage: *const lb_stage, n| {
        let mut size = 7;
        // SAFETY: a stage, or what is refused.
        (unsafe { lb_cuda_stage_work_size(stage, n, &mut size) }, size)
    };
    assert_eq!(size(&v, 0), (LB_OK, 0));
    assert_eq!(size(&v, 1), (LB_OK, 0), "quantized by the launch itself");
    assert_eq!(size(&v, 2), (LB_OK, 2 * (16 + 2 * 128)));
    assert_eq!(size(null(), 1), (LB_ERROR_NULL_POINTER, 7));
    assert_eq!(size(&lb_stage { struct_size: 3, ..v }, 1), (LB_ERROR_STRUCT_SIZE, 7));
    assert_eq!(size(&blank_stage(), 1).0, LB_ERROR_INVALID_ARGUMENT);
    for bad in [
        lb_stage { reserved: 1, ..v },
        lb_stage { rows: 0, ..v },
        lb_stage { cols: 1 << 40, ..v },
        lb_stage { tile_size: v.tile_size - 1, ..v },
    ] {
        assert_eq!(size(&bad, 1).0, LB_ERROR_INVALID_ARGUMENT, "{bad:?}");
    }
    // A grid has no room for more.
    assert_eq!(size(&v, 2_097_120).0, LB_OK);
    assert_eq!(size(&v, 2_097_121).0, LB_ERROR_INVALID_ARGUMENT);
    assert_eq!(size(&v, usize::MAX).0, LB_ERROR_INVALID_ARGUMENT);
}

#[test]
fn running_without_a_handle_is_refused() {
    let model = Model::new();
    let v = stage(&model, 0, 0, 0, 0);
    let (x, mut y) = ([0f32; 45], [0f32; 64]);
    // SAFETY: refused before anything is used.
    let status = unsafe {
        lb_cuda_stage_run(
            null(),
            &v,
            x.as_ptr(),
            45,
            1,
            null(),
            0,
            y.as_mut_ptr(),
            64,
            null_mut(),
            0,
            null_mut(),
        )
    };
    assert_eq!(status, LB_ERROR_NULL_POINTER);
    assert!(message().contains("cuda"), "{}", message());
}

fn call(stage: lb_stage, y: &mut [f32]) -> lb_cuda_call {
    lb_cuda_call {
        struct_size: size_of::<lb_cuda_call>() as u32,
        reserved: 0,
        stage,
        x: null(),
        x_stride: 45,
        add: null(),
        add_stride: 0,
        y: y.as_mut_ptr(),
        y_stride: 64,
    }
}

#[test]
fn groups_are_checked_without_cuda() {
    let model = Model::new();
    let v = stage(&model, 0, 0, 0, 0);
    let mut y = [0f32; 64];
    let good = call(v, &mut y);
    let size = |calls: &[lb_cuda_call], n| {
        let mut size = 7;
        // SAFETY: calls, or what is refused.
        (unsafe { lb_cuda_group_work_size(calls.as_ptr(), calls.len(), n, &mut size) }, size)
    };
    assert_eq!(size(&[], 2), (LB_OK, 0));
    assert_eq!(size(&[good; 3], 1), (LB_OK, 0));
    assert_eq!(size(&[good; 3], 2), (LB_OK, 3 * 2 * (16 + 2 * 128)));
    assert_eq!(size(&[good; LB_CUDA_GROUP_MAX + 1], 1).0, LB_ERROR_INVALID_ARGUMENT);
    for (bad, status) in [
        (lb_cuda_call { struct_size: 3, ..good }, LB_ERROR_STRUCT_SIZE),
        (lb_cuda_call { reserved: 1, ..good }, LB_ERROR_INVALID_ARGUMENT),
        (lb_cuda_call { stage: lb_stage { struct_size: 3, ..v }, ..good }, LB_ERROR_STRUCT_SIZE),
        (lb_cuda_call { stage: lb_stage { rows: 0, ..v }, ..good }, LB_ERROR_INVALID_ARGUMENT),
    ] {
        assert_eq!(size(&[bad, good], 1), (status, 7));
        assert_eq!(size(&[good, bad], 1), (status, 7));
    }
    // SAFETY: refused before anything is used.
    let run = |calls: *const lb_cuda_call| unsafe {
        lb_cuda_group_run(null(), calls, 1, 1, null_mut(), 0, null_mut())
    };
    assert_eq!(run(&good), LB_ERROR_NULL_POINTER);
    assert!(message().contains("cuda"), "{}", message());
    // SAFETY: as above.
    let status = unsafe { lb_cuda_group_work_size(null(), 1, 1, &mut 0) };
    assert_eq!(status, LB_ERROR_NULL_POINTER);
}

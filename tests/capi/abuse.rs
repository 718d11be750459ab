//! Calls that C can get wrong: each gives its status, a message, and untouched outputs.

use crate::fixture::{MATRICES, Model, blank_stage, c_string, message, stage, work_size};
use littlebit::capi::*;
use std::ffi::{CStr, c_void};
use std::ptr::{null, null_mut};

/// Fails with `status`, and says `word`.
#[track_caller]
fn refused(got: lb_status, status: lb_status, word: &str) {
    let message = message();
    assert_eq!(got, status, "{message}");
    assert!(message.contains(word), "'{message}' does not say '{word}'");
}

#[test]
fn opening() {
    let dir = tempfile::tempdir().unwrap();
    let mark = 0x40 as *mut lb_model;
    let mut out = mark;
    let mut open = |bytes: Option<&[u8]>, status, word: &str| {
        let path = dir.path().join("bad.gguf");
        match bytes {
            Some(bytes) => std::fs::write(&path, bytes).unwrap(),
            None => drop(std::fs::remove_file(&path)),
        }
        // SAFETY: a C string and a place for the handle.
        refused(unsafe { lb_model_open(c_string(&path).as_ptr(), &mut out) }, status, word);
        assert_eq!(out, mark);
    };
    open(None, LB_ERROR_IO, "bad.gguf: open: ");
    open(Some(b""), LB_ERROR_MALFORMED, "bad.gguf: byte 0");
    open(Some(b"GGML and then some text, long enough for a header"), LB_ERROR_MALFORMED, "bad.gguf");
    let good = std::fs::read(&Model::new().path).unwrap();
    open(Some(&good[..good.len() - 64]), LB_ERROR_MALFORMED, "bad.gguf");
    let key = good.windows(17).position(|w| w == b"littlebit.version").unwrap();
    let mut future = good.clone();
    future[key + 17 + 4] = 2;
    open(Some(&future), LB_ERROR_UNSUPPORTED, "newer littlebit");
    let mut plain = good.clone();
    plain[key] = b'L';
    open(Some(&plain), LB_ERROR_UNSUPPORTED, "not a LittleBit file");

    let good = Model::new();
    let path = c_string(&good.path);
    // SAFETY: bad pointers are refused before they are used.
    unsafe {
        refused(lb_model_open(null(), &mut out), LB_ERROR_NULL_POINTER, "path is NULL");
        refused(lb_model_open(path.as_ptr(), null_mut()), LB_ERROR_NULL_POINTER, "out is NULL");
        let odd = (&raw mut out).wrapping_byte_add(1);
        refused(lb_model_open(path.as_ptr(), odd), LB_ERROR_MISALIGNED, "out is not aligned to 8");
        // Not UTF-8: the system's bytes, and a message in UTF-8 all the same.
        refused(lb_model_open(c"/no/such/\xff.gguf".as_ptr(), &mut out), LB_ERROR_IO, "/no/such/");
        lb_model_free(null_mut());
    }
    assert_eq!(out, mark);
}

#[test]
fn handles() {
    let model = Model::new();
    let mark = 0x40 as *const lb_matrix;
    let mut out = mark;
    // SAFETY: bad pointers are refused before they are used.
    unsafe {
        assert_eq!(lb_model_matrix_count(null()), 0);
        assert!(lb_matrix_name(null()).is_null());
        refused(lb_model_matrix(null(), 0, &mut out), LB_ERROR_NULL_POINTER, "model is NULL");
        refused(lb_model_matrix(model.raw, 0, null_mut()), LB_ERROR_NULL_POINTER, "out is NULL");
        refused(lb_model_matrix(model.raw, 2, &mut out), LB_ERROR_OUT_OF_RANGE, "matrix 2 of 2");
        refused(lb_model_matrix(model.raw, usize::MAX, &mut out), LB_ERROR_OUT_OF_RANGE, "of 2");
        let find = |name: &CStr, out: &mut _| lb_model_find_matrix(model.raw, name.as_ptr(), out);
        refused(find(c"", &mut out), LB_ERROR_NOT_FOUND, "no factorized matrix ''");
        refused(find(c"blk.0.attn_q.bias", &mut out), LB_ERROR_NOT_FOUND, "attn_q.bias");
        refused(find(c"blk.0.\xff", &mut out), LB_ERROR_NOT_FOUND, "small.gguf");
        refused(lb_model_find_matrix(model.raw, null(), &mut out), LB_ERROR_NULL_POINTER, "name is NULL");
        let odd = model.raw.cast_const().wrapping_byte_add(1);
        refused(lb_model_matrix(odd, 0, &mut out), LB_ERROR_MISALIGNED, "model is not aligned");
    }
    assert_eq!(out, mark);
}

#[test]
fn struct_sizes() {
    let model = Model::new();
    let matrix = model.matrix(0);
    let good = model.info(0);
    let mut out = blank_stage();
    for size in [0, 4, 47, 49, u32::MAX] {
        let mut info = lb_matrix_info { struct_size: size, rank: 99, ..good };
        let before = info;
        out.struct_size = size;
        // SAFETY: structs with their size set, to a wrong value.
        unsafe {
            refused(lb_matrix_get_info(matrix, &mut info), LB_ERROR_STRUCT_SIZE, "sizeof(lb_matrix_info)");
            refused(lb_matrix_stage(matrix, 0, 0, 0, &mut out), LB_ERROR_STRUCT_SIZE, "sizeof(lb_stage)");
            let mut work = 77;
            let status = lb_stage_work_size(&out, LB_MODE_INT, 1, &mut work);
            refused(status, LB_ERROR_STRUCT_SIZE, "sizeof(lb_stage)");
            assert_eq!(work, 77);
        }
        assert_eq!(info, before);
        assert!(out.tile.is_null());
    }
    // SAFETY: NULL is refused.
    unsafe {
        refused(lb_matrix_get_info(matrix, null_mut()), LB_ERROR_NULL_POINTER, "out is NULL");
        refused(lb_matrix_stage(matrix, 0, 0, 0, null_mut()), LB_ERROR_NULL_POINTER, "out is NULL");
        out = blank_stage();
        refused(lb_matrix_stage(matrix, 1, 0, 0, &mut out), LB_ERROR_OUT_OF_RANGE, "expert 1 of 1");
        refused(lb_matrix_stage(matrix, 0, 2, 0, &mut out), LB_ERROR_OUT_OF_RANGE, "path 2 of 2");
        refused(lb_matrix_stage(matrix, 0, 0, 2, &mut out), LB_ERROR_OUT_OF_RANGE, "half 2 of 2");
    }
}

#[test]
fn products() {
    let model = Model::new();
    let (matrix, shape) = (model.matrix(0), MATRICES[0].1);
    let (d_in, d_out) = (shape.d_in, shape.d_out);
    let mut memory = vec![0f32; 4 * (d_in + d_out)];
    let x = memory.as_mut_ptr();
    let y = x.wrapping_add(2 * d_in);
    // SAFETY: what is wrong is refused before memory is used; the rest is right.
    unsafe {
        let mul = |expert, mode, x: *const f32, x_stride, n, y: *mut f32, y_stride| {
            lb_matrix_mul(matrix, expert, mode, x, x_stride, n, y, y_stride, 2)
        };
        assert_eq!(mul(0, 0, x, d_in, 2, y, d_out), LB_OK);
        assert_eq!(mul(0, 1, null(), 0, 0, null_mut(), 0), LB_OK);
        refused(mul(0, 2, x, d_in, 1, y, d_out), LB_ERROR_INVALID_ARGUMENT, "mode is 2");
        refused(mul(1, 0, x, d_in, 1, y, d_out), LB_ERROR_OUT_OF_RANGE, "expert 1 of 1");
        refused(mul(0, 0, null(), d_in, 1, y, d_out), LB_ERROR_NULL_POINTER, "x is NULL");
        refused(mul(0, 0, x, d_in, 1, null_mut(), d_out), LB_ERROR_NULL_POINTER, "y is NULL");
        let odd = x.wrapping_byte_add(1);
        refused(mul(0, 0, odd, d_in, 1, y, d_out), LB_ERROR_MISALIGNED, "x is not aligned to 4");
        refused(mul(0, 0, x, d_in - 1, 2, y, d_out), LB_ERROR_INVALID_ARGUMENT, "x: columns of 45");
        refused(mul(0, 0, x, d_in, 2, y, d_out - 1), LB_ERROR_INVALID_ARGUMENT, "y: columns of 70");
        refused(mul(0, 0, x, usize::MAX / 2, 4, y, d_out), LB_ERROR_INVALID_ARGUMENT, "address space");
        refused(mul(0, 0, x, usize::MAX / 8, 2, y, d_out), LB_ERROR_INVALID_ARGUMENT, "address space");
        refused(mul(0, 0, x, d_in, usize::MAX, y, d_out), LB_ERROR_INVALID_ARGUMENT, "address space");
        refused(mul(0, 0, x, d_in, 1, x.add(d_in - 1), d_out), LB_ERROR_INVALID_ARGUMENT, "overlap");
        let null_matrix = lb_matrix_mul(null(), 0, 0, x, d_in, 1, y, d_out, 1);
        refused(null_matrix, LB_ERROR_NULL_POINTER, "matrix is NULL");
    }
}

/// Faults in the factors show at first use, every time, and name file and tensor.
#[test]
fn damaged_factors() {
    let model = Model::edited(|bytes| {
        let end = bytes.len();
        // The last tensor of the file is blk.0.ffn_up_exps.lb_h: 6 x 33 f16, then padding.
        let h = end - (6usize * 33 * 2).next_multiple_of(littlebit::format::schema::ALIGNMENT as usize);
        bytes[h..h + 2].copy_from_slice(&[0x00, 0x7e]);
    });
    let mut out = blank_stage();
    for _ in 0..2 {
        // SAFETY: an open model's matrix.
        let status = unsafe { lb_matrix_stage(model.matrix(1), 0, 0, 0, &mut out) };
        refused(status, LB_ERROR_MALFORMED, "small.gguf: byte ");
        assert!(message().contains("'blk.0.ffn_up_exps.lb_h'") && message().contains("NaN"), "{}", message());
        assert!(out.tile.is_null());
    }
    stage(&model, 0, 0, 0, 0);
}

/// One call of `lb_stage_run`, as fields that a test can spoil.
#[derive(Clone, Copy)]
struct Run {
    stage: lb_stage,
    mode: u32,
    x: *const f32,
    x_stride: usize,
    n: usize,
    add: *const f32,
    add_stride: usize,
    y: *mut f32,
    y_stride: usize,
    work: *mut c_void,
    work_size: usize,
    ith: u32,
    nth: u32,
}

impl Run {
    fn call(&self) -> lb_status {
        // SAFETY: what is wrong is refused before memory is used; the rest is right.
        unsafe {
            let (x, add, y) = ((self.x, self.x_stride), (self.add, self.add_stride), (self.y, self.y_stride));
            let (work, n) = ((self.work, self.work_size), self.n);
            lb_stage_run(
                &self.stage,
                self.mode,
                x.0,
                x.1,
                n,
                add.0,
                add.1,
                y.0,
                y.1,
                work.0,
                work.1,
                self.ith,
                self.nth,
            )
        }
    }
}

#[test]
fn stages() {
    let model = Model::new();
    let stage = stage(&model, 0, 0, 0, 0);
    let (rows, cols, n) = (stage.rows as usize, stage.cols as usize, 2);
    let size = work_size(&stage, LB_MODE_F32, n);
    let mut memory = vec![0f32; n * (cols + 2 * rows) + size / 4 + 2];
    let x = memory.as_mut_ptr();
    let y = x.wrapping_add(n * cols);
    let add = y.wrapping_add(n * rows);
    let work = add.wrapping_add(n * rows).cast();
    let good = Run {
        stage,
        mode: LB_MODE_F32,
        x,
        x_stride: cols,
        n,
        add,
        add_stride: rows,
        y,
        y_stride: rows,
        work,
        work_size: size,
        ith: 0,
        nth: 1,
    };
    assert_eq!(good.call(), LB_OK, "{}", message());
    assert_eq!(Run { add: y, ..good }.call(), LB_OK);
    assert_eq!(Run { ith: 99, nth: 100, ..good }.call(), LB_OK, "more threads than rows");
    let nothing = Run { n: 0, x: null(), y: null_mut(), add: null(), work: null_mut(), work_size: 0, ..good };
    assert_eq!(nothing.call(), LB_OK);

    let wrong = |edit: &dyn Fn(&mut Run), status, word: &str| {
        let mut call = good;
        edit(&mut call);
        refused(call.call(), status, word);
    };
    const INVALID: lb_status = LB_ERROR_INVALID_ARGUMENT;
    wrong(&|r| r.stage.tile_size -= 1, INVALID, "the tile has");
    wrong(&|r| r.stage.tile_size += 32, INVALID, "the tile has");
    wrong(&|r| r.stage.tile_size = usize::MAX, INVALID, "address space");
    wrong(&|r| r.stage.rows = 0, INVALID, "empty");
    wrong(&|r| r.stage.cols = 0, INVALID, "empty");
    wrong(&|r| r.stage.cols = u64::MAX, INVALID, "columns");
    wrong(&|r| r.stage.rows = u64::MAX, INVALID, "rows");
    wrong(&|r| r.stage.rows += 32, INVALID, "the tile has");
    wrong(&|r| r.stage.reserved = 1, INVALID, "reserved");
    wrong(&|r| r.stage.struct_size = 0, LB_ERROR_STRUCT_SIZE, "sizeof(lb_stage)");
    wrong(&|r| r.stage.tile = null(), LB_ERROR_NULL_POINTER, "tile is NULL");
    wrong(
        &|r| r.stage.pre = r.stage.pre.wrapping_byte_add(1),
        LB_ERROR_MISALIGNED,
        "pre is not aligned to 2",
    );
    wrong(&|r| r.stage.post = r.stage.post.wrapping_byte_add(1), LB_ERROR_MISALIGNED, "post");
    wrong(&|r| r.mode = 2, INVALID, "mode is 2");
    wrong(&|r| r.ith = 1, LB_ERROR_OUT_OF_RANGE, "thread 1 of 1");
    wrong(&|r| r.nth = 0, LB_ERROR_OUT_OF_RANGE, "thread 0 of 0");
    wrong(&|r| r.x = null(), LB_ERROR_NULL_POINTER, "x is NULL");
    wrong(&|r| r.y = null_mut(), LB_ERROR_NULL_POINTER, "y is NULL");
    wrong(&|r| r.work = null_mut(), LB_ERROR_NULL_POINTER, "work is NULL");
    wrong(&|r| r.x = r.x.wrapping_byte_add(2), LB_ERROR_MISALIGNED, "x is not aligned");
    wrong(&|r| r.add = r.add.wrapping_byte_add(2), LB_ERROR_MISALIGNED, "add is not aligned");
    wrong(&|r| r.work_size -= 1, LB_ERROR_BUFFER_TOO_SMALL, "2 columns of this stage need");
    wrong(&|r| r.work_size = 0, LB_ERROR_BUFFER_TOO_SMALL, "work has 0 bytes");
    wrong(&|r| r.work_size = usize::MAX, INVALID, "address space");
    wrong(&|r| r.x_stride = 0, INVALID, "x: columns of");
    wrong(&|r| r.y_stride = rows - 1, INVALID, "y: columns of");
    wrong(&|r| r.add_stride = rows - 1, INVALID, "add: columns of");
    wrong(&|r| r.n = usize::MAX, INVALID, "address space");
    wrong(&|r| r.y_stride = usize::MAX / 4, INVALID, "address space");
    wrong(&|r| r.y = r.x.cast_mut(), INVALID, "x and y overlap");
    wrong(&|r| r.work = r.x.cast_mut().cast(), INVALID, "work and x overlap");
    wrong(&|r| r.work = r.y.cast(), INVALID, "work and y overlap");
    wrong(&|r| r.work = r.add.cast_mut().cast(), INVALID, "work and add overlap");
    wrong(&|r| r.add = r.y.wrapping_add(1), INVALID, "add and y overlap");
    wrong(&|r| (r.add, r.add_stride) = (r.y, rows + 1), INVALID, "add and y overlap");
    // SAFETY: NULL is refused.
    unsafe {
        let mut size = 77;
        refused(lb_stage_work_size(null(), 0, 1, &mut size), LB_ERROR_NULL_POINTER, "stage is NULL");
        refused(lb_stage_work_size(&stage, 0, 1, null_mut()), LB_ERROR_NULL_POINTER, "out is NULL");
        refused(lb_stage_work_size(&stage, 9, 1, &mut size), INVALID, "mode is 9");
        assert_eq!(size, 77);
    }
}

#[test]
fn kernels() {
    let name = |i| {
        let name = lb_kernel_name(i);
        // SAFETY: a static C string.
        (!name.is_null()).then(|| unsafe { CStr::from_ptr(name) })
    };
    let count = lb_kernel_count();
    assert_eq!(name(0), Some(c"scalar"));
    assert_eq!((name(count), name(usize::MAX)), (None, None));
    // SAFETY: C strings.
    unsafe {
        for i in 0..count {
            assert_eq!(lb_kernel_force(lb_kernel_name(i)), LB_OK);
            assert_eq!(lb_kernel_active(), lb_kernel_name(i));
        }
        assert_eq!(lb_kernel_force(c"scalar".as_ptr()), LB_OK);
        refused(lb_kernel_force(c"sse9".as_ptr()), LB_ERROR_INVALID_ARGUMENT, "unknown kernel 'sse9'");
        refused(lb_kernel_force(c"\xff".as_ptr()), LB_ERROR_INVALID_ARGUMENT, "unknown kernel");
        assert_eq!(lb_kernel_active(), lb_kernel_name(0));
        assert_eq!(lb_kernel_force(null()), LB_OK);
        assert!(!lb_kernel_active().is_null());
    }
}

#[test]
fn messages_belong_to_their_thread() {
    // SAFETY: NULL is refused.
    refused(unsafe { lb_model_matrix(null(), 0, null_mut()) }, LB_ERROR_NULL_POINTER, "model is NULL");
    std::thread::spawn(|| assert_eq!(message(), "")).join().unwrap();
    assert_eq!(message(), "model is NULL");
}

#[test]
fn every_status_has_a_text() {
    let text = |status| {
        // SAFETY: a static C string.
        unsafe { CStr::from_ptr(lb_status_text(status)) }.to_str().unwrap()
    };
    let header =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/include/littlebit.h")).unwrap();
    let spec = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/specs/c-abi.md")).unwrap();
    let mut seen = 0;
    for line in header.lines().filter_map(|l| l.strip_prefix("#define LB_ERROR_")) {
        let (name, number) = line.split_once(' ').unwrap();
        assert_ne!(text(number.parse().unwrap()), text(12345), "{name}");
        assert!(spec.contains(&format!("| {number} | `LB_ERROR_{name}` |")), "{name} in specs/c-abi.md");
        seen += 1;
    }
    assert!(seen >= 12);
    assert_eq!((text(LB_OK), text(12345)), ("success", "unknown status"));
}

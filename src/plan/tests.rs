use super::*;
use crate::format::factors::slice_bits;
use crate::format::schema::{self, Shape};
use proptest::prelude::*;

fn spec(name: &str, d_out: usize, d_in: usize, experts: usize) -> MatrixSpec {
    MatrixSpec { name: name.to_owned(), d_out, d_in, experts, fixed: None, spectrum: None }
}

fn usage(r: Result<Plan>, word: &str) {
    match r {
        Err(Error::Usage(what)) => assert!(what.contains(word), "'{what}' does not mention '{word}'"),
        other => panic!("expected a usage error, got {other:?}"),
    }
}

#[test]
fn a_single_matrix_takes_the_largest_rank_that_fits() {
    let specs = [spec("a.weight", 576, 576, 1)];
    let p = plan(&specs, Target::Bpw(1.0), 1, Method::Admm).unwrap();
    let e = &p.entries[0];
    assert_eq!(e.rank, 256);
    assert_eq!(e.bits, slice_bits(576, 576, 256));
    assert!(e.bits <= 576 * 576 && slice_bits(576, 576, 288) > 576 * 576);
    assert!(!e.floor_bound);
    assert_eq!((p.bits, p.weights), (e.bits, 576 * 576));
}

#[test]
fn leftovers_go_to_the_largest_remainder_first() {
    // At 1.0 bpw each matrix alone is rounded down; together their leftovers buy some steps.
    let specs: Vec<_> = (0..8).map(|i| spec(&format!("{i}.weight"), 576, 576, 1)).collect();
    let p = plan(&specs, Target::Bpw(1.0), 1, Method::Admm).unwrap();
    let ranks: Vec<_> = p.entries.iter().map(|e| e.rank).collect();
    let gained = ranks.iter().filter(|&&r| r == 288).count();
    let (low, step) = (slice_bits(576, 576, 256), slice_bits(576, 576, 288) - slice_bits(576, 576, 256));
    assert_eq!(gained as u64, 8 * (576 * 576 - low) / step);
    assert!(gained > 0 && gained < 8);
    assert!(ranks[..gained].iter().all(|&r| r == 288), "equal remainders go by name: {ranks:?}");
    assert!(p.bpw <= 1.0);
    // A matrix with a larger remainder wins although it comes last.
    let specs = [spec("a.weight", 576, 576, 1), spec("b.weight", 576, 576, 1), spec("c.weight", 600, 600, 1)];
    let p = plan(&specs, Target::Bpw(1.0), 1, Method::Admm).unwrap();
    let fraction = |d: usize, r| (d * d) as f64 - slice_bits(d, d, r) as f64;
    assert!(fraction(600, 256) > fraction(576, 256));
    assert_eq!(p.entries.iter().map(|e| e.rank).collect::<Vec<_>>(), [256, 256, 288]);
}

#[test]
fn tiny_budgets_are_bound_by_the_lowest_rank() {
    let specs = [spec("small.weight", 64, 64, 1), spec("large.weight", 4096, 4096, 1)];
    let p = plan(&specs, Target::Bpw(0.1), 1, Method::Admm).unwrap();
    assert_eq!(p.entries[0].rank, 32);
    assert!(p.entries[0].floor_bound);
    assert!(!p.entries[1].floor_bound);
    assert!(p.entries[0].bpw > 0.1 && p.entries[1].bpw <= 0.1);
}

#[test]
fn the_others_pay_for_matrices_at_the_lowest_rank() {
    // 64 experts whose lowest rank takes 1.6 bits a weight, beside as many weights that can go lower.
    let specs = [spec("experts.weight", 64, 64, 64), spec("large.weight", 512, 512, 1)];
    for bpw in [1.0, 1.2, 1.4] {
        let p = plan(&specs, Target::Bpw(bpw), 1, Method::Admm).unwrap();
        assert!(p.entries[0].floor_bound && p.entries[0].bpw > bpw);
        assert!(!p.entries[1].floor_bound && p.entries[1].bpw < bpw);
        let step = slice_bits(512, 512, 64) - slice_bits(512, 512, 32);
        assert!(p.bpw <= bpw && (p.bits + step) as f64 > bpw * p.weights as f64, "{bpw}: {}", p.bpw);
    }
    let p = plan(&specs, Target::Bpw(0.1), 1, Method::Admm).unwrap();
    assert!(p.bpw > 0.1 && p.entries.iter().all(|e| e.rank == RANK_STEP && e.floor_bound));
}

#[test]
fn svid_ranks_stop_at_the_number_of_singular_values() {
    let specs = [spec("a.weight", 40, 4096, 1)];
    let p = plan(&specs, Target::Bpw(8.0), 1, Method::DualSvid).unwrap();
    assert_eq!(p.entries[0].rank, 64);
    assert!(plan(&specs, Target::Bpw(8.0), 1, Method::Admm).unwrap().entries[0].rank > 64);
    let p = plan(&specs, Target::Rank(128), 1, Method::DualSvid).unwrap();
    assert_eq!(p.entries[0].rank, 64);
    assert!(!p.entries[0].floor_bound);
}

#[test]
fn a_fixed_rank_is_used_as_it_is() {
    let specs = [spec("a.weight", 64, 64, 4), spec("b.weight", 128, 64, 1)];
    let p = plan(&specs, Target::Rank(96), 2, Method::Admm).unwrap();
    assert!(p.entries.iter().all(|e| e.rank == 96));
    assert_eq!(p.entries[0].bits, 8 * slice_bits(64, 64, 96));
    assert_eq!(p.entries[0].weights, 4 * 64 * 64);
}

#[test]
fn nonsense_is_refused_with_the_word_the_user_typed() {
    let specs = [spec("a.weight", 64, 64, 1)];
    for bpw in [0.0, -1.0, f64::NAN, f64::INFINITY, 16.1] {
        usage(plan(&specs, Target::Bpw(bpw), 1, Method::Admm), "bpw");
    }
    for rank in [0, 1, 33, MAX_RANK + RANK_STEP, usize::MAX] {
        usage(plan(&specs, Target::Rank(rank), 1, Method::Admm), "rank");
    }
    usage(plan(&specs, Target::Rank(100), 1, Method::Admm), "nearest is 96");
    for paths in [0, 3] {
        usage(plan(&specs, Target::Bpw(1.0), paths, Method::Admm), "paths");
    }
    let none = plan(&[], Target::Bpw(1.0), 1, Method::Admm).unwrap();
    assert_eq!((none.bits, none.bpw), (0, 0.0));
}

proptest! {
    /// The account equals the bytes of the descriptors that the writer will use, and the target holds.
    #[test]
    fn bits_are_the_bytes_of_the_file(
        shapes in prop::collection::vec((1usize..700, 1usize..700, 1usize..4), 1..12),
        bpw in 0.05f64..4.0,
        paths in 1usize..3,
    ) {
        let specs: Vec<_> =
            shapes.iter().enumerate().map(|(i, &(o, n, e))| spec(&format!("{i}.weight"), o, n, e)).collect();
        let p = plan(&specs, Target::Bpw(bpw), paths, Method::Admm).unwrap();
        for (s, e) in specs.iter().zip(&p.entries) {
            let shape = Shape { d_out: s.d_out, d_in: s.d_in, rank: e.rank, slices: s.experts * paths };
            let bytes: u64 = schema::descriptors("x", &shape).iter().map(|d| d.nbytes().unwrap()).sum();
            prop_assert_eq!(8 * bytes, e.bits);
            prop_assert!(e.rank >= RANK_STEP && e.rank % RANK_STEP == 0);
        }
        prop_assert_eq!(p.bits, p.entries.iter().map(|e| e.bits).sum::<u64>());
        if p.entries.iter().any(|e| e.rank > RANK_STEP) {
            prop_assert!(p.bits as f64 <= bpw * p.weights as f64);
        }
        prop_assert_eq!(&p, &plan(&specs, Target::Bpw(bpw), paths, Method::Admm).unwrap());
    }
}

/// A spectrum of equal components, `min(d_out, d_in)` of them.
fn flat(spec: MatrixSpec, lambda: f32) -> MatrixSpec {
    let n = spec.d_out.min(spec.d_in);
    MatrixSpec { spectrum: Some(vec![lambda; n]), ..spec }
}

#[test]
fn equal_spectra_change_nothing() {
    let plain: Vec<_> = (0..6).map(|i| spec(&format!("{i}.weight"), 576, 1536 - 64 * i, 1)).collect();
    let measured: Vec<_> = plain
        .iter()
        .map(|s| {
            // The same error in every degree of freedom.
            flat(s.clone(), 1e-3)
        })
        .collect();
    for bpw in [0.3, 1.0, 2.5] {
        let [a, b] = [&plain, &measured].map(|s| plan(s, Target::Bpw(bpw), 1, Method::Admm).unwrap());
        let near = |(a, b): (&PlanEntry, &PlanEntry)| a.rank.abs_diff(b.rank) <= RANK_STEP;
        assert!(a.entries.iter().zip(&b.entries).all(near), "{a:?} {b:?}");
        assert!(b.bpw <= bpw && b.bpw > bpw - 0.02, "{}", b.bpw);
    }
}

#[test]
fn a_budget_out_of_reach_gives_every_matrix_the_lowest_rank() {
    // However much one of them is worth.
    let worth = [1e6, 1.0, 1e-3, 1e-3];
    let specs: Vec<_> =
        worth.iter().enumerate().map(|(i, l)| flat(spec(&format!("{i}.weight"), 576, 576, 1), *l)).collect();
    for bpw in [0.01, 0.1, 0.118] {
        let p = plan(&specs, Target::Bpw(bpw), 1, Method::Admm).unwrap();
        assert!(p.entries.iter().all(|e| e.rank == RANK_STEP), "{bpw}: {p:?}");
    }
    // Within reach again.
    let p = plan(&specs, Target::Bpw(0.2), 1, Method::Admm).unwrap();
    assert!(p.bpw <= 0.2 && p.entries[0].rank > RANK_STEP, "{p:?}");
}

#[test]
fn what_costs_more_gets_more() {
    // Sixteen times the cost is worth log2(16) / 1.51 bits per weight more, of which half is given.
    let specs = [flat(spec("a.weight", 2048, 2048, 1), 16e-3), flat(spec("b.weight", 2048, 2048, 1), 1e-3)];
    let p = plan(&specs, Target::Bpw(2.0), 1, Method::Admm).unwrap();
    assert!((p.entries[0].bpw - p.entries[1].bpw - 2.0 / 1.51).abs() < 0.05, "{p:?}");
    assert!(p.bpw <= 2.0 && p.bpw > 1.99);
    // What is packed into few dimensions needs less.
    let mut few = vec![0.0; 2048];
    few[..64].fill(32.0);
    let packed = MatrixSpec { spectrum: Some(few), ..spec("a.weight", 2048, 2048, 1) };
    let p = plan(&[packed, specs[1].clone()], Target::Bpw(1.0), 1, Method::Admm).unwrap();
    assert!(p.entries[0].bpw < 0.85 && p.entries[1].bpw > 1.12, "{p:?}");
    // Nothing measured, nothing felt, or fixed by a rule: the share of a plain matrix, the lowest rank, the rule's.
    let dead = flat(spec("c.weight", 2048, 2048, 1), 0.0);
    let fixed = MatrixSpec { fixed: Some(Target::Rank(96)), ..flat(spec("d.weight", 2048, 2048, 1), 1.0) };
    let all = [specs[1].clone(), spec("b.weight", 2048, 2048, 1), dead, fixed];
    let p = plan(&all, Target::Bpw(1.0), 1, Method::Admm).unwrap();
    assert_eq!(p.entries[3].rank, 96);
    assert!((p.entries[0].bpw - p.entries[1].bpw).abs() < 0.05, "{p:?}");
}

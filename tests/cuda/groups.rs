//! Stages that share launches: the bits of each by itself.

use super::*;

/// One half of the matrices of a block that multiply one input.
struct Half {
    /// Rows and columns of each.
    shapes: Vec<(usize, usize)>,
    paths: usize,
    n: usize,
    pre: bool,
}

/// Runs the half together and compares it with every stage run by the scalar kernel, path after path. Gives the number of launches.
fn check_half(host: &Host, half: &Half, random: &mut Random, order: i32) -> usize {
    let mut cases = Vec::new();
    for (m, (rows, cols)) in half.shapes.iter().enumerate() {
        for path in 0..half.paths {
            // Of a chain all but the first add; their addend is replaced below.
            let add = path > 0 || m % 2 == 1;
            let odd = m % 2 == 1;
            let (gap, post) = (3 * (m % 2), m != 2);
            let case = Case { rows: *rows, cols: *cols, n: half.n, pre: half.pre, post, add, gap, odd };
            let d =
                data(&case, random, |i, r| if i % 37 == m + path { 9.0 * r.normal() } else { r.normal() });
            cases.push((case, d));
        }
    }
    let placed: Vec<Placed> = cases.iter().map(|(case, d)| placed(case, d)).collect();
    let mut stages: Vec<cuda::Args> = placed.iter().map(|p| p.args).collect();
    for i in 0..stages.len() {
        if i % half.paths > 0 {
            let y = stages[i - 1].y;
            stages[i] = cuda::Args { y, add: y, ..stages[i] };
        }
    }
    assert!(run(host, &stages, half.paths, order));
    for m in 0..half.shapes.len() {
        let mut want = Vec::new();
        for path in 0..half.paths {
            let (case, d) = &mut cases[m * half.paths + path];
            if path > 0 {
                d.add = want;
            }
            want = expected(case, d);
        }
        let got = placed[m * half.paths].y.as_slice();
        assert!(same(got, &want), "member {m} of {:?}, n = {}, order {order}", half.shapes, half.n);
    }
    cuda::join(&stages, half.paths).map_or(0, |plan| plan.len())
}

/// Members of different rows and ranks, one to three of them, one or two paths, every kernel but those for very wide columns.
#[test]
fn halves_share_launches() {
    let host = Host::new();
    let mut random = Random(11);
    // q, k, v with ranks of their own; gate, up; one; edges of tiles and words
    let members = [
        vec![(96, 64), (33, 32), (40, 96)],
        vec![(70, 45), (130, 160)],
        vec![(64, 32)],
        vec![(1, 1), (32, 129)],
    ];
    for (i, shapes) in members.iter().enumerate() {
        for n in [1, 2, 3, 4, 5, 6, 7, 8, 16, 17, 40] {
            for paths in [1, 2] {
                let half = Half { shapes: shapes.clone(), paths, n, pre: (i + n) % 2 == 0 };
                let orders = if n < 5 { &ORDERS[..] } else { &ORDERS[(i + n + paths) % 3..][..1] };
                for order in orders {
                    let launches = check_half(&host, &half, &mut random, *order);
                    assert_eq!(launches, if n == 1 { 1 } else { 2 });
                }
            }
        }
    }
}

/// Together they fold, alone they would not; and one that is wide takes the others along.
#[test]
fn halves_agree_on_how_they_fold() {
    let host = Host::new();
    let mut random = Random(14);
    for paths in [1, 2] {
        let half = Half { shapes: vec![(4100, 64), (4100, 96), (4100, 32)], paths, n: 1, pre: false };
        assert_eq!(check_half(&host, &half, &mut random, ORDERS[paths]), 1);
        let half = Half { shapes: vec![(64, 64), (40, 4200)], paths, n: 1, pre: false };
        assert_eq!(check_half(&host, &half, &mut random, ORDERS[paths]), 1);
    }
}

/// Six first halves: three members, two paths, none waits for another.
#[test]
fn first_halves_of_all_paths_are_one_launch() {
    let host = Host::new();
    let mut random = Random(12);
    let shapes = vec![(64, 576), (64, 576), (32, 576), (32, 576), (96, 576), (96, 576)];
    for n in [1, 4] {
        let half = Half { shapes: shapes.clone(), paths: 1, n, pre: true };
        assert_eq!(check_half(&host, &half, &mut random, ORDERS[2]), n.min(2));
    }
}

/// Wide columns share their two launches where they are cut into as many slices.
#[test]
fn wide_halves_share_launches() {
    let host = Host::new();
    let mut random = Random(13);
    for order in ORDERS {
        let half = Half { shapes: vec![(33, 8200), (64, 12_000), (1, 8193)], paths: 1, n: 1, pre: true };
        assert_eq!(check_half(&host, &half, &mut random, order), 2);
    }
}

fn stage(rows: u32, cols: u32, n: u32) -> cuda::Args {
    let case = Case { rows: 1, cols: 1, n: 1, pre: false, post: false, add: false, gap: 0, odd: false };
    let d = data(&case, &mut Random(1), |_, _| 1.0);
    cuda::Args { rows, cols, n, ..placed(&case, &d).args }.with_work(4096)
}

/// What is cut differently stays apart, and both planners say so; they agree on everything that a launch takes.
#[test]
fn both_planners_join_alike() {
    let host = Host::new();
    let mut joined = 0;
    let sizes = [
        (32, 64, 1),
        (4096, 1152, 1),
        (11008, 4097, 1),
        (64, 8193, 1),
        (64, 20_000, 1),
        (33, 64, 3),
        (95, 64, 12),
    ];
    let more = [(4096, 576, 40), (129, 576, 33), (1, 1, 5)];
    let all: Vec<_> = sizes.into_iter().chain(more).map(|(rows, cols, n)| stage(rows, cols, n)).collect();
    let mut lists: Vec<(Vec<cuda::Args>, usize)> = Vec::new();
    for a in &all {
        lists.push((vec![*a], 1));
        lists.push((vec![*a; cuda::STAGES + 1], 1));
        for b in &all {
            lists.extend([1, 2].map(|chain| (vec![*a, *b], chain)));
            lists.extend([1, 2, 3].map(|chain| (vec![*a, *b, *a, *a, *b, *b], chain)));
        }
    }
    for (stages, chain) in &lists {
        let plan = cuda::join(stages, *chain);
        let own = plan.as_deref().unwrap_or(&[]);
        assert_eq!(own, host.join(stages, *chain as u32), "{stages:?} in chains of {chain}");
        for k in 0..own.len() {
            let (ours, theirs) =
                (cuda::group(stages, *chain, k), host.group(stages, *chain as u32, k as u32));
            let cut = |g: &cuda::Group| (g.members, g.chain, g.fold, g.end);
            assert_eq!(cut(&ours), cut(&theirs));
            let text = |g: &cuda::Group| format!("{:?}", &g.stages[..stages.len()]);
            assert_eq!(text(&ours), text(&theirs));
            joined += usize::from(stages.len() > 1);
        }
    }
    assert!(joined > 50, "{joined}");
    let apart = [vec![all[0], all[3]], vec![all[3], all[4]], vec![all[5], all[6]]];
    assert!(apart.iter().all(|stages| cuda::join(stages, 1).is_none()));
    assert!(cuda::join(&[all[3], all[3]], 2).is_none(), "slices are added up by whichever block is last");
    for s in &all {
        assert_eq!(format!("{:?}", s.with_work(1 << 20)), format!("{:?}", host.with_work(*s, 1 << 20)));
    }
}

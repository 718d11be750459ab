//! `verify` and `diff` on the real binary.

mod support;

use littlebit::format::LittleBitFile;
use littlebit::format::schema::Part;
use serde_json::Value as Json;
use std::path::Path;
use support::{fails, ok, run, s, small_model, untouched};

/// JSON of `diff`, which exits with `code`.
fn diff(code: i32, a: &Path, b: &Path) -> Json {
    let out = run(&["diff", s(a), s(b), "--json"]);
    assert_eq!(out.status.code(), Some(code), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

#[test]
fn differences_are_found_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let input = small_model(dir.path(), untouched);
    let (a, b, c) = (path("a.gguf"), path("b.gguf"), path("c.gguf"));
    ok(&[s(&input), s(&a), "--rank", "32", "-q"]);
    ok(&[s(&input), s(&b), "--rank", "32", "--seed", "1", "-q"]);
    ok(&[s(&input), s(&c), "--rank", "64", "-q"]);

    assert!(ok(&["diff", s(&a), s(&a)]).starts_with("identical: 11 tensors"));
    assert_eq!(diff(0, &a, &a)["identical"], true);

    // Another start: the same form, other signs and scales.
    let found = diff(4, &a, &b);
    let keys = found["difference"]["keys"].as_array().unwrap();
    assert_eq!(keys.len(), 1, "{keys:?}");
    assert_eq!(
        (&keys[0]["key"], &keys[0]["a"], &keys[0]["b"]),
        (&"littlebit.seed".into(), &"0".into(), &"1".into())
    );
    let tensors = found["difference"]["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), 7);
    for t in tensors {
        assert_eq!(t["a"], t["b"]);
        for side in ["u", "v"] {
            let turned = t["factors"][side].as_f64().unwrap();
            assert!((0.2..0.8).contains(&turned), "{t}");
        }
        assert!(t["change"].as_f64().unwrap() > 0.01, "{t}");
    }
    assert_eq!(found["difference"]["equal"], 4);

    // Another rank: another form.
    let found = diff(4, &a, &c);
    let t = &found["difference"]["tensors"][0];
    assert_eq!((&t["a"], &t["b"]), (&"rank 32 [96, 96]".into(), &"rank 64 [96, 96]".into()), "{t}");
    assert!(t["factors"].is_null());

    // Against the source the change is the error of the weights.
    let found = diff(4, &input, &a);
    let t = found["difference"]["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .find(|t| t["name"] == "blk.0.ffn_up.weight");
    let t = t.unwrap();
    assert_eq!(t["a"], "F32 [96, 200]");
    let event = ok(&["verify", s(&a), "--against", s(&input), "--json"]);
    let event: Json = serde_json::from_str(&event).unwrap();
    let errors = event["found"]["matrices"].as_array().unwrap();
    let error = errors.iter().find(|e| e[0] == "blk.0.ffn_up.weight").unwrap()[1].as_f64().unwrap();
    assert!((t["change"].as_f64().unwrap() - error).abs() < 1e-6, "{t} {error}");

    // A tensor that only one of them has.
    let text = String::from_utf8(run(&["diff", s(&input), s(&a)]).stdout).unwrap();
    assert!(text.contains("key littlebit.version: - -> 1"), "{text}");
    let e = fails(1, &["diff", s(&a), "/no/such/file"]);
    assert!(e.contains("/no/such/file"), "{e}");
}

#[test]
fn a_file_is_verified_alone_and_against_its_source() {
    let dir = tempfile::tempdir().unwrap();
    let input = small_model(dir.path(), untouched);
    let out = dir.path().join("o.gguf");
    let report = ok(&[s(&input), s(&out), "--rank", "32", "--json"]);
    let done: Json = serde_json::from_str(report.lines().last().unwrap()).unwrap();
    assert!(ok(&["verify", s(&out)]).contains("sound, 7 matrices"));

    let verified: Json =
        serde_json::from_str(&ok(&["verify", s(&out), "--against", s(&input), "--json"])).unwrap();
    let found = &verified["found"];
    assert_eq!(found["same_source"], true);
    assert_eq!(found["faults"].as_array().unwrap().len(), 0);
    // The errors that the conversion has reported.
    let reported = done["report"]["matrices"].as_array().unwrap();
    let matrices = found["matrices"].as_array().unwrap();
    assert_eq!(matrices.len(), reported.len());
    for (m, r) in matrices.iter().zip(reported) {
        assert_eq!(m[0], r["name"]);
        assert!((m[1].as_f64().unwrap() - r["error"].as_f64().unwrap()).abs() < 1e-5, "{m} {r}");
    }
    // The embeddings were floats and are stored in q8_0 (rows of 96 fill no block of q6_K).
    let changed = found["changed"].as_array().unwrap();
    assert_eq!((changed.len(), &changed[0][0]), (1, &"token_embd.weight".into()));
    assert!(changed[0][1].as_f64().unwrap() < 0.01);

    // Another model of the same shape has another checksum and larger errors, which is told and is no fault.
    let other = tempfile::tempdir().unwrap();
    let stranger = small_model(other.path(), |name, v| {
        if name == "blk.0.attn_q.weight" {
            v.reverse();
        }
    });
    let said = ok(&["verify", s(&out), "--against", s(&stranger), "-q"]);
    assert!(said.contains("another source's checksum"), "{said}");
    // A compressed model is no source.
    let e = fails(1, &["verify", s(&input)]);
    assert!(e.contains("not a compressed model"), "{e}");
    fails(2, &["verify", s(&out), "--eval", "t.txt"]);

    // A scale that is not finite.
    let file = LittleBitFile::open(&out).unwrap();
    let at = file.part(file.find("blk.0.ffn_up").unwrap(), Part::L).offset as usize;
    let mut bytes = std::fs::read(&out).unwrap();
    bytes[at..at + 2].copy_from_slice(&[0x00, 0x7c]);
    std::fs::write(&out, bytes).unwrap();
    let e = fails(1, &["verify", s(&out)]);
    assert!(e.contains("blk.0.ffn_up.lb_l") && e.contains("scale 0 is inf"), "{e}");
}

#[test]
fn a_file_of_another_shape_is_rejected() {
    let dir = tempfile::tempdir().unwrap();
    let input = small_model(dir.path(), untouched);
    let out = dir.path().join("o.gguf");
    ok(&[s(&input), s(&out), "--rank", "32", "-q"]);
    // A source without one of the file's weights.
    let file = littlebit::gguf::Gguf::open(&input).unwrap();
    let missing = dir.path().join("missing.gguf");
    let descs: Vec<_> = file
        .tensors
        .iter()
        .filter(|t| t.name != "blk.0.ffn_gate.weight")
        .map(|t| littlebit::gguf::TensorDesc { name: t.name.clone(), dims: t.dims.clone(), ty: t.ty })
        .collect();
    let mut w = littlebit::gguf::Writer::new(Vec::new(), &file.kv, descs.clone(), 32).unwrap();
    for d in &descs {
        let mut bytes = Vec::new();
        file.read(file.tensor(&d.name).unwrap(), &mut bytes).unwrap();
        w.write_tensor(&d.name, &bytes).unwrap();
    }
    std::fs::write(&missing, w.finish().unwrap()).unwrap();
    let e = fails(3, &["verify", s(&out), "--against", s(&missing), "-q"]);
    assert!(e.contains("rejected: tensor 'blk.0.ffn_gate.weight' is none of the source's"), "{e}");
}

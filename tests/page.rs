//! The report's page in a real browser, where there is one.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use support::checkpoint::{SMOLLM, write_gguf};
use support::{ok, s};

/// Chromium in the path, by its usual names.
fn browser() -> Option<PathBuf> {
    let names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).flat_map(|dir| names.map(|name| dir.join(name))).find(|file| file.is_file())
}

/// Runs the browser on `page`; returns stdout and stderr.
fn open(browser: &Path, profile: &Path, page: &Path, more: &[&str]) -> (String, String) {
    let mut command = Command::new(browser);
    command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]);
    command.args(["--disable-background-networking", "--disable-component-update", "--disable-sync"]);
    command.args(["--enable-logging=stderr", "--hide-scrollbars", "--virtual-time-budget=3000"]);
    command.arg(format!("--user-data-dir={}", s(profile))).args(more).arg(format!("file://{}", s(page)));
    let out = command.output().expect("the browser starts");
    (String::from_utf8_lossy(&out.stdout).into_owned(), String::from_utf8_lossy(&out.stderr).into_owned())
}

#[test]
fn the_page_works_in_a_browser() {
    let Some(browser) = browser() else {
        println!("skipped: no Chromium in the path");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let input = write_gguf(dir.path(), &SMOLLM);
    let path = |name: &str| dir.path().join(name);
    let (out, page) = (path("o.gguf"), path("o.html"));
    let own =
        ["--generated-windows", "2", "--effort", "fast", "--tune-steps", "1", "--rank", "32", "--coherence"];
    ok(&[&[s(&input), s(&out), "--report", s(&page), "-q"], &own[..]].concat());
    // A click on the head of a column, by a script of the test's own: the page's policy allows inline ones.
    let text = std::fs::read_to_string(&page).unwrap();
    let click = "<script>const heads = [...document.querySelectorAll('th button')];\n\
                 heads.find(b => b.textContent === 'error').click();\n\
                 document.title = 'overflow ' + (document.documentElement.scrollWidth - innerWidth);</script></body>";
    std::fs::write(&page, text.replacen("</body>", click, 1)).unwrap();
    let (dom, said) = open(&browser, &path("profile"), &page, &["--window-size=400,900", "--dump-dom"]);
    assert!(!said.contains("CONSOLE"), "the page complains: {said}");
    assert!(dom.contains("aria-sort=\"ascending\""), "nothing was sorted: {said}");
    // As narrow as a telephone, only tables scroll.
    let title = dom.split("<title>").nth(1).and_then(|t| t.split("</title>").next()).unwrap_or_default();
    let overflow: f64 = title.trim_start_matches("overflow ").parse().unwrap_or(f64::NAN);
    assert!(overflow <= 0.0, "the page is wider than its window: {title}");
    let errors: Vec<f64> = dom
        .split("<section>")
        .find(|part| part.contains("<h2>Factorized matrices"))
        .unwrap()
        .split("<tr>")
        .skip(2)
        .map(|row| row.split("data-value=\"").nth(6).unwrap().split('"').next().unwrap().parse().unwrap())
        .collect();
    assert!(errors.len() == 14 && errors.is_sorted(), "{errors:?}");
    let picture = path("page.png");
    let shot = format!("--screenshot={}", s(&picture));
    open(&browser, &path("profile"), &page, &["--window-size=1200,2000", &shot]);
    assert!(std::fs::metadata(&picture).is_ok_and(|m| m.len() > 20_000), "no picture");
}

//! The directions of ARCHITECTURE.md, held against the code's own imports.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Module → the modules of ours it may import; `domain` and `affinity` may be imported by all.
fn allowed() -> BTreeMap<&'static str, &'static [&'static str]> {
    BTreeMap::from([
        ("affinity", &[][..]),
        ("bearer", &[]),
        ("domain", &[]),
        ("proto", &[]),
        ("store", &["telemetry"]),
        ("broker", &["telemetry"]),
        // The bench shows the real delivery path, so it alone also sees the protocols.
        ("hub", &["telemetry"]),
        ("hub/bench", &["hub", "proto", "serve", "telemetry", "store", "broker"]),
        ("serve", &["proto", "hub", "store", "broker", "telemetry", "shutdown"]),
        // It is a viewer like any other, and the probe has a client for each transport.
        ("serve/canary", &["bearer", "probe", "telemetry"]),
        ("load", &["bearer", "proto", "result", "telemetry", "shutdown"]),
        ("probe", &["bearer", "proto", "result", "telemetry", "shutdown"]),
        ("result", &[]),
        ("compare", &["load", "report", "result", "shutdown", "telemetry"]),
        ("report", &["result"]),
        // It measures the store beside whole pods, and so it alone sees both sides.
        ("contention", &["compare", "proto", "result", "store", "telemetry", "shutdown"]),
        ("doctor", &["compare", "telemetry"]),
        ("telemetry", &[]),
        ("shutdown", &[]),
    ])
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn imports_run_one_way() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let rules = allowed();
    let mut wrong = Vec::new();
    let mut seen = 0;
    for file in files {
        let place = file.strip_prefix(&src).unwrap().with_extension("").to_string_lossy().replace("/mod", "");
        let module = place.split('/').next().unwrap().to_owned();
        if ["main", "lib", "cli"].contains(&module.as_str()) {
            continue;
        }
        let rule = rules.iter().filter(|(name, _)| place.starts_with(**name)).max_by_key(|(name, _)| name.len());
        let (_, may) = rule.unwrap_or_else(|| panic!("{place}: no rule; add it to ARCHITECTURE.md and here"));
        let text = fs::read_to_string(&file).unwrap();
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap();
            for import in code.match_indices("crate::").map(|(at, found)| &code[at + found.len()..]) {
                let target: String = import.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
                seen += 1;
                if target != module
                    && !["domain", "affinity"].contains(&target.as_str())
                    && !target.is_empty()
                    && !may.contains(&target.as_str())
                {
                    wrong.push(format!("{place}.rs:{}: {module} may not import {target}", number + 1));
                }
            }
        }
    }
    assert!(seen > 0, "only {seen} imports found: does the test still read them?");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

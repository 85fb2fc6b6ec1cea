//! docs/conformance.md against the source: each rule has a test that exists, or a reason; each such test is listed.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The names of all functions that begin with one of the prefixes, below a folder.
fn functions(folder: &Path, prefixes: &[&str], found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            functions(&path, prefixes, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let names = text.split("fn ").skip(1).filter_map(|rest| rest.split(['(', '<']).next());
            let numbered = |name: &&str| {
                prefixes.iter().any(|prefix| {
                    let number = name.strip_prefix(prefix).and_then(|rest| rest.get(..3));
                    number.is_some_and(|n| n.ends_with('_') && n[..2].bytes().all(|b| b.is_ascii_digit()))
                })
            };
            found.extend(names.filter(numbered).map(str::to_owned));
        }
    }
}

#[test]
fn every_rule_has_a_test_or_a_reason() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sections = [("## STOMP", "stomp_", 47), ("## SSE", "sse_", 20), ("## WebSocket", "ws_", 13)];
    let mut existing = BTreeSet::new();
    let prefixes = sections.map(|(_, prefix, _)| prefix);
    ["src", "tests"].iter().for_each(|folder| functions(&root.join(folder), &prefixes, &mut existing));

    let text = fs::read_to_string(root.join("docs/conformance.md")).unwrap();
    let mut listed = BTreeSet::new();
    for (title, prefix, count) in sections {
        let section = text.split(title).nth(1).unwrap().split("\n## ").next().unwrap();
        let rows: Vec<Vec<&str>> = section
            .lines()
            .map(|line| line.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>())
            .filter(|cells| cells.len() == 3 && cells[0].parse::<usize>().is_ok())
            .collect();
        assert_eq!(rows.len(), count, "{title}: the list has {count} items");
        for (row, number) in rows.iter().zip(1..) {
            assert_eq!(row[0], number.to_string(), "{title}");
            let tests: Vec<&str> = row[2].split('`').skip(1).step_by(2).collect();
            let named_after_it = tests.iter().any(|name| name.starts_with(&format!("{prefix}{number:02}_")));
            assert!(named_after_it || row[2].starts_with("Reason: "), "{title} {number}: neither test nor reason");
            let tests = tests.into_iter().filter(|name| name.starts_with(prefix));
            listed.extend(tests.map(str::to_owned));
        }
    }
    let missing: Vec<_> = listed.difference(&existing).collect();
    assert!(missing.is_empty(), "listed, but no such function: {missing:?}");
    let forgotten: Vec<_> = existing.difference(&listed).collect();
    assert!(forgotten.is_empty(), "not listed in docs/conformance.md: {forgotten:?}");
}

//! Keeps the doors honest: each room's `Uses:` line says what it imports, and nothing imports in a circle.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

type Rooms = BTreeMap<String, BTreeSet<String>>;

fn files(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

/// What the code of a room names of other rooms: every `crate::ROOM` outside tests.
fn imports(room: &str, rooms: &BTreeSet<String>) -> BTreeSet<String> {
    let mut found = Vec::new();
    files(&Path::new("src").join(room), &mut found);
    let is_test = |p: &PathBuf| {
        p.components().any(|c| c.as_os_str().to_string_lossy().starts_with("test"))
            || p.components().any(|c| c.as_os_str() == "conformance")
    };
    let mut used = BTreeSet::new();
    for file in found.iter().filter(|p| !is_test(p)) {
        let text = fs::read_to_string(file).unwrap();
        // Unit tests at a file's end may use whatever they like.
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        for line in code.lines().filter(|l| !l.trim_start().starts_with("//")) {
            for (at, _) in line.match_indices("crate::") {
                let name: String =
                    line[at + 7..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
                if rooms.contains(&name) && name != room {
                    used.insert(name);
                }
            }
        }
    }
    used
}

/// What a room's plaque says it uses: the words of its `Uses:` paragraph that are rooms.
fn declared(room: &str, rooms: &BTreeSet<String>) -> BTreeSet<String> {
    let door = fs::read_to_string(Path::new("src").join(room).join("mod.rs")).unwrap();
    let plaque: Vec<&str> = door.lines().take_while(|l| l.starts_with("//!")).collect();
    assert!(plaque[0].starts_with(&format!("//! {room}: ")), "src/{room}/mod.rs begins with its name and one sentence");
    let text = plaque.iter().map(|l| l.trim_start_matches("//!").trim()).collect::<Vec<_>>().join("\n");
    assert!(text.contains("Invariant:"), "src/{room}/mod.rs says what is absent");
    let start = text.find("\nUses:").unwrap_or_else(|| panic!("src/{room}/mod.rs has a Uses: line")) + 6;
    let uses = text[start..].split("\n\n").next().unwrap();
    if uses.contains("every room") {
        return rooms.iter().filter(|r| *r != room).cloned().collect();
    }
    uses.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|w| rooms.contains(*w))
        .map(str::to_owned)
        .collect()
}

fn rooms() -> BTreeSet<String> {
    fs::read_dir("src")
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.is_dir())
        .map(|p| p.file_name().unwrap().to_string_lossy().into_owned())
        .collect()
}

#[test]
fn every_plaque_tells_the_truth() {
    let rooms = rooms();
    for room in rooms.iter().filter(|r| *r != "app") {
        assert_eq!(
            declared(room, &rooms),
            imports(room, &rooms),
            "{room}: what its plaque says against what it imports"
        );
    }
}

#[test]
fn dependencies_go_one_way() {
    let names = rooms();
    let graph: Rooms = names.iter().map(|r| (r.clone(), imports(r, &names))).collect();
    let mut done: BTreeSet<&str> = BTreeSet::new();
    while done.len() < graph.len() {
        let next: Vec<&str> = graph
            .iter()
            .filter(|(room, uses)| !done.contains(room.as_str()) && uses.iter().all(|u| done.contains(u.as_str())))
            .map(|(room, _)| room.as_str())
            .collect();
        let left: Vec<&String> = graph.keys().filter(|r| !done.contains(r.as_str())).collect();
        assert!(!next.is_empty(), "these rooms import each other in a circle: {left:?}");
        done.extend(next);
    }
}

#[test]
fn every_room_has_its_card_in_the_architecture() {
    let text = fs::read_to_string("docs/ARCHITECTURE.md").unwrap();
    let all = rooms();
    for room in all.iter().filter(|r| *r != "app") {
        let card = text.lines().find(|l| l.starts_with(&format!("| `{room}` |")));
        let card = card.unwrap_or_else(|| panic!("docs/ARCHITECTURE.md has a card for {room}"));
        let uses = card.split('|').nth(3).unwrap();
        let said: BTreeSet<String> = uses
            .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .filter(|w| all.contains(*w))
            .map(str::to_owned)
            .collect();
        assert_eq!(said, imports(room, &all), "{room}: what its card says against what it imports");
    }
}

#[test]
fn only_the_registry_names_arc_swap_and_unsafe_is_where_it_is_said() {
    let mut all = Vec::new();
    files(Path::new("src"), &mut all);
    for file in all {
        let text = fs::read_to_string(&file).unwrap();
        let code: String = text.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
        let shown = file.display().to_string();
        assert!(!code.contains("ArcSwap") || shown.starts_with("src/registry/"), "{shown} names ArcSwap");
        let is_test = shown.contains("/tests") || shown.contains("/conformance/");
        let may = is_test || shown.starts_with("src/backend/ort") || shown == "src/lifecycle/memory.rs";
        assert!(!code.contains("unsafe {") || may, "{shown} has an unsafe block");
    }
}

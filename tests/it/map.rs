//! The map of the rooms: what each says it uses is what it imports, and no two rooms import each other.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Names of rooms.
type Rooms = BTreeSet<String>;

/// The room that composes all others; it may import every one.
const TOP: &str = "app";

fn rooms() -> Rooms {
    let entries = fs::read_dir("src").unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.is_dir()).map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
}

fn source_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(source_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

fn is_test(path: &Path) -> bool {
    path.components().any(|part| {
        let part = part.as_os_str().to_string_lossy();
        part.starts_with("test") || part == "conformance"
    })
}

/// A file without comments, and without the unit tests at its end.
fn code(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// The words of a text that are names of rooms.
fn named_in(text: &str, rooms: &Rooms) -> Rooms {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| rooms.contains(*word)).map(str::to_owned).collect()
}

/// The first name of each path behind `crate::`, where `code` may go on with a path or with a group of them:
/// `a::b`, or `{a, b::{c, d}}`.
fn heads(code: &str) -> Vec<&str> {
    let name = |path: &str| path.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(path.len());
    let Some(group) = code.strip_prefix('{') else { return vec![&code[..name(code)]] };
    let (mut heads, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, c) in group.char_indices() {
        let ends = depth == 0 && matches!(c, ',' | '}');
        if ends {
            let path = group[start..at].trim();
            // Nothing follows a comma at the end of a group.
            heads.extend((!path.is_empty()).then(|| &path[..name(path)]));
            start = at + 1;
        }
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            _ => {}
        }
    }
    heads
}

/// The other rooms that the code of a room names, tests aside.
fn imports(room: &str, rooms: &Rooms) -> Rooms {
    let mut imported = Rooms::new();
    for file in source_files(&Path::new("src").join(room)).iter().filter(|file| !is_test(file)) {
        let code = code(file);
        let paths = code.match_indices("crate::").flat_map(|(at, found)| heads(&code[at + found.len()..]));
        imported.extend(paths.filter(|head| *head != room && rooms.contains(*head)).map(str::to_owned));
    }
    imported
}

/// The rooms in the `Uses:` paragraph of a room's `mod.rs`, or what is wrong with its contract.
fn declared(room: &str, rooms: &Rooms) -> Result<Rooms, String> {
    let text = fs::read_to_string(Path::new("src").join(room).join("mod.rs")).unwrap();
    let contract: Vec<&str> =
        text.lines().take_while(|line| line.starts_with("//!")).map(|line| line[3..].trim()).collect();
    if !contract.first().is_some_and(|first| first.starts_with(&format!("{room}: "))) {
        return Err(format!("src/{room}/mod.rs begins with `//! {room}: ` and one sentence"));
    }
    let contract = contract.join("\n");
    if !contract.contains("Invariant:") {
        return Err(format!("src/{room}/mod.rs states an invariant"));
    }
    let (_, uses) =
        contract.split_once("\nUses:").ok_or_else(|| format!("src/{room}/mod.rs has a `Uses:` paragraph"))?;
    let uses = uses.split("\n\n").next().unwrap();
    if uses.contains("every room") {
        return Ok(rooms.iter().filter(|other| *other != room).cloned().collect());
    }
    Ok(named_in(uses, rooms))
}

/// One line for each room where `said` differs from what the room imports.
fn differences(said: impl Fn(&str, &Rooms) -> Result<Rooms, String>) -> Vec<String> {
    let rooms = rooms();
    let mut wrong = Vec::new();
    for room in rooms.iter().filter(|room| *room != TOP) {
        let imported = imports(room, &rooms);
        match said(room, &rooms) {
            Err(complaint) => wrong.push(complaint),
            Ok(said) if said == imported => {}
            Ok(said) => {
                let missing: Vec<_> = imported.difference(&said).collect();
                let surplus: Vec<_> = said.difference(&imported).collect();
                wrong.push(format!(
                    "{room}: imports {missing:?} without saying so, names {surplus:?} without importing"
                ));
            }
        }
    }
    wrong
}

#[test]
fn every_room_declares_what_it_imports() {
    let wrong = differences(declared);
    assert!(wrong.is_empty(), "`Uses:` in src/ROOM/mod.rs against the imports:\n{}", wrong.join("\n"));
}

#[test]
fn every_room_has_its_card_in_the_architecture() {
    let text = fs::read_to_string("docs/ARCHITECTURE.md").unwrap();
    let wrong = differences(|room, rooms| {
        let card = text.lines().find(|line| line.starts_with(&format!("| `{room}` |")));
        let card = card.ok_or_else(|| format!("docs/ARCHITECTURE.md has no card for {room}"))?;
        let uses = card.split('|').nth(3).ok_or_else(|| format!("the card of {room} has a third column"))?;
        Ok(named_in(uses, rooms))
    });
    assert!(wrong.is_empty(), "cards in docs/ARCHITECTURE.md against the imports:\n{}", wrong.join("\n"));
}

#[test]
fn dependencies_go_one_way() {
    let names = rooms();
    let mut left: BTreeMap<&String, Rooms> = names.iter().map(|room| (room, imports(room, &names))).collect();
    while !left.is_empty() {
        let free: Vec<&String> =
            left.iter().filter(|(_, uses)| uses.iter().all(|used| !left.contains_key(used))).map(|(r, _)| *r).collect();
        assert!(!free.is_empty(), "these rooms import each other in a circle: {left:#?}");
        left.retain(|room, _| !free.contains(room));
    }
}

#[test]
fn imports_are_found_in_groups_too() {
    assert_eq!(heads("route::Router;"), ["route"]);
    assert_eq!(heads("{\n    codec::{json, oip::{self, Form}},\n    model,\n};\nuse x::{y};"), ["codec", "model"]);
    assert_eq!(heads("{model::Failure, tensor};"), ["model", "tensor"]);
}

#[test]
fn arc_swap_is_in_three_rooms_only_and_unsafe_in_the_named_files() {
    let mut wrong = Vec::new();
    for file in source_files(Path::new("src")) {
        let (code, shown) = (code(&file), file.display().to_string());
        // What all threads read and one replaces: the versions, the tokens, the limits of a caller.
        let swaps = ["src/registry/", "src/access/", "src/callers/"].iter().any(|room| shown.starts_with(room));
        if code.contains("ArcSwap") && !swaps {
            wrong.push(format!("{shown} names ArcSwap"));
        }
        let named = [
            "src/lifecycle/memory.rs",
            "src/machine/exit.rs",
            "src/machine/socket.rs",
            "src/main.rs",
            // Memory that two processes share, and signal handlers.
            "src/marks/inputs.rs",
            "src/marks/region.rs",
            "src/marks/signals.rs",
            // Descriptors and signals between processes.
            "src/supervisor/child.rs",
            "src/supervisor/parent.rs",
            "src/supervisor/signals.rs",
        ];
        let may = is_test(&file) || shown.starts_with("src/backend/ort") || named.contains(&&*shown);
        if code.contains("unsafe {") && !may {
            wrong.push(format!("{shown} has an unsafe block"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

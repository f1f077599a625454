//! What all pages have: the head, the links, who is signed in.

use super::api::Problem;
use super::{SCRIPT, STYLE, show};
use axum::response::Html;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use sha2::{Digest as _, Sha256};
use std::sync::LazyLock;

/// A page around its content.
#[derive(Debug)]
pub(super) struct Page<'a> {
    pub(super) title: &'a str,
    /// The path of the link that leads to pages of this kind.
    pub(super) section: &'a str,
    /// Who is signed in; empty where nobody can be known.
    pub(super) who: &'a str,
    pub(super) csrf: &'a str,
    /// With a session, which can be ended.
    pub(super) signed_in: bool,
    /// The gateway is in a fleet.
    pub(super) fleet: bool,
}

const LINKS: [(&str, &str); 6] = [
    ("/", "Models"),
    ("/requests", "Requests"),
    ("/alerts", "Alerts"),
    ("/audit", "Audit"),
    ("/gateway", "Gateway"),
    FLEET,
];
/// Only where there is one.
const FLEET: (&str, &str) = ("/fleet", "Fleet");

/// Paths of the style and the script, each with its digest, so that a browser keeps them until they change.
static ASSETS: LazyLock<(String, String)> = LazyLock::new(|| {
    let path = |name: &str, text: &str| {
        let digest = Sha256::digest(text.as_bytes());
        format!("/{name}?{}", URL_SAFE_NO_PAD.encode(&digest[..8]))
    };
    (path("console.css", STYLE), path("console.js", SCRIPT))
});

impl Page<'_> {
    pub(super) fn with(&self, content: &Markup) -> Html<String> {
        let Page { title, section, who, csrf, signed_in, fleet } = self;
        let (style, script) = &*ASSETS;
        let page = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    title { (title) " · Sluicegate" }
                    link rel="stylesheet" href=(style);
                    link rel="icon" href="/console.svg" type="image/svg+xml";
                    script src=(script) defer {}
                }
                body {
                    a .skip href="#content" { "Skip to the content" }
                    header {
                        strong { "Sluicegate" }
                        @if !who.is_empty() {
                            nav aria-label="Pages" {
                                @for (path, name) in LINKS.into_iter().filter(|link| *fleet || *link != FLEET) {
                                    a href=(path) aria-current=[(path == *section).then_some("page")] { (name) }
                                }
                            }
                            div .who {
                                span title="The name that the audit trail has for you" { (show::text(who, 60)) }
                                @if *signed_in {
                                    form method="post" action="/sign-out" {
                                        input type="hidden" name="csrf" value=(csrf);
                                        button { "Sign out" }
                                    }
                                } @else { a href="/sign-in" { "Sign in" } }
                            }
                        }
                    }
                    p #gone role="status" hidden { "The server does not answer. This page shows what it last said, and goes on by itself." }
                    main #content tabindex="-1" { (content) }
                }
            }
        };
        Html(page.into_string())
    }
}

/// As many of these as fit into so many bytes, at least one; and how many they are. A page has at most 100 kB, however much there is.
pub(super) fn fitting(items: impl Iterator<Item = Markup>, bytes: usize) -> (Markup, usize) {
    let (mut text, mut count) = (String::new(), 0);
    for item in items {
        if count > 0 && text.len() + item.0.len() > bytes {
            break;
        }
        text.push_str(&item.0);
        count += 1;
    }
    (PreEscaped(text), count)
}

/// Parts of a page in the order of their importance. One that does not fit any more is left out, and that is said.
pub(super) fn parts(parts: &[Markup], bytes: usize) -> Markup {
    let (mut text, mut left_out) = (String::new(), 0);
    for part in parts {
        if text.len() + part.0.len() > bytes {
            left_out += 1;
        } else {
            text.push_str(&part.0);
        }
    }
    html! {
        (PreEscaped(text))
        @if left_out > 0 { p .quiet { "This page is full: " @if left_out == 1 { "1 part is" } @else { (left_out) " parts are" } " left out. The command line shows what is not here." } }
    }
}

pub(super) fn problem(problem: &Problem) -> Markup {
    html! {
        h1 { (problem.status.canonical_reason().unwrap_or("Refused")) }
        (complaint(problem))
        p { a href="/" { "All models" } }
    }
}

/// What the API complains about.
pub(super) fn complaint(problem: &Problem) -> Markup {
    html! {
        div .bad role="alert" {
            p { (show::text(&problem.error, 2000)) }
            @if !problem.details.is_empty() {
                ul { @for detail in problem.details.iter().take(50) { li { (show::text(detail, 500)) } } }
            }
        }
    }
}

/// The same by the command line.
pub(super) fn command(line: &str) -> Markup {
    html! { p .command { "By the command line: " code { (line) } } }
}

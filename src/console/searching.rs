//! A page whose list of requests arrives while they are found. The browser shows each row as it comes, also without scripts; a closed page ends the search.

use super::api::Problem;
use super::requests::{self, Asking};
use super::{Visitor, layout, show};
use axum::body::Body;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use maud::{Markup, PreEscaped, html};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::time::Duration;
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// The longest search, over all models: a search of one model ends by itself after ten seconds.
const LONGEST: Duration = Duration::from_mins(1);
/// The time between two signs that the search goes on.
const SIGN: Duration = Duration::from_millis(500);
/// Pieces of the page that wait for the browser; then the search waits.
const PIECES: usize = 4;
/// Where in some markup the rest of it comes later. No text of others can have it, as `<` is escaped.
const MARK: &str = "<!--later-->";

/// Where the list of requests stands in the content of the page.
pub(super) fn place() -> Markup {
    PreEscaped(MARK.to_owned())
}

/// The answer: the page around the list, and the list while it is found.
pub(super) fn answer(visitor: Visitor, page: &str, asking: Asking) -> Response {
    let (before, after) = around(page);
    let (pieces, received) = channel(PIECES);
    tokio::spawn(async move {
        let search = Search { visitor, asking, pieces: &pieces, rows: 0 };
        let written = async {
            let ended = tokio::time::timeout(LONGEST, search.write(before)).await;
            if ended.is_err() {
                // The table may be open. A browser closes it.
                let words = html! { p .warn { "The time for one search is over. Ask for less, such as one model or a shorter time." } };
                send(&pieces, words.into_string()).await?;
            }
            send(&pieces, after).await
        };
        tokio::select! {
            () = pieces.closed() => {}
            // An error means that nobody reads any more.
            _ = written => {}
            _ = sign(&pieces) => {}
        }
    });
    ([(CONTENT_TYPE, "text/html; charset=utf-8")], body(received)).into_response()
}

/// Writes white space now and then: a server notices only when it writes that its client is gone.
async fn sign(pieces: &Sender<Bytes>) -> Result<Infallible, Gone> {
    loop {
        tokio::time::sleep(SIGN).await;
        send(pieces, "\n".to_owned()).await?;
    }
}

fn body(received: Receiver<Bytes>) -> Body {
    let next =
        |mut received: Receiver<Bytes>| async move { Some((Ok::<_, Infallible>(received.recv().await?), received)) };
    Body::from_stream(futures_util::stream::unfold(received, next))
}

fn around(markup: &str) -> (String, String) {
    let (before, after) = markup.split_once(MARK).unwrap_or((markup, ""));
    (before.to_owned(), after.to_owned())
}

/// Nobody reads any more.
struct Gone;

async fn send(pieces: &Sender<Bytes>, html: String) -> Result<(), Gone> {
    pieces.send(html.into()).await.map_err(|_| Gone)
}

struct Search<'p> {
    visitor: Visitor,
    asking: Asking,
    pieces: &'p Sender<Bytes>,
    rows: usize,
}

impl Search<'_> {
    async fn write(mut self, before: String) -> Result<(), Gone> {
        self.send(&html! { (PreEscaped(before)) p .quiet.searching role="status" { "Searching, the newest requests first …" } }).await?;
        let names = std::mem::take(&mut self.asking.searched);
        let mut end = json!({ "searched_models": names.len(), "models": self.asking.models });
        for name in &names {
            match self.search(name).await? {
                Ok(found) if self.rows > 0 || self.asking.is_one_model() => {
                    end = found;
                    break;
                }
                Err(problem) if self.asking.is_one_model() => {
                    self.close_table(name).await?;
                    return self.send(&html! { (searched()) (layout::complaint(&problem)) }).await;
                }
                // The next model may have it. One that cannot be searched is left out, as are those that the person may not see.
                Ok(_) | Err(_) => {}
            }
        }
        let model = names.last().map_or("", String::as_str);
        let model = end["model"].as_str().unwrap_or(model).to_owned();
        self.close_table(&model).await?;
        self.send(&html! { (searched()) (requests::end(&end, &model, &self.asking, self.rows)) }).await
    }

    /// Searches one model, and returns how that ended.
    async fn search(&mut self, model: &str) -> Result<Result<Value, Problem>, Gone> {
        let path = self.asking.path(model);
        let mut lines = match self.visitor.console.api.lines(&self.visitor.credentials, &path).await {
            Ok(lines) => lines,
            Err(problem) => return Ok(Err(problem)),
        };
        loop {
            let line = match lines.next().await {
                Some(Ok(line)) => line,
                Some(Err(words)) => return Ok(Err(Problem::of(StatusCode::BAD_GATEWAY, &words))),
                None => return Ok(Err(Problem::of(StatusCode::BAD_GATEWAY, "the search did not say how it ended"))),
            };
            if let Value::Object(_) = line["request"] {
                let row = requests::row(model, &line["request"], self.asking.differences());
                let open = if self.rows == 0 { self.table(model).0 } else { String::new() };
                self.rows += 1;
                self.send(&html! { (PreEscaped(open)) (row) }).await?;
            } else if let Value::Object(_) = line["end"] {
                let mut end = line["end"].clone();
                end["model"] = model.into();
                return Ok(Ok(end));
            }
        }
    }

    /// The markup before and after the rows.
    fn table(&self, model: &str) -> (String, String) {
        let caption = format!("Requests of {}, newest first", show::text(model, 130));
        around(&requests::table(&caption, self.asking.differences(), &place()).into_string())
    }

    async fn close_table(&self, model: &str) -> Result<(), Gone> {
        if self.rows == 0 { Ok(()) } else { send(self.pieces, self.table(model).1).await }
    }

    async fn send(&self, markup: &Markup) -> Result<(), Gone> {
        send(self.pieces, markup.0.clone()).await
    }
}

/// Hides the words that say that the search goes on.
fn searched() -> Markup {
    html! { span .searched {} }
}

//! A Chromium that a test drives: clicks, keys, and what the page and the browser's console say. It speaks the Chrome `DevTools` protocol over two
//! pipes, so nothing listens on a port.

use base64::Engine as _;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The longest wait for an answer of the browser, or for something to appear.
const LONGEST: Duration = Duration::from_secs(30);

/// A browser with some tabs.
pub struct Browser {
    child: Child,
    to: ChildStdin,
    from: Receiver<Value>,
    /// Events that came while an answer was waited for.
    events: VecDeque<Value>,
    last_id: u64,
    /// The sessions of the tabs, and that of the tab in use.
    tabs: Vec<String>,
    session: String,
    _profile: TempDir,
}

impl Browser {
    pub fn start(program: &Path) -> Browser {
        let profile = TempDir::new().unwrap();
        // Chromium reads commands from descriptor 3 and writes to descriptor 4.
        let mut child = Command::new("sh")
            .args(["-c", "exec \"$0\" \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>&1"])
            .arg(program)
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
            .args(["--hide-scrollbars", "--remote-debugging-pipe", "--disable-background-networking"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{} does not run: {e}", program.display()));
        let to = child.stdin.take().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let (send, from) = channel();
        std::thread::spawn(move || {
            let mut message = Vec::new();
            while out.read_until(0, &mut message).is_ok_and(|read| read > 0) {
                let value = serde_json::from_slice(message.strip_suffix(&[0]).unwrap_or(&message)).unwrap();
                message.clear();
                if send.send(value).is_err() {
                    return;
                }
            }
        });
        let session = String::new();
        let (events, tabs) = (VecDeque::new(), Vec::new());
        let mut browser = Browser { child, to, from, events, last_id: 0, tabs, session, _profile: profile };
        browser.new_tab();
        browser
    }

    /// Opens another tab and uses it. The first one has the number 0.
    pub fn new_tab(&mut self) -> usize {
        // Without a session a command is the browser's own.
        self.session = String::new();
        let target = self.call("Target.createTarget", &json!({"url": "about:blank"}));
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let attached = self.call("Target.attachToTarget", &attach);
        attached["sessionId"].as_str().unwrap().clone_into(&mut self.session);
        self.tabs.push(self.session.clone());
        for domain in ["Page", "Runtime", "Log"] {
            self.call(&format!("{domain}.enable"), &json!({}));
        }
        self.tabs.len() - 1
    }

    /// Uses this tab from now on.
    pub fn tab(&mut self, number: usize) {
        self.session.clone_from(&self.tabs[number]);
    }

    fn try_call(&mut self, method: &str, parameters: &Value) -> Result<Value, String> {
        self.last_id += 1;
        let id = self.last_id;
        let mut command = json!({"id": id, "method": method, "params": parameters});
        if !self.session.is_empty() {
            command["sessionId"] = self.session.as_str().into();
        }
        self.to.write_all(format!("{command}\0").as_bytes()).unwrap_or_else(|e| panic!("the browser is gone: {e}"));
        let until = Instant::now() + LONGEST;
        loop {
            let message = match self.from.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(message) => message,
                Err(RecvTimeoutError::Timeout) => panic!("the browser did not answer {method} within 30 s"),
                Err(RecvTimeoutError::Disconnected) => panic!("the browser ended at {method}"),
            };
            if message["id"] != id {
                self.events.push_back(message);
            } else if message["error"].is_null() {
                return Ok(message["result"].clone());
            } else {
                return Err(message["error"].to_string());
            }
        }
    }

    pub fn call(&mut self, method: &str, parameters: &Value) -> Value {
        self.try_call(method, parameters).unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    fn try_evaluate(&mut self, expression: &str) -> Result<Value, String> {
        let parameters = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let answer = self.try_call("Runtime.evaluate", &parameters)?;
        match &answer["exceptionDetails"] {
            Value::Null => Ok(answer["result"]["value"].clone()),
            details => Err(format!("{expression}: {details}")),
        }
    }

    /// The value of an expression, or of the promise that it gives.
    pub fn evaluate(&mut self, expression: &str) -> Value {
        self.try_evaluate(expression).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Waits until an expression is true. While another page is loaded it is not.
    pub fn wait(&mut self, what: &str, expression: &str) {
        let until = Instant::now() + LONGEST;
        loop {
            let found = self.try_evaluate(expression);
            if found.as_ref().is_ok_and(|value| *value == true) {
                return;
            }
            if Instant::now() >= until {
                let page = self.try_evaluate("document.body.innerText").unwrap_or_default();
                panic!("within 30 s: {what}: {found:?}\n{}", page.as_str().unwrap_or_default());
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    /// Waits until the page shows this text.
    pub fn shows(&mut self, text: &str) {
        self.wait(&format!("the page shows {text:?}"), &format!("document.body.innerText.includes({})", json!(text)));
    }

    /// Opens a page and waits until it is complete.
    pub fn open(&mut self, url: &str) {
        let answer = self.call("Page.navigate", &json!({"url": url}));
        assert!(answer["errorText"].is_null(), "{url}: {answer}");
        let is_it = format!("document.readyState === \"complete\" && location.href === {}", json!(url));
        self.wait(&format!("{url} is loaded"), &is_it);
    }

    /// Clicks on the middle of the first element with this selector.
    pub fn click(&mut self, selector: &str) {
        self.click_on(selector, &format!("document.querySelector({})", json!(selector)));
    }

    /// Clicks on the link or button with this text.
    pub fn click_text(&mut self, text: &str) {
        let find = format!(
            "[...document.querySelectorAll(\"a, button, summary\")].find(e => e.innerText.trim() === {})",
            json!(text)
        );
        self.click_on(text, &find);
    }

    fn click_on(&mut self, what: &str, find: &str) {
        self.wait(&format!("{what:?} is there"), &format!("!!({find})"));
        // The place and the element under it: what is covered or has no size cannot be clicked.
        let place = format!(
            "(() => {{ const e = {find}; e.scrollIntoView({{block: \"center\", behavior: \"instant\"}}); const r = e.getClientRects()[0]; \
             const x = r.left + r.width / 2, y = r.top + r.height / 2; const top = document.elementFromPoint(x, y); \
             return {{x, y, free: !!top && (e.contains(top) || top.contains(e))}}; }})()"
        );
        let place = self.evaluate(&place);
        assert_eq!(place["free"], true, "{what:?} can be clicked: {place}");
        for kind in ["mousePressed", "mouseReleased"] {
            let event = json!({"type": kind, "x": place["x"], "y": place["y"], "button": "left", "clickCount": 1});
            self.call("Input.dispatchMouseEvent", &event);
        }
    }

    /// Types into what has the focus.
    pub fn type_text(&mut self, text: &str) {
        self.call("Input.insertText", &json!({"text": text}));
    }

    /// Presses `Tab`, `Enter` or another key with a name.
    pub fn press(&mut self, key: &str) {
        let code = match key {
            "Tab" => 9,
            "Enter" => 13,
            _ => panic!("the key {key} has no code here"),
        };
        let text = if key == "Enter" { "\r" } else { "" };
        for kind in ["keyDown", "keyUp"] {
            let mut event = json!({"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code});
            if kind == "keyDown" && !text.is_empty() {
                event["text"] = text.into();
            }
            self.call("Input.dispatchKeyEvent", &event);
        }
    }

    /// Makes the window so wide and high.
    pub fn resize(&mut self, width: u32, height: u32) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.call("Emulation.setDeviceMetricsOverride", &size);
    }

    pub fn dark(&mut self, dark: bool) {
        let value = if dark { "dark" } else { "light" };
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": value}]});
        self.call("Emulation.setEmulatedMedia", &features);
    }

    pub fn without_scripts(&mut self, off: bool) {
        self.call("Emulation.setScriptExecutionDisabled", &json!({"value": off}));
    }

    /// The page as a picture (PNG, in Base64), so many pixels high at most.
    pub fn picture(&mut self, highest: f64) -> String {
        let size = self.call("Page.getLayoutMetrics", &json!({}))["cssContentSize"].clone();
        let height = size["height"].as_f64().unwrap().min(highest);
        let clip = json!({"x": 0, "y": 0, "width": size["width"], "height": height, "scale": 1});
        let parameters = json!({"format": "png", "captureBeyondViewport": true, "clip": clip});
        self.call("Page.captureScreenshot", &parameters)["data"].as_str().unwrap().to_owned()
    }

    /// Writes pictures of a whole page, light and dark, into a folder.
    pub fn pictures(&mut self, url: &str, folder: &Path, name: &str, highest: f64) {
        self.resize(1100, 200);
        for (suffix, dark) in [("", false), ("-dark", true)] {
            self.dark(dark);
            self.open(url);
            let picture = base64::engine::general_purpose::STANDARD.decode(self.picture(highest)).unwrap();
            std::fs::write(folder.join(format!("{name}{suffix}.png")), picture).unwrap();
        }
    }

    /// What the pages wrote to the browser's console since the last look, and what the browser wrote there itself: errors, refused contents.
    pub fn complaints(&mut self) -> Vec<String> {
        let told = ["Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"];
        let events = self.events.drain(..).filter(|event| event["method"].as_str().is_some_and(|m| told.contains(&m)));
        events.map(|event| event["params"].to_string()).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

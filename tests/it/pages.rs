//! The console in a real browser: every page, and every change done by clicking or by keys.
//!
//! One server and one browser serve all checks. `SLUICEGATE_TEST_BROWSER` names the browser (see browser.rs). Each page is checked by axe-core, which
//! `make axe` downloads; without it that check is left out, and in CI the test fails. `SLUICEGATE_PAGES_FIGURES=1` also measures what an open page costs the
//! server: on an optimised build, `make console-figures`.

use crate::browser::{browser, in_ci};
use crate::fleet::{Nats, install};
use crate::support::cdp::Browser;
use crate::support::process::Served;
use crate::support::{Gateway, eventually, infer_body, onnx};
use base64::Engine as _;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The tab that looks, and the tab in which somebody acts.
const LOOKS: usize = 0;
const ACTS: usize = 1;
const MOST_BYTES: usize = 100_000;

/// A person with a browser in front of a server.
struct Person {
    served: Served,
    browser: Browser,
    axe: Option<String>,
}

impl Person {
    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.served.admin)
    }

    fn open(&mut self, path: &str) {
        let url = self.url(path);
        self.browser.open(&url);
    }

    fn get(&self, path: &str) -> Value {
        serde_json::from_str(&self.served.admin_get(path)).unwrap()
    }

    /// Opens a page in the tab that looks. What it shows later, it shows without being loaded again.
    fn look_at(&mut self, path: &str) {
        self.browser.tab(LOOKS);
        self.open(path);
        self.browser.evaluate("window.opened = true");
        self.browser.tab(ACTS);
    }

    /// Waits until the other tab shows this text.
    fn sees(&mut self, text: &str) {
        self.browser.tab(LOOKS);
        // As when somebody comes back to the tab: the page is asked for at once, and not only after three seconds.
        self.browser.evaluate("document.dispatchEvent(new Event(\"visibilitychange\"))");
        self.browser.shows(text);
        assert_eq!(self.browser.evaluate("window.opened === true"), true, "the page was not loaded again");
        self.browser.tab(ACTS);
    }

    /// Gives a reason and clicks on the button that does it.
    fn confirm(&mut self, button: &str, done: &str) {
        self.browser.wait("the reason has the focus", "document.activeElement.name === \"reason\"");
        self.browser.type_text("by hand");
        self.browser.click_text(button);
        self.browser.shows(done);
    }

    /// Presses Tab until the expression about the element `e` with the focus is true. The focus can be seen all the way.
    fn tab_to(&mut self, what: &str) {
        for _ in 0..200 {
            self.browser.press("Tab");
            let found = self.browser.evaluate(&format!(
                "(() => {{ const e = document.activeElement, s = getComputedStyle(e); \
                 return {{seen: e === document.body || s.outlineStyle !== \"none\" && parseFloat(s.outlineWidth) >= 2, there: {what}, html: e.outerHTML.slice(0, 200)}}; }})()"
            ));
            assert_eq!(found["seen"], true, "the focus can be seen: {found}");
            if found["there"] == true {
                return;
            }
        }
        panic!("200 times Tab do not lead to {what}");
    }

    /// What a page has to be: within its size, without complaints, for everybody, in light and dark, at 360 pixels.
    fn check(&mut self, path: &str, words: &str) {
        let mut answer = ureq::get(self.url(path)).config().http_status_as_error(false).build().call().unwrap();
        let policy = answer.headers()["content-security-policy"].to_str().unwrap().to_owned();
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{path}: {policy}");
        let text = answer.body_mut().read_to_string().unwrap();
        assert!(text.len() < MOST_BYTES, "{path}: {} bytes", text.len());
        assert_eq!(text.matches("<script").count(), 1, "{path}: only the script of the server");
        self.browser.resize(1100, 900);
        self.browser.dark(false);
        self.open(path);
        self.browser.shows(words);
        let complaints = self.browser.complaints();
        // The browser's console tells of a page with an error status, whatever its content is. A focus that came before that of the page is no fault of it.
        let complaints: Vec<&String> = complaints
            .iter()
            .filter(|line| !(answer.status() != 200 && line.contains("Failed to load resource")))
            .filter(|line| !line.contains("Autofocus processing was blocked"))
            .collect();
        assert!(complaints.is_empty(), "{path}: {complaints:?}");
        self.axe(path, "{}");
        self.browser.dark(true);
        self.axe(path, "{runOnly: [\"color-contrast\"]}");
        self.browser.dark(false);
        self.browser.resize(360, 800);
        let wide = self.browser.evaluate(
            "[document.documentElement.scrollWidth, [...document.querySelectorAll(\"body *\")]\
             .filter(e => e.getBoundingClientRect().right > 361 && !e.closest(\"table, pre, [data-live], .hidden, .skip\"))\
             .slice(0, 3).map(e => e.outerHTML.slice(0, 120))]",
        );
        assert!(wide[0].as_u64().is_some_and(|width| width <= 360), "{path} at 360 pixels: {wide}");
        self.browser.resize(1100, 900);
    }

    /// Everything that axe-core finds.
    fn axe(&mut self, path: &str, options: &str) {
        let Some(axe) = &self.axe else { return };
        let run = format!(
            "(async () => {{ if (!window.axe) {{ {axe} }}; const found = await axe.run(document, {options}); \
             return found.violations.map(v => v.id + \": \" + v.nodes.slice(0, 3).map(n => n.html + \" \" + n.any.map(a => a.message).join(\" \")).join(\" | \")); }})()"
        );
        let found = self.browser.evaluate(&run);
        assert_eq!(found, json!([]), "{path}: axe-core finds something ({options})");
    }

    fn check_all(&mut self, pages: &[(&str, &str)]) {
        for (path, words) in pages {
            self.check(path, words);
        }
    }
}

/// Callers that send rows without a pause until this is dropped. Version 2 fails on bad rows.
struct Callers {
    done: Arc<AtomicBool>,
    bad: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Callers {
    fn start(served: &Served) -> Callers {
        let (done, bad): (Arc<AtomicBool>, Arc<AtomicBool>) = Default::default();
        let url = format!("http://{}/v2/models/scale/infer", served.data);
        let threads = (0..2).map(|_| {
            let (done, bad, url) = (Arc::clone(&done), Arc::clone(&bad), url.clone());
            std::thread::spawn(move || {
                let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
                while !done.load(Ordering::Relaxed) {
                    let x = if bad.load(Ordering::Relaxed) { 10.0 } else { 1.0 };
                    let answer = agent.post(&url).send(infer_body(&[1, 2], &[x, 1.0])).unwrap();
                    let _ = answer.into_body().read_to_vec();
                }
            })
        });
        let threads = threads.collect();
        Callers { done, bad, threads }
    }
}

impl Drop for Callers {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Version 2 fails on rows that begin with more than 9. All run on workers, so that none looks slow beside another.
fn fill(models: &Path) {
    onnx::install(models, "scale", 1, &onnx::scaling(1.0));
    onnx::install(models, "scale", 2, &onnx::out_of_memory_above(9));
    onnx::install(models, "scale", 3, &onnx::scaling(3.0));
    std::fs::write(models.join("scale/model.toml"), "[execution]\nat_once = false\n").unwrap();
    onnx::install(models, "broken", 1, b"<script>alert(1)</script>");
}

fn axe() -> Option<String> {
    let axe = Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/axe-core/axe.min.js");
    let axe = std::fs::read_to_string(axe).ok();
    if axe.is_none() {
        assert!(!in_ci(), "CI has no axe-core (`make axe`): accessibility is never left out there");
        eprintln!("axe-core is not there (`make axe` downloads it): accessibility is not checked");
    }
    axe
}

#[test]
fn people_operate_the_gateway_by_its_pages() {
    let Some(program) = browser() else { return };
    let dir = tempfile::TempDir::new().unwrap();
    let models = dir.path().join("models");
    std::fs::create_dir_all(&models).unwrap();
    std::fs::create_dir_all(dir.path().join("config")).unwrap();
    let config = "[alerts]\ncheck_interval = \"100ms\"\nend_after = \"400ms\"\noff = [\"disk_full\", \"memory_full\", \"log_loss\", \"model_unserved\", \"breaker_open\", \"rollout_taken_back\", \"guardrail_near\", \"error_budget\"]\n[models]\nsettle = \"100ms\"\n";
    std::fs::write(dir.path().join("config/sluicegate.toml"), config).unwrap();
    let mut person = Person { served: Served::start(dir.path()), browser: Browser::start(&program), axe: axe() };
    person.served.ready();
    assert_eq!(person.browser.new_tab(), ACTS);

    person.check_all(&[
        ("/", "There are no models yet"),
        ("/alerts", "Nothing is wrong"),
        ("/audit", "There are no events"),
    ]);
    fill(&models);
    person.served.wait_state("scale", 3, "serving");
    eventually("the alert about the broken version", || {
        (person.get("/api/v1/alerts?state=firing")["firing"] == 1).then_some(())
    });

    promotes_by_keys(&mut person);
    splits_and_goes_back_by_clicks(&mut person);
    rolls_out_what_is_taken_back(&mut person);
    goes_away_and_comes_back(&mut person);
    signs_in(&mut person);
    approves_and_silences(&mut person);
    two_people_at_once(&mut person);
    reads_without_scripts(&mut person);
    person.browser.tab(ACTS);
    person.check_all(&[
        ("/", "1 needs attention"),
        ("/models/scale", "Rollout to version 2"),
        ("/models/broken", "failed"),
        ("/models/scale/versions/3", "Inputs and outputs"),
        ("/models/scale/promote?version=3", "What would change"),
        ("/models/scale/split", "Weights are relative"),
        ("/models/scale/shadow", "Copies of so many percent"),
        ("/models/scale/rule", "The first rule that matches counts"),
        ("/models/scale/document", "The traffic document"),
        ("/models/scale/rollout?version=2", "Steps, in percent"),
        ("/models/scale/retire", "Its versions are unloaded"),
        ("/models/scale/unload?version=2", "The traffic stays as it is"),
        ("/models/scale/reject?version=2", "The traffic stays as it is"),
        ("/requests?model=scale", "Route key"),
        ("/alerts", "Over, or silenced"),
        ("/alerts/silence?rule=version_failed&model=broken", "Alerts that fit now"),
        ("/audit", "What changed"),
        ("/gateway", "Prediction log"),
        ("/sign-in", "Token"),
        ("/models/none", "no model is named"),
    ]);
    two_thousand_models(&mut person, &models);
    if std::env::var_os("SLUICEGATE_PAGES_FIGURES").is_some() {
        figures(&mut person);
    }
}

#[test]
fn people_see_which_gateways_of_a_fleet_follow() {
    let (Some(program), Some(nats)) = (browser(), Nats::start()) else { return };
    let dir = tempfile::TempDir::new().unwrap();
    let models = dir.path().join("models");
    for version in [1, 2] {
        install(&models, version);
    }
    std::fs::create_dir_all(dir.path().join("config")).unwrap();
    let config = nats.config("eu-1") + "[models]\nsettle = \"100ms\"\n";
    std::fs::write(dir.path().join("config/sluicegate.toml"), config).unwrap();
    let mut person = Person { served: Served::start(dir.path()), browser: Browser::start(&program), axe: axe() };
    person.served.wait_state("m", 2, "serving");
    assert_eq!(person.browser.new_tab(), ACTS);
    let behind = |person: &Person| {
        let nodes = person.get("/api/v1/fleet")["nodes"].clone();
        nodes.as_array().unwrap().iter().map(|node| node["models"]["m"]["waits"].to_string()).collect::<Vec<_>>()
    };
    let us = nats.gateway("us-1", &[1, 2]);
    let eu = tempfile::TempDir::new().unwrap();
    install(&eu.path().join("models"), 1);
    let eu = Gateway::start_in(eu, &nats.config("eu-2"));
    eventually("eu-2 waits for version 2", || {
        let waits = behind(&person);
        (waits.len() == 3 && waits[1].contains("version 2")).then_some(())
    });
    person.check("/fleet", "3 gateways, 1 needs attention: it comes first");
    person.check("/fleet?filter=none", "0 of 3 gateways");
    if let Some(folder) = std::env::var_os("SLUICEGATE_STORY_PICTURES") {
        person.browser.resize(1100, 200);
        for (suffix, dark) in [("", false), ("-dark", true)] {
            person.browser.dark(dark);
            person.open("/fleet");
            let picture = base64::engine::general_purpose::STANDARD.decode(person.browser.picture(10_000.0)).unwrap();
            std::fs::write(Path::new(&folder).join(format!("fleet{suffix}.png")), picture).unwrap();
        }
        person.browser.dark(false);
    }
    person.look_at("/fleet");
    person.sees("model m waits: ");
    install(&eu.models(), 2);
    eventually("eu-2 follows", || behind(&person).iter().all(|waits| waits == "null").then_some(()));
    person.sees("all of them follow");
    drop(us);
    eventually("us-1 has left", || (behind(&person).len() == 2).then_some(()));
    person.sees("2 gateways, all of them follow");
    person.open("/");
    person.browser.click_text("Fleet");
    person.browser.shows("As the gateway eu-1 sees it");
}

fn promotes_by_keys(person: &mut Person) {
    person.look_at("/models/scale");
    person.sees("Version 3 answers 100 %");
    person.open("/");
    person.tab_to("e.innerText === \"scale\"");
    person.browser.press("Enter");
    person.browser.shows("Version 3 answers 100 %");
    person.tab_to("e.href?.endsWith(\"/promote?version=1\")");
    person.browser.press("Enter");
    person.browser.wait("the reason has the focus", "document.activeElement.name === \"reason\"");
    person.browser.type_text("by keys");
    person.tab_to("e.innerText === \"Promote now\"");
    person.browser.press("Enter");
    person.browser.shows("Done: promote");
    person.sees("Version 1 answers 100 %");
}

fn splits_and_goes_back_by_clicks(person: &mut Person) {
    person.open("/models/scale");
    person.browser.click_text("Split");
    for (version, weight) in [(1, "90"), (3, "10")] {
        let field = format!("#weight-{version}");
        person.browser.click(&field);
        person.browser.evaluate("document.activeElement.select()");
        person.browser.type_text(weight);
    }
    person.browser.click_text("Show what would change");
    person.browser.shows("Version 1 answers 90 %, version 3 answers 10 %");
    person.confirm("Change the traffic now", "Done: split");
    person.sees("Version 1 answers 90 %, version 3 answers 10 %");
    person.browser.click_text("Go back");
    person.browser.shows("What would change");
    person.confirm("Go back now", "Done: rollback");
    person.sees("Version 1 answers 100 %");
}

fn rolls_out_what_is_taken_back(person: &mut Person) {
    let callers = Callers::start(&person.served);
    person.open("/models/scale");
    person.browser.click("a[href$=\"/rollout?version=2\"]");
    person.browser.shows("To version 2");
    for (field, text) in [("#steps", "50, 100"), ("#hold", "1s")] {
        person.browser.click(field);
        person.browser.evaluate("document.activeElement.select()");
        person.browser.type_text(text);
    }
    person.browser.click_text("Show what would change");
    person.browser.shows("Version 2 gets 50 %, 100 % of the requests");
    callers.bad.store(true, Ordering::Relaxed);
    person.confirm("Begin the rollout", "Done: rollout");
    person.sees("Rollout to version 2");
    eventually("the rollout is taken back", || {
        (person.get("/api/v1/models/scale/rollout")["state"] == "taken_back").then_some(())
    });
    person.sees("taken back");
    person.sees("Version 1 answers 100 %");
    drop(callers);
}

/// The server is killed, and nobody starts it again for a while. The open page says so, and goes on by itself.
fn goes_away_and_comes_back(person: &mut Person) {
    person.look_at("/models/scale");
    let supervisor = Pid::from_child(&person.served.child);
    let server = person.served.server_pid().unwrap();
    kill_process(supervisor, Signal::STOP).unwrap();
    kill_process(server, Signal::KILL).unwrap();
    person.sees("The server does not answer");
    kill_process(supervisor, Signal::CONT).unwrap();
    person.browser.tab(LOOKS);
    person.browser.wait("the page goes on by itself", "document.getElementById(\"gone\").hidden");
    assert_eq!(person.browser.evaluate("window.opened === true"), true, "the page was not loaded again");
    person.browser.shows("Version 1 answers 100 %");
    person.browser.tab(ACTS);
    person.served.ready();
    person.served.wait_state("scale", 3, "ready");
    let said = person.browser.complaints();
    assert!(said.iter().all(|line| line.contains("Failed to load resource")), "{said:?}");
}

/// A review needs somebody who is known.
fn signs_in(person: &mut Person) {
    person.open("/models/scale/approve?version=3");
    person.browser.wait("the reason has the focus", "document.activeElement.name === \"reason\"");
    person.browser.type_text("unknown");
    person.browser.click_text("Approve");
    person.browser.shows("a review needs credentials");
    let refused = person.browser.complaints();
    assert!(refused.iter().all(|line| line.contains("Failed to load resource")), "{refused:?}");
    let made = person.served.admin_post("/api/v1/tokens", &json!({"name": "anna", "role": "admin"}));
    person.open("/sign-in?back=/audit");
    person.browser.wait("the token has the focus", "document.activeElement.name === \"token\"");
    person.browser.type_text(made["token"].as_str().unwrap());
    person.browser.press("Enter");
    person.browser.shows("Sign out");
    person.browser.shows("What changed");
    assert_eq!(person.browser.evaluate("document.cookie"), "", "no script can read the cookie");
}

fn approves_and_silences(person: &mut Person) {
    person.open("/models/scale/versions/3");
    person.browser.shows("Status: none");
    person.browser.click_text("Approve");
    person.confirm("Approve", "Done: approve");
    person.open("/models/scale/versions/3");
    person.browser.shows("Status: approved");

    person.look_at("/alerts");
    person.open("/alerts");
    person.browser.click("a[href=\"/alerts/silence?rule=version%5Ffailed&model=broken&version=1\"]");
    person.browser.shows("version 1 of broken failed");
    person.confirm("Silence now", "Done: the alerts are silenced");
    person.sees("Nothing is wrong that an alert knows of");
    person.browser.click_text("End");
    person.browser.click_text("End it now");
    person.browser.shows("Done: the silence has ended");
    person.sees("version 1 of broken failed");
    let silenced = person.get("/api/v1/audit?limit=2")["events"].clone();
    let actions: Vec<&str> =
        silenced.as_array().unwrap().iter().map(|event| event["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["end_silence", "silence"]);
    // The pages that are checked later have one.
    person.open("/alerts/silence?model=broken");
    person.confirm("Silence now", "Done: the alerts are silenced");
}

fn two_people_at_once(person: &mut Person) {
    person.look_at("/models/scale/promote?version=3");
    person.open("/models/scale/split");
    person.browser.click("#weight-2");
    person.browser.evaluate("document.activeElement.select()");
    person.browser.type_text("100");
    person.browser.click_text("Show what would change");
    person.confirm("Change the traffic now", "Done: split");
    let now = person.get("/api/v1/models/scale/traffic")["split"].clone();
    person.browser.tab(LOOKS);
    person.browser.type_text("mine");
    person.browser.click_text("Promote now");
    person.browser.shows("The traffic changed since you looked at it");
    person.browser.shows("Nothing was done");
    person.browser.shows("split[1]");
    assert_eq!(person.get("/api/v1/models/scale/traffic")["split"], now, "nothing was overwritten");
    assert_eq!(person.browser.evaluate("document.querySelector(\"#reason\").value"), "mine", "the reason is kept");
    let refused = person.browser.complaints();
    assert!(refused.iter().all(|line| line.contains("412")), "{refused:?}");
    person.browser.click_text("Promote now");
    person.browser.shows("Done: promote");
    person.browser.tab(ACTS);
}

fn reads_without_scripts(person: &mut Person) {
    person.browser.without_scripts(true);
    person.open("/");
    person.browser.click_text("scale");
    person.browser.shows("Version 3 answers 100 %");
    person.browser.click("a[href$=\"/promote?version=1\"]");
    person.browser.shows("split[0].version");
    person.browser.click("#reason");
    person.browser.type_text("without scripts");
    person.browser.click_text("Promote now");
    person.browser.shows("Done: promote");
    person.browser.without_scripts(false);
}

fn two_thousand_models(person: &mut Person, models: &Path) {
    for n in 0..2000 {
        // No version of them can be loaded, which costs the server the least.
        onnx::install(models, &format!("idle-{n:04}"), 1, b"no model");
    }
    eventually("all models are known", || {
        (person.get("/api/v1/models")["models"].as_array().unwrap().len() == 2002).then_some(())
    });
    person.check_all(&[
        ("/", "Page 1 of 26"),
        ("/?page=25", "Page 26 of 26"),
        ("/alerts", "Alerts"),
        ("/audit", "What changed"),
    ]);
    person.open("/");
    person.browser.click("#filter");
    person.browser.type_text("IDLE-1999");
    person.browser.shows("1 of 2\u{202f}002 models: it needs attention");
}

/// How long the first paint takes, what an open page costs the server, and what a look at the alerts costs.
fn figures(person: &mut Person) {
    person.browser.tab(ACTS);
    for path in ["/", "/?sort=requests", "/alerts", "/models/scale", "/gateway"] {
        let (mut paints, mut answers) = (Vec::new(), Vec::new());
        for _ in 0..15 {
            person.open("/sign-in");
            person.open(path);
            let paint = "performance.getEntriesByName(\"first-contentful-paint\")";
            person.browser.wait("the page is painted", &format!("{paint}.length === 1"));
            let took = person.browser.evaluate(&format!(
                "[{paint}[0].startTime, performance.getEntriesByType(\"navigation\")[0].serverTiming[0].duration]"
            ));
            paints.push(took[0].as_f64().unwrap());
            answers.push(took[1].as_f64().unwrap());
        }
        let spread = |values: &mut Vec<f64>| {
            values.sort_by(f64::total_cmp);
            format!("{:.0} ms ({:.0} to {:.0})", values[values.len() / 2], values[0], values[values.len() - 1])
        };
        println!(
            "FIGURE {path} first paint with 2,002 models: {}, of which the server {} (median of 15; goal: under 100 ms)",
            spread(&mut paints),
            spread(&mut answers)
        );
    }
    let pid = person.served.server_pid().unwrap().as_raw_nonzero();
    let looks = thread_time(pid.get(), "alerts");
    let began = Instant::now();
    std::thread::park_timeout(Duration::from_secs(10));
    // Ten looks a second, see the configuration.
    let look =
        thread_time(pid.get(), "alerts").saturating_sub(looks).as_secs_f64() / (began.elapsed().as_secs_f64() * 10.0);
    println!(
        "FIGURE a look at the alerts with 2,002 models, of which 2,001 fire: {:.2} ms, {:.3} % of a core with a look every 5 s",
        look * 1e3,
        look / 5.0 * 100.0
    );
    let ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()
    };
    let share = |person: &mut Person, path: &str| {
        for tab in [LOOKS, ACTS] {
            person.browser.tab(tab);
            person.open(if tab == ACTS { path } else { "/sign-in" });
        }
        let (began, before) = (Instant::now(), ticks());
        std::thread::park_timeout(Duration::from_secs(30));
        (ticks() - before) / 100.0 / began.elapsed().as_secs_f64() * 100.0
    };
    let without = share(person, "/sign-in");
    for path in ["/", "/models/scale", "/alerts", "/gateway"] {
        let with = share(person, path);
        println!(
            "FIGURE {path} open for 30 s with 2,002 models: {:.2} % of a core ({with:.2} % with the page, {without:.2} % without; goal: under 1 %)",
            with - without
        );
    }
}

/// The processor time of the threads of this name.
fn thread_time(pid: i32, name: &str) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of = |task: std::io::Result<std::fs::DirEntry>| {
        let dir = task.ok()?.path();
        let is_named = std::fs::read_to_string(dir.join("comm")).ok()?.trim() == name;
        let times = std::fs::read_to_string(dir.join("schedstat")).ok()?;
        is_named.then(|| times.split(' ').next()?.parse().ok().map(Duration::from_nanos)).flatten()
    };
    tasks.filter_map(of).sum()
}

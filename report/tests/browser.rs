// SPDX-License-Identifier: Apache-2.0

//! The page in a real Chromium: what axe says of it in both themes, that charts answer a pointer and keys, and that names
//! which somebody chose do nothing.
//!
//! Needs Debian's `chromium` and `chromium-driver`, and axe: named by `TRACELAKE_AXE`, else where `cargo xtask` puts it. With
//! `UPDATE=1` the pictures in `docs/report/` are made again.

extern crate tracelake_report as report;

#[allow(dead_code, reason = "each test uses a part of it")]
mod support;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use report::Report;
use report::compare::Comparison;
use report::view::View;
use serde_json::{Value, json};
use support::Session;

const WIDTH: u32 = 1100;
const HEIGHT: u32 = 1400;

/// A browser, driven as WebDriver says.
struct Browser {
    driver: Child,
    client: reqwest::Client,
    session: String,
    folder: tempfile::TempDir,
}

impl Browser {
    async fn start() -> Self {
        // For a client that speaks plain HTTP, and still wants a provider.
        _ = rustls::crypto::ring::default_provider().install_default();
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdout(Stdio::piped())
            .spawn()
            .expect("chromedriver is there: apt-get install chromium chromium-driver");
        let mut lines = BufReader::new(driver.stdout.take().expect("its output")).lines();
        let port = lines.by_ref().map_while(Result::ok).find_map(|line| {
            line.strip_suffix('.')
                .and_then(|line| line.split_once("successfully on port "))
                .map(|(_, port)| port.to_owned())
        });
        // What it says later is read by nobody, but has to go somewhere.
        std::thread::spawn(move || lines.map_while(Result::ok).count());
        let client =
            reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(60)).build().expect("a client");
        let folder = tempfile::tempdir().expect("a folder");
        let mut browser = Self {
            driver,
            client,
            session: format!("http://127.0.0.1:{}/session", port.expect("it says its port")),
            folder,
        };
        let size = format!("--window-size={WIDTH},{HEIGHT}");
        let options = json!({"args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-prefers-reduced-motion", size]});
        let capabilities = json!({"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}});
        let answer = browser.post("", &capabilities).await;
        let id = answer["sessionId"].as_str().expect("a session").to_owned();
        browser.session += &format!("/{id}");
        browser
    }

    async fn post(&self, command: &str, body: &Value) -> Value {
        let sent = self.client.post(format!("{}{command}", self.session)).body(body.to_string()).send().await;
        let answer = sent.expect("chromedriver answers").text().await.expect("whole");
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        assert!(answer["value"]["error"].is_null(), "{command}: {}", answer["value"]);
        answer["value"].clone()
    }

    /// Shows the report of a session.
    async fn show(&self, session: &Session) {
        let report = report_of(session).await;
        self.show_page(&report.title(), &report.subtitle(), report.views()).await;
    }

    async fn show_page(&self, title: &str, subtitle: &str, views: &[View]) {
        let page = report::page::page(title, subtitle, views).expect("a page");
        let path = self.folder.path().join("report.html");
        std::fs::write(&path, page).expect("the page is written");
        self.post("/url", &json!({"url": format!("file://{}", path.display())})).await;
    }

    async fn run(&self, script: &str) -> Value {
        self.post("/execute/sync", &json!({"script": script, "args": []})).await
    }

    async fn text(&self, script: &str) -> String {
        self.run(&format!("return String({script})")).await.as_str().expect("a string").to_owned()
    }

    /// As the system would say it prefers.
    async fn prefer(&self, theme: &str) {
        let features = json!([{"name": "prefers-color-scheme", "value": theme}]);
        let params = json!({"cmd": "Emulation.setEmulatedMedia", "params": {"features": features}});
        self.post("/goog/cdp/execute", &params).await;
    }

    /// The pointer goes to these points of the view, one after the other; held down between first and last if it drags.
    async fn pointer(&self, points: &[(f64, f64)], drags: bool) {
        let at = |(x, y): (f64, f64)| json!({"type": "pointerMove", "duration": 50, "x": x.round(), "y": y.round()});
        let mut actions: Vec<Value> = vec![at(points[0])];
        if drags {
            actions.push(json!({"type": "pointerDown", "button": 0}));
        }
        actions.extend(points[1..].iter().map(|point| at(*point)));
        if drags {
            actions.push(json!({"type": "pointerUp", "button": 0}));
        }
        let pointer = json!({"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": actions});
        self.post("/actions", &json!({"actions": [pointer]})).await;
    }

    async fn keys(&self, keys: &str) {
        let actions: Vec<Value> = keys
            .chars()
            .flat_map(|key| {
                [json!({"type": "keyDown", "value": key}), json!({"type": "keyUp", "value": key})]
            })
            .collect();
        self.post("/actions", &json!({"actions": [{"type": "key", "id": "keys", "actions": actions}]})).await;
    }

    async fn picture(&self, name: &str) {
        if std::env::var_os("UPDATE").is_none() {
            return;
        }
        let shot = self.client.get(format!("{}/screenshot", self.session)).send().await.expect("a picture");
        let shot: Value = serde_json::from_str(&shot.text().await.expect("whole")).expect("JSON");
        let png = BASE64_STANDARD.decode(shot["value"].as_str().expect("base64")).expect("base64");
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/report").join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(path, png).expect("written");
    }

    /// Ends it with the browser; a test that failed leaves both to `drop`.
    async fn quit(self) {
        _ = self.client.delete(&self.session).send().await;
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Asked to end, it takes its browser along.
        _ = Command::new("kill").arg(self.driver.id().to_string()).status();
        _ = self.driver.wait();
    }
}

async fn report_of(session: &Session) -> Report {
    let written = session.write().await;
    let report = Report::new(&written.contents, &written.tables().await).await;
    report.unwrap_or_else(|error| panic!("{error}"))
}

fn axe() -> String {
    let file = std::env::var_os("TRACELAKE_AXE").map(PathBuf::from).or_else(|| {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let tools = cache.or_else(|| Some(std::env::home_dir()?.join(".cache")))?.join("tracelake/tools");
        let mut entries = std::fs::read_dir(tools).ok()?.filter_map(Result::ok);
        let entry = entries.find(|entry| entry.file_name().to_string_lossy().starts_with("axe-core-"))?;
        Some(entry.path().join("axe.min.js"))
    });
    let file =
        file.expect("axe is there: run `cargo xtask test unit`, or set TRACELAKE_AXE to an axe.min.js");
    std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// What axe objects to, a line each; how many of its rules found something to look at.
async fn violations(browser: &Browser) -> (Vec<String>, usize) {
    let script = "const done = arguments[arguments.length - 1]; axe.run().then((found) => done([
        found.violations.map((one) => one.id + ': ' + one.help + ': ' + one.nodes.map((node) => node.html).join(' | ')),
        found.passes.length]));";
    let found = browser.post("/execute/async", &json!({"script": script, "args": []})).await;
    let lines =
        found[0].as_array().expect("a list").iter().map(|line| line.as_str().unwrap_or("").to_owned());
    (lines.collect(), found[1].as_u64().expect("a number") as usize)
}

#[tokio::test]
async fn axe_finds_nothing_in_either_theme_however_it_was_chosen() {
    let axe = axe();
    let browser = Browser::start().await;
    let mut session = Session::shop().without("pageFaults");
    session.nodes.insert("c".to_owned(), "NodeLost: it did not answer for 10 min".to_owned());
    browser.show(&session).await;
    has_no_violations(&browser, &axe).await;
    // Two sessions side by side have everything twice.
    let both = Comparison::new(report_of(&Session::shop()).await, report_of(&session).await);
    browser.show_page(&both.title(), &both.subtitle(), &both.views()).await;
    has_no_violations(&browser, &axe).await;
    let ids = "[...document.querySelectorAll('[id]')].map((one) => one.id)";
    let twice = format!("{ids}.filter((id, i, all) => all.indexOf(id) !== i).join(' ')");
    assert_eq!(browser.text(&twice).await, "");
    let timelines = "document.querySelectorAll('pattern').length";
    assert_eq!(browser.text(timelines).await, "2");
    browser.quit().await;
}

/// Asks axe about the page in each theme, as the system prefers it and as somebody chose.
async fn has_no_violations(browser: &Browser, axe: &str) {
    browser.run(axe).await;
    browser.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })").await;
    let background = "getComputedStyle(document.body).backgroundColor";
    let mut seen = Vec::new();
    for (system, chosen) in [("light", ""), ("dark", ""), ("dark", "light"), ("light", "dark")] {
        browser.prefer(system).await;
        browser
            .run(&format!(
                "const theme = document.getElementById('theme'); theme.value = '{chosen}'; theme.dispatchEvent(new Event('change'));"
            ))
            .await;
        seen.push(browser.text(background).await);
        let (found, passes) = violations(browser).await;
        assert!(found.is_empty(), "system {system}, chosen {chosen:?}:\n{}", found.join("\n"));
        assert!(passes > 20, "axe looked at something: {passes}");
    }
    let (light, dark) = ("rgb(255, 255, 255)", "rgb(20, 23, 28)");
    assert_eq!(seen, [light, dark, light, dark]);
}

/// The middle of the first chart of a section, scrolled into view, at shares of its width.
async fn points(browser: &Browser, section: &str, shares: &[f64]) -> Vec<(f64, f64)> {
    let script = format!(
        "const plot = document.querySelector('#{section} .plot'); plot.scrollIntoView({{block: 'center'}});
         const box = plot.getBoundingClientRect(); return [box.left, box.top, box.width, box.height];"
    );
    let found = browser.run(&script).await;
    let number = |i: usize| found[i].as_f64().expect("a number");
    shares.iter().map(|share| (number(0) + share * number(2), number(1) + number(3) / 2.0)).collect()
}

#[tokio::test]
async fn charts_answer_pointer_and_keys() {
    let browser = Browser::start().await;
    browser.show(&Session::shop()).await;
    let ticks = "[...document.querySelectorAll('#memory .plot')][0].querySelectorAll('text[text-anchor=middle]').length + ' ' +
        [...[...document.querySelectorAll('#memory .plot')][0].querySelectorAll('text')].map((one) => one.textContent).join(',')";
    let all = browser.text(ticks).await;
    assert!(all.contains("20 s") && all.contains("80 s"), "{all}");

    // Hover, between 50 s and 60 s.
    let middle = points(&browser, "memory", &[0.55]).await;
    browser.pointer(&middle, false).await;
    let tip = browser.text("document.querySelector('#memory .tip').textContent").await;
    assert!(tip.contains("db: 332 MiB") && tip.contains("web: 0 B"), "{tip}");

    // Zoom by dragging over a third, and back by a double click's key.
    let range = points(&browser, "memory", &[0.3, 0.5, 0.6]).await;
    browser.pointer(&range, true).await;
    let zoomed = browser.text(ticks).await;
    assert!(!zoomed.contains("20 s,") && !zoomed.contains("80 s"), "{zoomed}");
    browser.run("document.querySelector('#memory .plot').focus()").await;
    browser.keys("0").await;
    assert_eq!(browser.text(ticks).await, all);

    // Keys: to the end and one second back; what is there is said in words.
    browser.keys("\u{e010}\u{e012}").await;
    let said = browser.text("document.querySelector('#memory .readout').textContent").await;
    assert!(said.contains("db: 232 MiB"), "{said}");
    browser.keys("++").await;
    assert_ne!(browser.text(ticks).await, all);
    browser.keys("0").await;

    // The legend: without db the scale is web's.
    let lines = "document.querySelector('#memory .plot').querySelectorAll('path').length";
    assert_eq!(browser.text(lines).await, "2");
    browser.run("document.querySelector('#memory .legend button').click()").await;
    assert_eq!(browser.text(lines).await, "1");
    assert_eq!(browser.text("document.querySelector('#memory .legend button').ariaPressed").await, "false");

    // The timeline says of each bar what it was.
    browser.run("document.querySelector('#processes .plot').focus()").await;
    browser.keys("\u{e015}\u{e015}").await;
    let said = browser.text("document.querySelector('#processes .readout').textContent").await;
    assert!(said.contains("gzip; pid 71 of web on a; signal 9 after 33.0 s"), "{said}");

    // Tables sort by what a person clicks.
    let first = "document.querySelector('#drops tbody').rows[0].cells[0].textContent";
    assert_eq!(browser.text(first).await, "SOCKET_BACKLOG");
    browser.run("document.querySelector('#drops thead button').click()").await;
    assert_eq!(browser.text(first).await, "NETFILTER_DROP");
    browser.quit().await;
}

#[tokio::test]
async fn names_are_text_and_nothing_is_asked_for() {
    let hostile = [
        "</script><script>window.owned=1</script>",
        "<img src=x onerror=window.owned=1>",
        "{{data}}${window.owned=1}\u{202e}\u{1b}[31m",
    ];
    let mut session = Session::shop();
    let cells = session.tables.get_mut("processes").expect("rows");
    let comm = cells[0].iter().position(|name| name == "comm").expect("a column");
    for (i, row) in cells[1..].iter_mut().enumerate() {
        // Of the three processes each one's last row has another of them.
        row[comm] = hostile[i / 3 % hostile.len()].to_owned();
    }
    session.nodes.insert("c".to_owned(), hostile[0].to_owned());
    let browser = Browser::start().await;
    browser.show(&session).await;
    assert_eq!(browser.text("window.owned").await, "undefined");
    assert_eq!(browser.text("document.images.length").await, "0");
    assert_eq!(browser.text("document.scripts.length").await, "2");
    assert_eq!(browser.text("performance.getEntriesByType('resource').length").await, "0");
    let shown = browser.text("document.getElementById('main').textContent").await;
    assert!(shown.contains("<img src=x onerror=window.owned=1>"), "as it is");
    assert!(shown.contains("\\u{202e}") && !shown.contains('\u{202e}'), "directions are named, not followed");
    // Were markup to get in all the same, the page's own policy would not run it.
    browser
        .run("const script = document.createElement('script'); script.textContent = 'window.owned = 1'; document.body.append(script);
              document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.owned=1\"><b onclick=\"window.owned=1\" id=b>b</b>');
              document.getElementById('b').click();")
        .await;
    assert_eq!(browser.text("window.owned").await, "undefined");
    browser.quit().await;
}

#[tokio::test]
async fn pictures_for_the_docs_show_both_themes() {
    let browser = Browser::start().await;
    browser.show(&Session::shop()).await;
    for (theme, section) in [("light", "theme"), ("dark", "memory")] {
        browser.prefer(theme).await;
        browser.run(&format!("document.getElementById('{section}').scrollIntoView()")).await;
        browser.picture(&format!("{theme}.png")).await;
        let ink = browser.text("getComputedStyle(document.body).color").await;
        assert_eq!(ink, if theme == "light" { "rgb(27, 31, 36)" } else { "rgb(232, 234, 237)" });
    }
    browser.quit().await;
}

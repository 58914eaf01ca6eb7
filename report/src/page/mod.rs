// SPDX-License-Identifier: Apache-2.0

//! The report as one page that needs nothing else: no network, no other file.
//!
//! In: [`View`]s. Out: HTML with style, script and data inside. The script and the style are named by their hash in the
//! page's own policy, so a name that somebody chose for a process can be no script of it, however it were to get in; and the
//! data are JSON without a character that could end their element. Names become text, never markup (`page.js`).

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest, Sha256};

use crate::text::clean;
use crate::view::View;

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = concat!("'use strict';\n", include_str!("chart.js"), include_str!("page.js"));

/// The page of some sections.
///
/// # Errors
/// None that is known: views are plain data.
pub fn page(title: &str, subtitle: &str, views: &[View]) -> Result<String, serde_json::Error> {
    let data = serde_json::to_string(views)?;
    let hash = |text: &str| BASE64_STANDARD.encode(Sha256::digest(text.as_bytes()));
    let (title, subtitle) = (escape(&clean(title)), escape(&clean(subtitle)));
    let values = [
        ("style-hash", hash(STYLE)),
        ("script-hash", hash(SCRIPT)),
        ("title", title),
        ("subtitle", subtitle),
        ("style", STYLE.to_owned()),
        ("script", SCRIPT.to_owned()),
        ("data", inside_script(&data)),
    ];
    // From left to right, once: what a value holds is not looked at again.
    let mut page = String::with_capacity(PAGE.len() + STYLE.len() + SCRIPT.len() + data.len());
    let mut rest = PAGE;
    while let Some((before, after)) = rest.split_once("{{") {
        page += before;
        let (name, after) = after.split_once("}}").unwrap_or((after, ""));
        page += values.iter().find(|(known, _)| *known == name).map_or("", |(_, value)| value.as_str());
        rest = after;
    }
    Ok(page + rest)
}

/// Text between tags.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// JSON that ends no element and begins no comment, whatever is in it.
fn inside_script(json: &str) -> String {
    json.replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_ends_no_script_and_the_data_stay_the_same() {
        let mut view = View::new("x", "</script><script>alert(1)</script><!--\u{2028}");
        view.notes.push("{{script}} & {{data}}".to_owned());
        let page = page("<b>&", "s", &[view.clone()]).unwrap();
        assert_eq!(page.matches("<script").count(), 2, "the data's and the page's own");
        assert_eq!(page.matches("</script>").count(), 2);
        assert!(page.contains("<title>&lt;b&gt;&amp;</title>"));
        let data = page.split("id=\"data\">").nth(1).unwrap().split("</script>").next().unwrap();
        let read: serde_json::Value = serde_json::from_str(data).unwrap();
        assert_eq!(read[0]["title"], view.title);
        assert_eq!(read[0]["notes"][0], "{{script}} & {{data}}");
    }

    #[test]
    fn what_one_can_only_click_is_not_printed() {
        let print = STYLE.split("@media print").nth(1).unwrap();
        assert_eq!(print.trim(), "{ .tools, .theme, nav, .skip { display: none; } }");
        assert_eq!(STYLE.matches('{').count(), STYLE.matches('}').count());
    }

    #[test]
    fn the_page_names_nothing_outside_of_itself() {
        let page = page("t", "s", &[]).unwrap();
        for outside in ["src=", "https:", "url(", "@import", "fetch(", "innerHTML"] {
            // The name of SVG is no address that anybody asks, and a pattern is the page's own.
            let page = page.replace("url(#${this.hatch})", "");
            assert!(!page.contains(outside), "{outside}");
        }
        assert_eq!(page.matches("http:").count(), 1, "the namespace of SVG");
    }
}

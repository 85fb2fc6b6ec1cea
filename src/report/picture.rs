//! Charts of one run as a picture of their own: SVG that needs no page around it, for a post-mortem or a runbook.

use std::fmt::Write as _;

use super::chart::Chart;
use super::chart::draw::WIDTH;

/// Charts beside each other.
const COLUMNS: usize = 2;
/// Between charts, and around them.
const GAP: u32 = 26;
/// Height of a chart's drawing.
const HEIGHT: u32 = 290;
/// Height of a line of text.
const LINE: u32 = 18;
/// About the width of a letter of the legend.
const LETTER: f64 = 7.2;

/// The charts under a heading and a line of circumstances.
#[must_use]
pub fn picture(heading: &str, circumstances: &str, charts: &[Chart]) -> String {
    let mut body = String::new();
    let mut top = GAP + 3 * LINE;
    for row in charts.chunks(COLUMNS) {
        let legends: Vec<_> = row.iter().map(legend).collect();
        let lines = legends.iter().map(|(_, lines)| *lines).max().unwrap_or(0);
        for ((left, chart), (legend, _)) in (0..).zip(row).zip(&legends) {
            let left = GAP + left * (WIDTH + GAP);
            let _ = writeln!(body, "<g transform=\"translate({left} {top})\">");
            let title = escape(&chart.title);
            let dashboard = escape(&chart.subtitle);
            let _ =
                writeln!(body, "<text class=\"title\" y=\"12\">{title} <tspan class=\"of\">{dashboard}</tspan></text>");
            let _ = writeln!(body, "{legend}");
            let place = format!("<svg y=\"{}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" ", LINE * (lines + 1));
            body.push_str(&chart.svg.replacen("<svg ", &place, 1));
            body.push_str("</g>\n");
        }
        top += LINE * (lines + 1) + HEIGHT + GAP;
    }
    let columns = u32::try_from(COLUMNS.min(charts.len().max(1))).unwrap_or(1);
    let width = GAP + columns * (WIDTH + GAP);
    let (heading, circumstances) = (escape(heading), escape(circumstances));
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {top}\" width=\"{width}\" height=\"{top}\" role=\"img\" aria-label=\"{heading}\">\n\
         <style>{}</style>\n<rect width=\"{width}\" height=\"{top}\" fill=\"var(--bg)\"/>\n\
         <text class=\"heading\" x=\"{GAP}\" y=\"{}\">{heading}</text>\n\
         <text class=\"of\" x=\"{GAP}\" y=\"{}\">{circumstances}</text>\n{body}</svg>\n",
        style(),
        GAP + 8,
        GAP + 30
    )
}

/// The page's colours and dash patterns, and the text of a picture.
fn style() -> String {
    let page = include_str!("templates/style.css");
    let kept = page
        .lines()
        .take_while(|line| !line.starts_with('*'))
        .chain(page.lines().filter(|l| l.starts_with("polyline")));
    let text = "text{font-family:system-ui,\"Segoe UI\",Roboto,\"Helvetica Neue\",Arial,sans-serif;font-variant-numeric:tabular-nums}\
        .heading{font-size:19px;font-weight:600;fill:var(--ink)}.title{font-size:14px;font-weight:600;fill:var(--ink)}\
        .of{font-size:14px;font-weight:400;fill:var(--muted)}.legend{font-size:13px;fill:var(--ink)}";
    kept.collect::<Vec<_>>().join("\n") + "\n" + text
}

/// The legend's drawing, and how many lines it takes.
fn legend(chart: &Chart) -> (String, u32) {
    let (mut text, mut line, mut at) = (String::new(), 1, 0.0);
    for (ink, name) in &chart.legend {
        let width = 34.0 + LETTER * name.chars().count() as f64 + 14.0;
        if at > 0.0 && at + width > f64::from(WIDTH) {
            (line, at) = (line + 1, 0.0);
        }
        let y = LINE * line;
        let _ = write!(
            text,
            "<polyline class=\"s{ink}\" fill=\"none\" stroke=\"var(--s{ink})\" stroke-width=\"3\" points=\"{at:.0},{} {:.0},{}\"/>\
             <text class=\"legend\" x=\"{:.0}\" y=\"{}\">{}</text>",
            y + 8,
            at + 28.0,
            y + 8,
            at + 34.0,
            y + 12,
            escape(name)
        );
        at += width;
    }
    (text, line)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_stands_alone() {
        let chart = |names: &[&str]| Chart {
            title: "Like → view, p99".into(),
            subtitle: "a < b".into(),
            legend: (0..).zip(names).map(|(ink, name)| (ink, (*name).to_owned())).collect(),
            filled: false,
            svg: "<svg viewBox=\"0 0 420 290\"></svg>".into(),
        };
        let long = "a name that takes more than half of a line";
        let text = picture("Pods & viewers", "10 likes/s", &[chart(&["sse"]), chart(&[long, long]), chart(&[])]);
        assert!(text.starts_with("<svg xmlns=") && text.contains("--s0:#") && text.contains("stroke-dasharray"));
        assert!(text.contains("Pods &amp; viewers") && text.contains("a &lt; b"));
        assert_eq!(text.matches(&format!("<svg y=\"{}\"", LINE * 3)).count(), 2, "one height for a row");
        assert_eq!(text.matches("</svg>").count(), 4);
    }
}

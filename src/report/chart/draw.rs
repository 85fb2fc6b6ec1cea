//! Axes, lines, bars and labels on plotters' SVG backend; colours leave as CSS variables, so that one drawing fits light and dark.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// Width of every drawing in its own units; text is 12 of them high, so that it stays readable on a phone.
pub const WIDTH: u32 = 420;

/// A colour by its role; becomes `var(--…)` in the finished drawing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ink {
    /// Series number 0 ..= 7.
    Series(u8),
    /// Labels.
    Text,
    /// Axis lines.
    Axis,
    /// Grid lines.
    Grid,
    /// Markers of what was done to the stack.
    Mark,
}

impl Ink {
    const ALL: [(Self, &str); 12] = [
        (Self::Series(0), "s0"),
        (Self::Series(1), "s1"),
        (Self::Series(2), "s2"),
        (Self::Series(3), "s3"),
        (Self::Series(4), "s4"),
        (Self::Series(5), "s5"),
        (Self::Series(6), "s6"),
        (Self::Series(7), "s7"),
        (Self::Text, "muted"),
        (Self::Axis, "axis"),
        (Self::Grid, "grid"),
        (Self::Mark, "mark"),
    ];

    /// A colour nobody would choose, as a place holder.
    fn placeholder(self) -> RGBColor {
        let index = Self::ALL.iter().position(|(ink, _)| *ink == self).unwrap_or(0);
        RGBColor(1, 2, u8::try_from(index).unwrap_or(0))
    }
}

/// One axis, in drawing coordinates (a logarithmic axis is given as log₁₀).
#[derive(Debug, Clone, PartialEq)]
pub struct Axis {
    /// Its ends.
    pub range: (f64, f64),
    /// Position and label of each tick.
    pub ticks: Vec<(f64, String)>,
    /// What it shows.
    pub title: String,
}

impl Axis {
    /// A logarithmic axis around these values, with ticks at 1, 2 and 5 of each decade.
    #[must_use]
    pub fn log(title: &str, values: impl Iterator<Item = f64>, label: fn(f64) -> String) -> Self {
        let logs = values.filter(|v| *v > 0.0 && v.is_finite()).map(f64::log10);
        let (low, high) = logs.fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
        let (low, high) = if low > high { (0.0, 1.0) } else { (low - 0.08, high + 0.08) };
        let (low, high) = if high - low < 0.4 { (low - 0.2, high + 0.2) } else { (low, high) };
        let steps: &[f64] = if high - low > 3.2 {
            &[1.0]
        } else if high - low > 1.8 {
            &[1.0, 3.0]
        } else {
            &[1.0, 2.0, 5.0]
        };
        let decades = low.floor() as i32..=high.ceil() as i32;
        let all = decades.flat_map(|d| steps.iter().map(move |s| s * 10_f64.powi(d)));
        let ticks = all.filter(|v| (low..=high).contains(&v.log10())).map(|v| (v.log10(), label(v))).collect();
        Self { range: (low, high), ticks, title: title.to_owned() }
    }

    /// A linear axis from zero (or `from`) to the largest value, with about five round ticks.
    #[must_use]
    pub fn linear(title: &str, from: f64, to: f64, label: fn(f64) -> String) -> Self {
        let to = if to > from { to } else { from + 1.0 };
        let rough = (to - from) / 5.0;
        let size = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|s| s * size).find(|s| *s >= rough).unwrap_or(size);
        let (first, last) = ((from / step).ceil() as i64, (to / step + 1e-9).floor() as i64);
        let ticks = (first..=last).map(|i| (i as f64 * step, label(i as f64 * step))).collect();
        Self { range: (from, to), ticks, title: title.to_owned() }
    }
}

/// One line of a drawing, in drawing coordinates.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// Colour and dash pattern.
    pub series: u8,
    /// Stroke width; thin lines accompany.
    pub width: u32,
    /// Whether points are marked (few points).
    pub dots: bool,
    /// The points.
    pub points: Vec<(f64, f64)>,
}

/// Why a drawing failed.
pub type Failed = DrawingAreaErrorKind<std::io::Error>;
/// What is drawn on.
pub type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// A drawing of `height` made by `draw`, as SVG for embedding in a page. `label` is what a screen reader says.
///
/// # Errors
/// When plotters fails.
pub fn svg(height: u32, label: &str, draw: impl FnOnce(&Area<'_>) -> Result<(), Failed>) -> anyhow::Result<String> {
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, (WIDTH, height)).into_drawing_area();
        draw(&root)?;
        root.present()?;
    }
    let body = text.split_once('>').map_or("", |(_, body)| body);
    let body = body.strip_prefix('\n').unwrap_or(body).replace("font-family=\"sans-serif\" ", "");
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{}\">\n{body}",
        label.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;")
    );
    for (ink, name) in Ink::ALL {
        let RGBColor(r, g, b) = ink.placeholder();
        let hex = format!("#{r:02X}{g:02X}{b:02X}");
        svg = svg.replace(&format!(" stroke=\"{hex}\""), &format!(" class=\"{name}\" stroke=\"var(--{name})\""));
        svg = svg.replace(&hex, &format!("var(--{name})"));
    }
    Ok(svg)
}

/// Lines over two axes, with vertical markers.
///
/// # Errors
/// When plotters fails.
pub fn lines(label: &str, x: &Axis, y: &Axis, lines: &[Line], marks: &[(f64, String)]) -> anyhow::Result<String> {
    svg(290, label, |root| {
        let mut chart = ChartBuilder::on(root)
            .margin_left(58)
            .margin_right(18)
            .margin_top(26)
            .margin_bottom(46)
            .build_cartesian_2d(x.range.0..x.range.1, y.range.0..y.range.1)?;
        for (at, text) in &y.ticks {
            chart.draw_series([PathElement::new([(x.range.0, *at), (x.range.1, *at)], stroke(Ink::Grid, 1))])?;
            let (px, py) = chart.backend_coord(&(x.range.0, *at));
            write(root, text, (px - 7, py), HPos::Right, VPos::Center)?;
        }
        for (at, text) in &x.ticks {
            let (px, py) = chart.backend_coord(&(*at, y.range.0));
            root.draw(&PathElement::new([(px, py), (px, py + 4)], stroke(Ink::Axis, 1)))?;
            let last = px > WIDTH as i32 - 36;
            let (px, side) = if last { (WIDTH as i32 - 2, HPos::Right) } else { (px, HPos::Center) };
            write(root, text, (px, py + 7), side, VPos::Top)?;
        }
        chart
            .draw_series([PathElement::new([(x.range.0, y.range.0), (x.range.1, y.range.0)], stroke(Ink::Axis, 1))])?;
        let mut row = 0;
        for (at, text) in marks {
            chart.draw_series([PathElement::new([(*at, y.range.0), (*at, y.range.1)], stroke(Ink::Mark, 1))])?;
            let (px, py) = chart.backend_coord(&(*at, y.range.1));
            let left = px < WIDTH as i32 / 2;
            let side = if left { HPos::Left } else { HPos::Right };
            let (at, room) = if left { (px + 4, WIDTH as i32 - px - 4) } else { (px - 4, px - 4) };
            for text in wrap(text, room / LETTER) {
                write(root, &text, (at, py + 2 + 15 * (row % 4)), side, VPos::Top)?;
                row += 1;
            }
        }
        for line in lines {
            let ink = Ink::Series(line.series);
            chart.draw_series(LineSeries::new(line.points.iter().copied(), stroke(ink, line.width)))?;
            if line.dots {
                let dot = |point: &(f64, f64)| Circle::new(*point, 3, ink.placeholder().filled());
                chart.draw_series(line.points.iter().map(dot))?;
            }
        }
        write(root, &y.title, (4, 4), HPos::Left, VPos::Top)?;
        write(root, &x.title, (WIDTH as i32 - 18, 272), HPos::Right, VPos::Top)
    })
}

/// What a letter of a label takes on average, in drawing units.
const LETTER: i32 = 8;

/// The text in lines of so many letters, broken between words.
fn wrap(text: &str, letters: i32) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if (line.chars().count() + 1 + word.chars().count()) as i32 <= letters => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// A stroke of that width.
#[must_use]
pub fn stroke(ink: Ink, width: u32) -> ShapeStyle {
    ink.placeholder().stroke_width(width)
}

/// A text, placed by its named corner.
///
/// # Errors
/// When plotters fails.
pub fn write(root: &Area<'_>, text: &str, at: (i32, i32), x: HPos, y: VPos) -> Result<(), Failed> {
    let style = ("sans-serif", 15).into_font().color(&Ink::Text.placeholder()).pos(Pos::new(x, y));
    root.draw(&Text::new(text.to_owned(), at, style))
}

/// A filled rectangle.
///
/// # Errors
/// When plotters fails.
pub fn bar(root: &Area<'_>, ink: Ink, from: (i32, i32), to: (i32, i32)) -> Result<(), Failed> {
    root.draw(&Rectangle::new([from, to], ink.placeholder().filled()))
}

/// A filling.
#[must_use]
pub fn fill(ink: Ink) -> ShapeStyle {
    ink.placeholder().filled()
}

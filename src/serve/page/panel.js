// One side of the page: its count, its figures, its chart, the state of its connection.

const KEPT = 60;                                     // latencies in the chart and in the figures
const FLASH_MS = 500, still = matchMedia("(prefers-reduced-motion: reduce)");
const STATES = { off: "not started", connecting: "connecting", open: "live", waiting: "reconnecting" };

// The wall clock, finer than the whole milliseconds of Date.now(): read where it ticks, then carried on by the monotonic clock.
let base = null, renewed = 0;
export function wallClock() {
  const at = performance.now();
  if (base === null || at - renewed > 60000 || Math.abs(Date.now() - base - at) > 5) {
    const before = Date.now();
    let now = before;
    while (now === before && performance.now() - at < 5) now = Date.now();
    renewed = performance.now();
    base = now - renewed;
  }
  return base + performance.now();
}

const ms = value => value === undefined ? "–" : `${value.toFixed(Math.abs(value) < 100 ? 1 : 0)} ms`;
const median = values => values.length ? [...values].sort((a, b) => a - b)[values.length >> 1] : undefined;

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** The charts of all panels have one scale, so that they can be compared; drawn at most once per frame. */
const charts = new Set();
let drawing = false;
function redraw() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(draw);
}
function draw() {
  drawing = false;
  const largest = Math.max(1, ...[...charts].flatMap(chart => chart.values()));
  const step = 10 ** Math.floor(Math.log10(largest));
  const top = [1, 2, 5, 10].map(factor => factor * step).find(candidate => candidate >= largest);
  for (const chart of charts) chart.draw(top);
}

function chart() {
  const SVG = "http://www.w3.org/2000/svg", entries = [];
  const svg = document.createElementNS(SVG, "svg"), upper = element("span"), middle = element("span");
  for (const [name, value] of [["viewBox", `0 0 ${KEPT} 100`], ["preserveAspectRatio", "none"], ["role", "img"]]) svg.setAttribute(name, value);
  const root = element("figure", { class: "chart" },
    element("div", { class: "scale", "aria-hidden": "true" }, upper, middle, element("span", {}, "0")), svg,
    element("figcaption", { class: "muted" }, `last ${KEPT} changes, dashed: median, scale shared`));
  const values = () => entries.filter(entry => !entry.gap).map(entry => entry.value);
  const shape = (name, attributes) => {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    svg.append(made);
  };
  const add = entry => { entries.push(entry); if (entries.length > KEPT) entries.shift(); redraw(); };
  const self = {
    root, values,
    add: value => add({ value }),
    gap: () => { if (entries.length && !entries.at(-1).gap) add({ gap: true }); },
    draw(top) {
      svg.replaceChildren();
      upper.textContent = `${top} ms`;
      middle.textContent = `${top / 2}`;
      for (const y of [0.5, 50, 99.5]) shape("line", { class: "grid", x1: 0, x2: KEPT, y1: y, y2: y });
      entries.forEach((entry, at) => {
        const x = KEPT - entries.length + at;
        if (entry.gap) return shape("line", { class: "gap", x1: x + 0.5, x2: x + 0.5, y1: 0, y2: 100 });
        const height = Math.max(1.5, Math.max(0, entry.value) / top * 100);
        shape("rect", { class: at === entries.length - 1 ? "bar last" : "bar", x: x + 0.12, y: 100 - height, width: 0.76, height });
      });
      const middling = median(values());
      if (middling !== undefined) {
        const y = 100 - Math.max(0, middling) / top * 100;
        shape("line", { class: "median", x1: 0, x2: KEPT, y1: y, y2: y });
      }
      const all = values();
      svg.setAttribute("aria-label", all.length ? `Latency of the last ${all.length} changes: median ${ms(median(all))}, slowest ${ms(Math.max(...all))}` : "Latency of the last changes: none yet");
    },
  };
  charts.add(self);
  return self;
}

/** Fills a section of the page; returns what changes it. */
export function panel(id) {
  const root = document.getElementById(id), drawn = chart();
  const state = element("p", { class: "state" }), why = element("p", { class: "why muted" }), count = element("p", { class: "count" }, "–");
  const figures = element("dl"), fields = {};
  for (const [name, label] of Object.entries({
    last: "commit → shown", median: `median of ${KEPT}`, version: "version", left: "versions left out", connects: "connected", recovered: "last recovery",
  })) {
    fields[name] = element("dd", { "data-field": name }, "–");
    figures.append(element("div", {}, element("dt", {}, label), fields[name]));
  }
  const place = element("span", { class: "pod muted" });
  root.querySelector("h2").append(" ", place);
  root.append(state, count, figures, drawn.root, why);

  let version = -1, epoch = null, likes = null, connects = 0, left = 0, flashed = 0;
  redraw();
  return {
    get likes() { return likes; },
    get version() { return version; },
    /** An update: state, not delta, so the newest version is the truth. */
    show(update, itsEpoch) {
      if (itsEpoch !== epoch) [epoch, version] = [itsEpoch, -1];
      if (update.version <= version) return;
      if (!update.snapshot && version >= 0 && update.prev > version) left += update.prev - version;
      [version, likes] = [update.version, update.likes];
      count.textContent = likes.toLocaleString("en");
      fields.version.textContent = version;
      fields.left.textContent = left;
      if (performance.now() - flashed > FLASH_MS && !still.matches) {
        flashed = performance.now();
        count.animate([{ color: getComputedStyle(root).borderTopColor }, {}], FLASH_MS);
      }
      if (update.snapshot) return;
      const latency = wallClock() - update.committedAt / 1000;
      drawn.add(latency);
      fields.last.textContent = ms(latency) + (latency < 0 ? " (clocks differ)" : "");
      fields.median.textContent = ms(median(drawn.values()));
    },
    /** What the supervisor tells. */
    tell({ state: now, why: reason, wait, recovered, pod }) {
      root.dataset.state = now;
      state.textContent = STATES[now];
      if (pod) {
        place.textContent = pod;
      } else if (recovered !== undefined) {
        fields.recovered.textContent = `${(recovered / 1000).toFixed(2)} s`;
        fields.recovered.dataset.ms = recovered.toFixed(0);
      } else if (now === "open") {
        connects += 1;
        fields.connects.textContent = connects === 1 ? "once" : `${connects} times`;
        why.textContent = "";
      } else if (now === "waiting") {
        drawn.gap();
        root.dataset.lost = Number(root.dataset.lost ?? 0) + 1;
        why.textContent = `${reason}; next attempt in ${(wait / 1000).toFixed(1)} s`;
      }
    },
    /** Why an attempt was refused, in the pod's words. */
    because(words) { if (root.dataset.state !== "open") why.textContent = words; },
  };
}

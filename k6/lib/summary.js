// The end of a run as JSON that `pushlab report` reads (RESULT_DIR/k6/*.json), and a few lines for the terminal.
import { text } from './config.js';

const trend = (metric) => metric && metric.values.count > 0
  ? {
    samples: metric.values.count, p50: metric.values.med * 1000, p90: metric.values['p(90)'] * 1000,
    p99: metric.values['p(99)'] * 1000, max: metric.values.max * 1000,
  }
  : null;
const count = (metric) => (metric && metric.values.count) || 0;

/** Thresholds that hold always: k6 keeps figures by tag only where a threshold asks for them. */
export function keep(thresholds, tag, more = []) {
  for (const name of ['gaps', 'duplicates', 'reconnects', 'likes_ok', 'likes_unknown', ...more])
    thresholds[`pushlab_${name}${tag}`] = ['count>=0'];
  thresholds[`pushlab_like_duration${tag}`] = ['max>=0'];
  return thresholds;
}

/**
 * The function k6 calls. `script`: its name; `k6`: the version, where it is known; `cells`: what was measured, each with
 * `name`, `arm`, `transport`, `viewers`, `rate`, `posts`, `stamped`, and `tag`, which selects its figures (`{cell:x}`, or '').
 */
export const summary = (script, k6, cells) => (data) => {
  const metric = (name, tag) => data.metrics[`pushlab_${name}${tag}`];
  const figures = cells.map(({ tag, stamped, ...cell }) => ({
    ...cell,
    stamped: stamped || (count(metric('user_stamps', tag)) > 0 ? 'go' : 'kernel'),
    commitToArrivalUs: trend(metric('commit_to_arrival', tag)),
    likeUs: trend(metric('like_duration', tag)),
    likesOk: count(metric('likes_ok', tag)),
    likesUnknown: count(metric('likes_unknown', tag)),
    gaps: count(metric('gaps', tag)),
    duplicates: count(metric('duplicates', tag)),
    reconnects: count(metric('reconnects', tag)),
    timeouts: count(metric('timeouts', tag)),
    lostFinals: count(metric('lost_finals', tag)),
  }));
  const thresholds = [];
  for (const [name, { thresholds: own }] of Object.entries(data.metrics))
    for (const [condition, { ok }] of Object.entries(own || {}))
      if (condition !== 'count>=0' && condition !== 'max>=0') thresholds.push({ metric: name, condition, ok });
  const rose = data.metrics.pushlab_versions;
  const result = {
    format: 1,
    k6,
    script,
    beside: text('BESIDE', null),
    run: Number(text('RUN', 0)),
    durationS: data.state.testRunDurationMs / 1000,
    dropped: count(data.metrics.dropped_iterations),
    versions: rose ? rose.values.count : null,
    cells: figures,
    thresholds,
  };
  const ms = (us) => (us / 1000).toFixed(3);
  const lines = figures.map((cell) => {
    const t = cell.commitToArrivalUs;
    const latency = t ? `commit → arrival p50 ${ms(t.p50)} ms, p99 ${ms(t.p99)} ms of ${t.samples} (stamped: ${cell.stamped})` : 'no viewer';
    return `${cell.name}: ${latency}; likes ${cell.likesOk} ok, ${cell.likesUnknown} unknown` +
      `; lost finals ${cell.lostFinals}, time-outs ${cell.timeouts}, gaps ${cell.gaps}, reconnects ${cell.reconnects}`;
  });
  const ok = figures.reduce((sum, cell) => sum + cell.likesOk, 0);
  const unknown = figures.reduce((sum, cell) => sum + cell.likesUnknown, 0);
  if (rose && ok > 0) {
    const closes = ok <= rose.values.count && rose.values.count <= ok + unknown;
    thresholds.push({ metric: 'ok ≤ Δversion ≤ ok + unknown', condition: `${ok} ≤ ${rose.values.count} ≤ ${ok + unknown}`, ok: closes });
  }
  for (const { metric: name, condition, ok: held } of thresholds) if (!held) lines.push(`BROKEN ${name}: ${condition}`);
  const files = { stdout: `${lines.join('\n')}\n` };
  const out = text('OUT', '');
  if (out) files[out] = JSON.stringify(result, null, 1) + '\n';
  return files;
};

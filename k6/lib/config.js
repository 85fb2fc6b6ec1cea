// What the scripts are told, from the environment (`k6 run -e NAME=value`): one place for names, defaults and errors.

/** The variable, or the default. */
export const text = (name, fallback) => __ENV[name] || fallback;

/** A number, from `least` on. */
export function number(name, fallback, least = 0) {
  const value = Number(text(name, fallback));
  if (!(value >= least)) throw new Error(`${name}=${__ENV[name]} is no number from ${least} on`);
  return value;
}

/** A list, separated by commas. */
export const list = (name, fallback) => text(name, fallback).split(',').map((part) => part.trim()).filter(Boolean);

/** Seconds of `30`, `30s` or `2m`. */
export function seconds(name, fallback) {
  const found = /^(\d+(?:\.\d+)?)(ms|s|m)?$/.exec(text(name, fallback));
  if (!found) throw new Error(`${name}=${__ENV[name]} is no duration: write for example 30s`);
  return Number(found[1]) * { ms: 0.001, s: 1, m: 60 }[found[2] || 's'];
}

/** Where likes go. */
export const baseUrls = list('BASE_URL', 'http://127.0.0.1:8080').map((url) => url.replace(/\/+$/, ''));
/** Where streams are opened. */
export const streamUrls = list('STREAM_URL', baseUrls.join(',')).map((url) => url.replace(/\/+$/, ''));
/** The Host header of requests and of streams, for edges that route by host; empty: that of the URL. */
export const likeHost = text('LIKE_HOST', '');
/** See `likeHost`. */
export const streamHost = text('STREAM_HOST', likeHost);
/** The pods' heartbeat (`serve --heartbeat`). */
export const heartbeat = text('HEARTBEAT', '10s');

/** What every script of ours sets. */
export const common = {
  summaryTrendStats: ['count', 'min', 'med', 'p(90)', 'p(99)', 'p(99.9)', 'max'],
  discardResponseBodies: false,
  noConnectionReuse: false,
  setupTimeout: '60s',
};

/** Request parameters with the Host header and a name of low cardinality. */
export const params = (name, more = {}) =>
  ({ ...more, headers: { ...(likeHost && { Host: likeHost }), ...more.headers }, tags: { name, ...more.tags } });

/** How many of VIEWERS the VU with this number holds. */
export const share = (viewers, vus, mine) => Math.floor(viewers / vus) + (mine % vus < viewers % vus ? 1 : 0);

/** Seconds after the last like in which viewers may still be told. */
export const settle = 2;

/** The options of a script in which `vus` VUs hold viewers (`watch`), and likes come at a constant rate (`like`; 0: they are not this script's). */
export const watching = ({ vus, rate, join, duration }) => ({
  ...common,
  scenarios: {
    viewers: {
      executor: 'per-vu-iterations', vus, iterations: 1, exec: 'watch', gracefulStop: '10s', maxDuration: `${Math.ceil(join + duration + settle + 60)}s`,
    },
    ...(rate > 0 && {
      likes: {
        executor: 'constant-arrival-rate', exec: 'like', startTime: `${join}s`, duration: `${duration}s`, rate, timeUnit: '1s',
        preAllocatedVUs: Math.max(20, Math.ceil(rate)), gracefulStop: '10s',
      },
    }),
  },
  thresholds: {
    pushlab_commit_to_arrival: [`p(99)<${number('P99_MS', 1000, 1)}`],
    pushlab_lost_finals: ['count==0'],
    pushlab_timeouts: ['count==0'],
    ...(rate > 0 && { dropped_iterations: ['count==0'] }),
  },
});

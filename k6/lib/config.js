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

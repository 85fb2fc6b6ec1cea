// Question: how late do VIEWERS STOMP sessions see the likes, measured by a k6 that anybody has?
// Needs: stock k6 v2 (tried with 2.2.0): k6/websockets and the codec in lib/stomp.js. Arrivals are stamped in the JavaScript event
// loop, in whole milliseconds, so that they include k6's own delay: not to be compared with SSE (sse.js TRANSPORT=stomp is).
//   k6 run -e BASE_URL=http://127.0.0.1:8080 -e VIEWERS=50 -e RATE=10 -e WRITE=send k6/stomp.js
// VIEWERS, VUS (that hold them), RATE, DURATION, WRITE (post, or send: over the viewers' own sessions), POST_COUNT or POSTS, P99_MS,
// STREAM_URL, HEARTBEAT, OUT.
import { check } from 'k6';
import exec from 'k6/execution';
import { Counter, Trend } from 'k6/metrics';
import { clearInterval, clearTimeout, setInterval, setTimeout } from 'k6/timers';
import { WebSocket } from 'k6/websockets';
import { number, seconds, settle, share, streamHost, streamUrls, text, watching } from './lib/config.js';
import { account, book, finals, makePosts, post, states } from './lib/posts.js';
import { HEARTBEAT, decode, encode } from './lib/stomp.js';
import { keep, summary } from './lib/summary.js';

const viewers = number('VIEWERS', 10, 1);
const vus = number('VUS', 1, 1);
const rate = number('RATE', 10, 1);
const duration = seconds('DURATION', '30s');
const send = text('WRITE', 'post') === 'send';
const period = seconds('HEARTBEAT', '10s') * 1000;
const join = seconds('JOIN', '5s');

const arrival = new Trend('pushlab_commit_to_arrival', true);
const counters = Object.fromEntries(['gaps', 'duplicates', 'reconnects', 'timeouts', 'lost_finals'].map((name) => [name, new Counter(`pushlab_${name}`)]));
const tags = { transport: 'stomp', stamped: 'js' };

export const options = watching({ vus, rate: send ? 0 : rate, join, duration });
keep(options.thresholds, '');

export function setup() {
  const posts = makePosts(number('POST_COUNT', 1, 1));
  return { posts, initial: states(posts) };
}

/** One viewer: a session that watches a post, and likes it when told to. It does not come back: its end is counted. */
class Viewer {
  constructor(url, id) {
    this.post = id;
    this.version = -1;
    this.waiting = {};
    this.sent = 0;
    this.socket = new WebSocket(`${url.replace(/^http/, 'ws')}/stomp`, 'v12.stomp', { headers: streamHost ? { Host: streamHost } : {}, tags });
    this.joined = new Promise((joined, failed) => {
      this.onJoined = joined;
      this.onFailed = failed;
    });
    this.heard = Date.now();
    this.socket.onopen = () => this.write(encode('CONNECT', { 'accept-version': '1.2', host: 'pushlab', 'heart-beat': `${period},${period}` }));
    this.socket.onmessage = ({ data }) => this.read(data, Date.now());
    this.socket.onerror = ({ error }) => this.onFailed(new Error(error));
    this.socket.onclose = ({ code }) => {
      if (!this.over) console.warn(`a session ended: ${code}`);
      this.onFailed(new Error(`closed: ${code}`));
      clearInterval(this.beat);
    };
  }

  write(frame) {
    this.socket.send(frame);
  }

  read(message, at) {
    this.heard = at;
    for (const { command, headers, body } of decode(message)) {
      if (command === 'CONNECTED') {
        this.write(encode('SUBSCRIBE', { id: '0', destination: `/topic/posts.${this.post}.likes` }));
        if (send) this.write(encode('SUBSCRIBE', { id: 'replies', destination: '/user/queue/replies' }));
        this.beat = setInterval(() => this.keep(), period);
      } else if (command === 'MESSAGE' && headers.subscription === 'replies') {
        const sent = this.waiting[headers['correlation-id']];
        delete this.waiting[headers['correlation-id']];
        if (sent) book(headers.status === '200', false, at - sent, tags);
      } else if (command === 'MESSAGE') {
        this.take(JSON.parse(body), at);
      } else if (command === 'ERROR') {
        this.onFailed(new Error(`ERROR: ${headers.message}`));
      }
    }
  }

  /** A change (prev, committedAt) or a snapshot. */
  take(update, at) {
    const known = this.version;
    if (known < 0) this.onJoined();
    if (!update.snapshot && update.version <= known) return counters.duplicates.add(1, tags);
    if (known >= 0 && update.snapshot) counters.gaps.add(Math.max(0, update.version - known), tags);
    if (!update.snapshot) {
      if (known >= 0) counters.gaps.add(Math.max(0, update.prev - known), tags);
      arrival.add(at - update.committedAt / 1000, tags);
    }
    this.version = Math.max(known, update.version);
  }

  keep() {
    this.write(HEARTBEAT);
    if (Date.now() - this.heard > 2 * period) {
      counters.timeouts.add(1, { ...tags, kind: 'silent' });
      this.socket.close();
    }
  }

  like() {
    const id = String(++this.sent);
    this.waiting[id] = Date.now();
    this.write(encode('SEND', { destination: `/app/posts.${this.post}.like`, 'correlation-id': id }));
  }

  close() {
    this.over = true;
    clearInterval(this.beat);
    Object.keys(this.waiting).forEach(() => book(false, true, 0, tags));
    this.socket.close();
  }
}

const later = (ms) => new Promise((done) => setTimeout(done, Math.max(0, ms)));

export async function watch({ posts }) {
  for (const counter of Object.values(counters)) counter.add(0, tags);
  const mine = exec.scenario.iterationInTest; // one iteration per VU, numbered over all pods of a TestRun
  const held = share(viewers, vus, mine);
  const all = Array.from({ length: held }, (_, i) => new Viewer(streamUrls[i % streamUrls.length], posts[i % posts.length]));
  // A timer that is left would hold the iteration.
  let patience;
  const late = new Promise((done) => { patience = setTimeout(() => done(false), 20000); });
  const outcomes = await Promise.all(all.map((viewer) => Promise.race([viewer.joined.then(() => true, () => false), late])));
  clearTimeout(patience);
  const joined = outcomes.filter(Boolean).length;
  check(joined, { 'every viewer has a first state': (n) => n === held });
  const start = exec.scenario.startTime + join * 1000;
  const live = all.filter((_, i) => outcomes[i]);
  if (send && live.length) {
    // Due times are fixed beforehand: this VU's share of RATE, evenly spaced.
    const step = (1000 * vus) / rate;
    for (let n = 0; n * step < duration * 1000; n++) {
      await later(start + n * step - Date.now());
      live[n % live.length].like();
    }
  }
  await later(start + (duration + settle) * 1000 - Date.now());
  const versions = finals(posts);
  const deadline = Date.now() + 15000;
  const behind = () => all.filter((viewer) => viewer.version < versions[viewer.post]).length;
  while (behind() > 0 && Date.now() < deadline) await later(20);
  counters.lost_finals.add(behind(), tags);
  all.forEach((viewer) => viewer.close());
}

export function like({ posts }) {
  post(posts[Math.floor(Math.random() * posts.length)]);
}

export function teardown({ initial }) {
  account(initial);
}

export const handleSummary = summary('stomp.js', null, [{
  name: 'stomp', arm: send ? 'stomp-send' : 'stomp-post', transport: 'stomp', viewers, rate, posts: number('POST_COUNT', 1), stamped: 'js', tag: '',
}]);

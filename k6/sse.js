// Question: how late do VIEWERS streams see the likes, over SSE (or STOMP), and do all end on the final value?
// Needs: k6 with k6/x/push (k6/extension, k6/Dockerfile): stock k6 has no SSE client. Arrivals are stamped by the kernel.
//   k6x run -e BASE_URL=http://127.0.0.1:8080 -e VIEWERS=100 -e RATE=10 -e DURATION=30s k6/sse.js
// TRANSPORT (sse, stomp), VIEWERS, VUS (that hold them; at least the parallelism of a TestRun), RATE (0: others like), DURATION,
// POST_COUNT or POSTS (ids), P99_MS, STREAM_URL, LIKE_HOST, STREAM_HOST, HEARTBEAT, CONNECT_RATE, OUT, and BESIDE (see k6/agree).
import { subscribe, k6Version } from 'k6/x/push';
import exec from 'k6/execution';
import { setTimeout } from 'k6/timers';
import { check } from 'k6';
import { heartbeat, number, seconds, settle, share, streamHost, streamUrls, text, watching } from './lib/config.js';
import { account, finals, makePosts, post, states } from './lib/posts.js';
import { keep, summary } from './lib/summary.js';

const transport = text('TRANSPORT', 'sse');
const viewers = number('VIEWERS', 10, 1);
const vus = number('VUS', 1, 1);
const rate = number('RATE', 10);
const duration = seconds('DURATION', '30s');
const join = seconds('JOIN', '5s'); // for connecting, before the first like

export const options = watching({ vus, rate, join, duration });
keep(options.thresholds, '', ['user_stamps']);

export function setup() {
  const posts = makePosts(number('POST_COUNT', 1, 1));
  return { posts, initial: states(posts) };
}

export async function watch({ posts }) {
  const mine = exec.scenario.iterationInTest; // one iteration per VU, numbered over all pods of a TestRun
  const held = share(viewers, vus, mine);
  if (held === 0) return;
  const streams = subscribe({
    transport, url: streamUrls, host: streamHost, posts, streams: held, connectRate: number('CONNECT_RATE', 500, 1), heartbeat,
  });
  const joined = await streams.joined('30s');
  console.log(`joined ${joined} of ${held}`);
  check(joined, { 'every viewer has a first state': (n) => n === held });
  const end = exec.scenario.startTime + (join + duration + settle) * 1000;
  await new Promise((done) => setTimeout(done, Math.max(0, end - Date.now())));
  const lost = await streams.reached(finals(posts), '15s');
  check(lost, { 'every viewer is on the final value': (n) => n === 0 });
  streams.close();
}

export function like({ posts }) {
  post(posts[Math.floor(Math.random() * posts.length)]);
}

export function teardown({ initial }) {
  account(initial);
}

export const handleSummary = summary('sse.js', k6Version, [{
  name: transport, arm: `${transport}-post`, transport, viewers, rate, posts: number('POST_COUNT', 1), tag: '',
}]);

// Question: SSE + POST, STOMP + POST or STOMP + SEND: at each load of the notes (1, 10, 1000 likes/s; 1, 1000 viewers), does it keep
// what a user would ask for? No final value lost, no time-out, a like seen within P99_MS.
// Needs: k6 with k6/x/push (k6/extension, k6/Dockerfile). Cells run one after the other; which transport is faster is no business of
// thresholds: `pushlab compare` pairs runs for that.
//   k6x run -e BASE_URL=http://127.0.0.1:8080 k6/compare.js
// ARMS, RATES, VIEWERS (lists), DURATION (of a cell), POST_COUNT (per cell), VUS (that hold the viewers of a cell), P99_MS, and STREAM_URL,
// LIKE_HOST, STREAM_HOST, HEARTBEAT, CONNECT_RATE; edges that differ by transport: SSE_URL, SSE_HOST, STOMP_URL, STOMP_HOST. OUT.
import { k6Version, liker, subscribe } from 'k6/x/push';
import { check } from 'k6';
import exec from 'k6/execution';
import { setTimeout } from 'k6/timers';
import { baseUrls, common, heartbeat, list, number, seconds, share, streamHost, streamUrls, text } from './lib/config.js';
import { account, book, finals, makePosts, post, states } from './lib/posts.js';
import { keep, summary } from './lib/summary.js';

const duration = seconds('DURATION', '20s');
const join = seconds('JOIN', '8s');
const settle = seconds('SETTLE', '20s'); // after the last like: final values, and the streams' end
const vus = number('VUS', 1, 1);
const ARMS = ['sse-post', 'stomp-post', 'stomp-send'];
const arms = list('ARMS', ARMS.join(','));
const unknown = arms.find((arm) => !ARMS.includes(arm));
if (unknown) throw new Error(`ARMS: ${unknown} is none of ${ARMS.join(', ')}`);

const edge = (transport, what, fallback) => text(`${transport.toUpperCase()}_${what}`, fallback);
const cells = {};
for (const rate of list('RATES', '1,10,1000').map(Number))
  for (const viewers of list('VIEWERS', '1,1000').map(Number))
    for (const arm of arms) {
      const transport = arm.split('-')[0];
      const name = `${arm.replace('-', '_')}_r${rate}_v${viewers}`;
      cells[name] = { name, arm, transport, viewers, rate, posts: number('POST_COUNT', 1, 1), tag: `{cell:${name}}` };
    }

const scenarios = {}, thresholds = {};
Object.values(cells).forEach((cell, i) => {
  const start = i * (join + duration + settle);
  const all = { tags: { cell: cell.name, arm: cell.arm }, env: { CELL: cell.name } };
  scenarios[`${cell.name}_viewers`] = {
    ...all, executor: 'per-vu-iterations', vus, iterations: 1, exec: 'watch', startTime: `${start}s`,
    maxDuration: `${join + duration + settle}s`, gracefulStop: '0s',
  };
  scenarios[`${cell.name}_likes`] = {
    ...all, executor: 'constant-arrival-rate', exec: cell.arm.endsWith('send') ? 'send' : 'like', startTime: `${start + join}s`,
    duration: `${duration}s`, rate: cell.rate, timeUnit: '1s', preAllocatedVUs: Math.max(20, Math.ceil(cell.rate / 2)), gracefulStop: '6s',
  };
  thresholds[`pushlab_commit_to_arrival${cell.tag}`] = [`p(99)<${number('P99_MS', 1000, 1)}`];
  thresholds[`pushlab_lost_finals${cell.tag}`] = ['count==0'];
  thresholds[`pushlab_timeouts${cell.tag}`] = ['count==0'];
  thresholds[`dropped_iterations{scenario:${cell.name}_likes}`] = ['count==0']; // k6 gives these no tags of ours
  keep(thresholds, cell.tag, ['user_stamps']);
});

export const options = { ...common, scenarios, thresholds };

export function setup() {
  const posts = {}, initial = {};
  for (const { name } of Object.values(cells)) {
    posts[name] = makePosts(number('POST_COUNT', 1, 1));
    Object.assign(initial, states(posts[name]));
  }
  return { posts, initial };
}

export async function watch({ posts }) {
  const cell = cells[__ENV.CELL];
  const own = posts[cell.name];
  const mine = exec.scenario.iterationInTest; // one iteration per VU, numbered over all pods of a TestRun
  const held = share(cell.viewers, vus, mine);
  if (held === 0) return;
  const streams = subscribe({
    transport: cell.transport, url: list(`${cell.transport.toUpperCase()}_URL`, streamUrls.join(',')), host: edge(cell.transport, 'HOST', streamHost),
    posts: own, streams: held, connectRate: number('CONNECT_RATE', 500, 1), heartbeat,
  });
  const joined = await streams.joined('30s');
  check(joined, { 'every viewer has a first state': (n) => n === held });
  const end = exec.scenario.startTime + (join + duration + 1) * 1000;
  await new Promise((done) => setTimeout(done, Math.max(0, end - Date.now())));
  const lost = await streams.reached(finals(own), '10s');
  check(lost, { 'every viewer is on the final value': (n) => n === 0 });
  streams.close();
}

const pick = (posts) => posts[__ENV.CELL][Math.floor(Math.random() * posts[__ENV.CELL].length)];

export function like({ posts }) {
  post(pick(posts));
}

// A VU is one user with one session, which outlives its iterations.
const user = liker({ url: list('STOMP_URL', baseUrls.join(',')), host: edge('stomp', 'HOST', streamHost), heartbeat });

export async function send({ posts }) {
  try {
    const answer = await user.like(pick(posts));
    book(true, false, answer.ms);
    check(answer, { 'the like was counted': (a) => a.version > 0 });
  } catch (error) {
    book(false, !/refused/.test(error), 0);
    check(null, { 'the like was counted': () => false });
    console.warn(`${error}`);
  }
}

export function teardown({ initial }) {
  account(initial);
}

export const handleSummary = summary('compare.js', k6Version, Object.values(cells));

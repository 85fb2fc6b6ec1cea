// Question: does the service count RATE likes/s that nobody waits for, and how long does each take?
// Needs: stock k6 v2 (tried with 2.2.0). Open model: likes are due at a fixed rate, whatever the answers do.
//   k6 run -e BASE_URL=http://127.0.0.1:8080 -e RATE=50 -e DURATION=30s k6/likes.js
// RATE (likes/s), DURATION, POST_COUNT (made) or POSTS (ids), VUS (users at hand), P99_MS (threshold), LIKE_HOST, OUT (JSON).
import { common, number, seconds } from './lib/config.js';
import { account, makePosts, post, states } from './lib/posts.js';
import { summary } from './lib/summary.js';

const rate = number('RATE', 10, 1);
const duration = seconds('DURATION', '30s');
const vus = number('VUS', Math.max(20, Math.ceil(rate)), 1);

export const options = {
  ...common,
  scenarios: {
    likes: {
      executor: 'constant-arrival-rate', rate, timeUnit: '1s', duration: `${duration}s`, preAllocatedVUs: vus, gracefulStop: '10s',
    },
  },
  thresholds: {
    dropped_iterations: ['count==0'], // a like that no VU was free for: the generator was the bottleneck
    http_req_failed: ['rate==0'],
    pushlab_like_duration: [`p(99)<${number('P99_MS', 500, 1)}`],
    pushlab_likes_unknown: ['count==0'],
  },
};

export function setup() {
  const posts = makePosts(number('POST_COUNT', 1, 1));
  return { posts, initial: states(posts) };
}

export default function ({ posts }) {
  post(posts[Math.floor(Math.random() * posts.length)]);
}

export function teardown({ initial }) {
  account(initial);
}

export const handleSummary = summary('likes.js', null, [{ name: 'likes', arm: null, transport: null, viewers: 0, rate, posts: number('POST_COUNT', 1), stamped: 'none', tag: '' }]);

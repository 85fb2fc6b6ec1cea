// Posts: made in setup(), liked by POST, asked for their final versions.
import { check, sleep } from 'k6';
import http from 'k6/http';
import { Counter, Trend } from 'k6/metrics';
import { baseUrls, list, params } from './config.js';

const likeDuration = new Trend('pushlab_like_duration', true);
const likesOk = new Counter('pushlab_likes_ok');
const likesUnknown = new Counter('pushlab_likes_unknown');
const versions = new Counter('pushlab_versions');

const read = (answer) => {
  try { return answer.json(); } catch (_) { return {}; }
};

/** Makes posts; those in POSTS (ids) instead, if given. */
export function makePosts(count) {
  const given = list('POSTS', '').map(Number);
  if (given.length) return given;
  return Array.from({ length: count }, (_, i) => {
    const body = JSON.stringify({ title: `k6 ${i + 1}` });
    const answer = http.post(`${baseUrls[0]}/posts`, body, params('POST /posts', { headers: { 'Content-Type': 'application/json' } }));
    if (answer.status !== 201) throw new Error(`POST ${baseUrls[0]}/posts was answered ${answer.status} ${answer.error || answer.body}: is pushlab serving there?`);
    return read(answer).id;
  });
}

/** The posts' versions now: {post: version}. */
export function states(posts) {
  const found = {};
  for (const post of posts) {
    const answer = http.get(`${baseUrls[0]}/posts/${post}/likes`, params('GET /posts/{id}/likes', { headers: { Accept: 'application/json' } }));
    if (answer.status !== 200) throw new Error(`GET /posts/${post}/likes was answered ${answer.status} ${answer.error}`);
    found[post] = read(answer).version;
  }
  return found;
}

/** The posts' versions when they have come to rest: two equal readings, half a second apart. */
export function finals(posts) {
  for (let before = states(posts), tries = 0; tries < 60; tries++) {
    sleep(0.5);
    const now = states(posts);
    if (posts.every((post) => before[post] === now[post])) return now;
    before = now;
  }
  throw new Error('the posts do not come to rest: does somebody else like them?');
}

/** Books how a like ended: `ms` to its answer; a time-out or a reset may have been counted, so it is unknown. */
export function book(ok, unknown, ms, tags) {
  likesOk.add(ok ? 1 : 0, tags);
  likesUnknown.add(unknown ? 1 : 0, tags);
  if (ok) likeDuration.add(ms, tags);
}

/** One like by POST. */
export function post(id, tags = {}) {
  const url = baseUrls[(__VU - 1) % baseUrls.length];
  const answer = http.post(`${url}/posts/${id}/likes`, null, params('POST /posts/{id}/likes', { timeout: '5s', tags }));
  book(answer.status === 200, answer.status === 0, answer.timings.duration, tags);
  check(answer, { 'the like was counted': (a) => a.status === 200 && read(a).version > 0 }, tags);
}

/** For teardown(): by how much the versions rose. The summary holds it against the likes. */
export function account(initial) {
  const posts = Object.keys(initial);
  const now = finals(posts);
  versions.add(posts.reduce((sum, id) => sum + now[id] - initial[id], 0));
}

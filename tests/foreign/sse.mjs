// npm's EventSource and @microsoft/fetch-event-source against a pod: what each sees of five likes. Run by .ci/foreign.
import { EventSource } from 'eventsource';
import assert from 'node:assert/strict';

// fetch-event-source is written for browsers.
globalThis.window = globalThis;
globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} };
const { fetchEventSource } = await import('@microsoft/fetch-event-source');

const [base] = process.argv.slice(2);
const json = { 'content-type': 'application/json' };
const create = async () =>
  (await (await fetch(`${base}/posts`, { method: 'POST', headers: json, body: '{"title":"t"}' })).json()).id;
const like = (post) => fetch(`${base}/posts/${post}/likes`, { method: 'POST' });

async function see(name, open) {
  const post = await create();
  const seen = [];
  let wake = () => {};
  const close = open(`${base}/posts/${post}/likes`, (event) => {
    // Blocks without data (retry, comments) are events to some clients.
    if (event.data) seen.push([event.lastEventId ?? event.id, JSON.parse(event.data).version]);
    wake();
  });
  const until = async (count) => {
    const end = Date.now() + 10_000;
    while (seen.length < count && Date.now() < end) {
      await new Promise((yes) => { wake = yes; setTimeout(yes, 100); });
    }
  };
  for (let n = 1; n <= 6; n++) {
    await until(n);
    if (n < 6) await like(post);
  }
  close();
  assert.deepEqual(seen.map(([, version]) => version), [0, 1, 2, 3, 4, 5]);
  const epoch = seen[0][0].split('.')[0];
  assert.deepEqual(seen.map(([id]) => id), [0, 1, 2, 3, 4, 5].map((version) => `${epoch}.${version}`));
  console.log(`${name}: ok: a snapshot and five likes, each with its id`);
}

let failures = 0;
for (const [name, open] of [
  ['eventsource', (url, take) => {
    const source = new EventSource(url);
    source.onmessage = take;
    return () => source.close();
  }],
  ['fetch-event-source', (url, take) => {
    const controller = new AbortController();
    fetchEventSource(url, { signal: controller.signal, onmessage: take, openWhenHidden: true }).catch(() => {});
    return () => controller.abort();
  }],
]) {
  try {
    await see(name, open);
  } catch (error) {
    failures += 1;
    console.log(`${name}: FAILED: ${error.message}`);
  }
}
process.exit(failures ? 1 : 0);

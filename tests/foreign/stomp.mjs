// @stomp/stompjs against a pod of the conformance mode: what the commonest browser client sees. Run by .ci/foreign.
import { Client, Versions } from '@stomp/stompjs';
import { WebSocket } from 'ws';
import assert from 'node:assert/strict';

const [base] = process.argv.slice(2); // http://127.0.0.1:port
const url = base.replace('http', 'ws') + '/stomp';
const patience = 10_000;
const within = (promise, what) =>
  Promise.race([promise, new Promise((_, no) => setTimeout(() => no(new Error(`not in time: ${what}`)), patience))]);

async function connected(options = {}) {
  const client = new Client({
    webSocketFactory: () => new WebSocket(url, ['v12.stomp', 'v11.stomp', 'v10.stomp']),
    reconnectDelay: 0, heartbeatIncoming: 1000, heartbeatOutgoing: 1000, ...options,
  });
  await within(new Promise((yes, no) => {
    client.onConnect = yes;
    client.onStompError = (frame) => no(new Error(frame.headers.message));
    client.onWebSocketClose = (event) => no(new Error(`closed ${event.code}`));
    client.activate();
  }), 'CONNECTED');
  return client;
}

const receipt = (client, send) => within(new Promise((yes) => {
  const id = `r${Math.random()}`;
  client.watchForReceipt(id, yes);
  send({ receipt: id });
}), 'RECEIPT');

function queue() {
  const got = [], waiting = [];
  return {
    push: (m) => (waiting.length ? waiting.shift()(m) : got.push(m)),
    next: () => within(got.length ? got.shift() : new Promise((yes) => waiting.push(yes)), 'MESSAGE'),
    empty: () => got.length === 0,
  };
}

const cases = {
  async 'each version is agreed on'() {
    for (const version of [Versions.V1_0, Versions.V1_1, Versions.V1_2]) {
      const client = await connected({ stompVersions: new Versions([version]) });
      assert.equal(client.connectedVersion, version);
      await client.deactivate();
    }
  },
  async 'text, special header values and binary bodies come back'() {
    const client = await connected({ connectHeaders: { login: 'guest', passcode: 'guest', host: '/' } });
    const box = queue();
    await receipt(client, (headers) => client.subscribe('/topic/a.b', box.push, headers));
    // (It escapes values, but not names.)
    client.publish({ destination: '/topic/a.b', body: 'grüße', headers: { 'x-name': 'c:\\d\ne' } });
    const text = await box.next();
    assert.equal(text.body, 'grüße');
    assert.equal(text.headers['x-name'], 'c:\\d\ne');
    const binaryBody = new Uint8Array([0, 255, 254, 10, 0]);
    client.publish({ destination: '/topic/a.b', binaryBody, headers: { 'content-type': 'application/octet-stream' } });
    assert.deepEqual([...(await box.next()).binaryBody], [...binaryBody]);
    const large = 'x'.repeat(1 << 20);
    client.publish({ destination: '/topic/a.b', body: large });
    assert.equal((await box.next()).body.length, large.length);
    await client.deactivate();
  },
  async 'frames split into chunks of 1000 bytes are joined'() {
    const client = await connected({ splitLargeFrames: true, maxWebSocketChunkSize: 1000 });
    const box = queue();
    client.subscribe('/queue/c', box.push);
    client.publish({ destination: '/queue/c', body: 'y'.repeat(50_000) });
    assert.equal((await box.next()).body.length, 50_000);
    await client.deactivate();
  },
  async 'transactions are all or nothing'() {
    const client = await connected();
    const box = queue();
    client.subscribe('/queue/t', box.push);
    const one = client.begin();
    client.publish({ destination: '/queue/t', body: '1', headers: { transaction: one.id } });
    one.abort();
    const two = client.begin();
    client.publish({ destination: '/queue/t', body: '2', headers: { transaction: two.id } });
    two.commit();
    assert.equal((await box.next()).body, '2');
    assert.ok(box.empty());
    await client.deactivate();
  },
  async 'messages are acknowledged in each mode'() {
    const client = await connected();
    for (const ack of ['client', 'client-individual']) {
      const box = queue();
      const subscription = client.subscribe('/queue/k', box.push, { ack });
      client.publish({ destination: '/queue/k', body: 'a' });
      const message = await box.next();
      await receipt(client, (headers) => message.ack(headers));
      client.publish({ destination: '/queue/k', body: 'b' });
      (await box.next()).nack();
      await receipt(client, (headers) => subscription.unsubscribe(headers));
    }
    await client.deactivate();
  },
  async 'an unknown destination is an ERROR and the end'() {
    const client = await connected();
    const error = within(new Promise((yes) => { client.onStompError = yes; }), 'ERROR');
    const end = within(new Promise((yes) => { client.onWebSocketClose = yes; }), 'the end');
    client.subscribe('/nothing', () => {});
    assert.equal((await error).headers.message, 'no such destination');
    assert.equal((await end).code, 1002);
  },
  async 'heart-beats keep a silent session open'() {
    const client = await connected();
    let closed = false;
    client.onWebSocketClose = () => { closed = true; };
    await new Promise((yes) => setTimeout(yes, 5000));
    assert.ok(!closed && client.connected);
    await client.deactivate();
  },
  async 'a like comes back as the new state'() {
    const post = (await (await fetch(`${base}/posts`, {
      method: 'POST', headers: { 'content-type': 'application/json' }, body: '{"title":"t"}',
    })).json()).id;
    const client = await connected();
    const box = queue();
    client.subscribe(`/topic/posts.${post}.likes`, box.push);
    assert.equal(JSON.parse((await box.next()).body).snapshot, true);
    await receipt(client, (headers) => client.publish({ destination: `/app/posts.${post}.like`, headers }));
    const event = JSON.parse((await box.next()).body);
    assert.deepEqual([event.postId, event.likes, event.version], [post, 1, 1]);
    await client.deactivate();
  },
};

let failures = 0;
for (const [name, run] of Object.entries(cases)) {
  try {
    await run();
    console.log(`stompjs: ok: ${name}`);
  } catch (error) {
    failures += 1;
    console.log(`stompjs: FAILED: ${name}: ${error.message}`);
  }
}
process.exit(failures ? 1 : 0);

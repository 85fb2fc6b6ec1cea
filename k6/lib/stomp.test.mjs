// The codec alone: `node --test k6/lib/`. What the pods say to it is shown by k6/try.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { HEARTBEAT, decode, encode } from './stomp.js';

test('a frame survives', () => {
  const headers = { destination: '/topic/posts.7.likes', odd: 'a:b\\c\nd\re' };
  assert.deepEqual(decode(encode('SEND', headers, '{"likes":1}')), [{ command: 'SEND', headers, body: '{"likes":1}' }]);
  assert.equal(encode('SEND', { odd: 'a:b' }), 'SEND\nodd:a\\cb\n\n\0');
});

test('CONNECT and CONNECTED know no escapes', () => {
  assert.equal(encode('CONNECT', { host: 'a:1' }), 'CONNECT\nhost:a:1\n\n\0');
  assert.deepEqual(decode('CONNECTED\nserver:a\\b\n\n\0')[0].headers, { server: 'a\\b' });
});

test('several frames, heart-beats between them, either line end', () => {
  const message = `${HEARTBEAT}RECEIPT\r\nreceipt-id:1\r\n\r\n\0\n\nMESSAGE\ncontent-length:4\n\na\0\0b\0`;
  assert.deepEqual(decode(message).map((f) => [f.command, f.body]), [['RECEIPT', ''], ['MESSAGE', 'a\0\0b']]);
  assert.deepEqual(decode(HEARTBEAT), []);
});

test('content-length counts bytes', () => {
  assert.equal(decode('MESSAGE\ncontent-length:9\n\nä€😀\0')[0].body, 'ä€😀');
  assert.throws(() => decode('MESSAGE\ncontent-length:1\n\nä\0'), /content-length/);
});

test('the first of repeated headers counts', () => {
  assert.deepEqual(decode('MESSAGE\na:1\na:2\n\n\0')[0].headers, { a: '1' });
});

test('what is no frame is refused', () => {
  for (const bad of ['MESSAGE', 'MESSAGE\n\n', 'MESSAGE\na\n\n\0', 'MESSAGE\na:\\t\n\n\0', 'MESSAGE\na:\\', 'MESSAGE\ncontent-length:9\n\nx\0', 'MESSAGE\ncontent-length:1\n\nxy\0'])
    assert.throws(() => decode(bad), undefined, JSON.stringify(bad));
});

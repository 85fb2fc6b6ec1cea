// STOMP 1.2 frames for a stock k6 (`k6/websockets`): text in, frames out. No socket, no k6: node runs it as well.

const ESCAPES = { '\\': '\\\\', '\r': '\\r', '\n': '\\n', ':': '\\c' };
const UNESCAPES = { r: '\r', n: '\n', c: ':', '\\': '\\' };

const escape = (value) => String(value).replace(/[\\\r\n:]/g, (c) => ESCAPES[c]);
const unescape = (value) => value.replace(/\\(.?)/gs, (_, c) => {
  if (!(c in UNESCAPES)) throw new Error(`not a STOMP escape: \\${c}`);
  return UNESCAPES[c];
});

/** A frame as text; `body` is text without NUL. */
export function encode(command, headers = {}, body = '') {
  const plain = command === 'CONNECT' || command === 'CONNECTED'; // 1.0 knew no escapes
  const lines = Object.entries(headers).map(([name, value]) => (plain ? `${name}:${value}` : `${escape(name)}:${escape(value)}`));
  return `${[command, ...lines].join('\n')}\n\n${body}\0`;
}

/** A heart-beat. */
export const HEARTBEAT = '\n';

/** Length of text in UTF-8: `content-length` counts bytes, JavaScript UTF-16 units. */
function bytes(body) {
  let sum = 0;
  for (const c of body) {
    const code = c.codePointAt(0);
    sum += code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
  }
  return sum;
}

/** The end of a body of `length` bytes that begins at `from`, as an index. */
function endOf(message, from, length) {
  let at = from;
  for (let left = length; left > 0; ) {
    const c = String.fromCodePoint(message.codePointAt(at) ?? 0);
    left -= bytes(c);
    at += c.length;
    if (left < 0 || at > message.length) throw new Error('not a STOMP frame: content-length ends within a character or beyond the message');
  }
  return at;
}

/** The frames in one WebSocket message: {command, headers, body}. A heart-beat is no frame. Throws at what is no frame. */
export function decode(message) {
  const frames = [];
  for (let at = 0; ; ) {
    while (message[at] === '\n' || message[at] === '\r') at++;
    if (at >= message.length) return frames;
    const [, head] = /^([^\0]*?)\r?\n\r?\n/.exec(message.slice(at)) || [];
    if (head === undefined) throw new Error('not a STOMP frame: its headers do not end');
    const [command, ...lines] = head.split(/\r?\n/);
    const headers = {};
    for (const line of lines) {
      const colon = line.indexOf(':');
      if (colon < 0) throw new Error(`not a STOMP header: ${line}`);
      const plain = command === 'CONNECTED';
      const name = plain ? line.slice(0, colon) : unescape(line.slice(0, colon));
      if (!(name in headers)) headers[name] = plain ? line.slice(colon + 1) : unescape(line.slice(colon + 1)); // the first counts
    }
    const from = at + /^[^\0]*?\r?\n\r?\n/.exec(message.slice(at))[0].length;
    const end = 'content-length' in headers ? endOf(message, from, Number(headers['content-length'])) : message.indexOf('\0', from);
    if (end < 0 || message[end] !== '\0') throw new Error('not a STOMP frame: no NUL where its body ends');
    frames.push({ command, headers, body: message.slice(from, end) });
    at = end + 1;
  }
}

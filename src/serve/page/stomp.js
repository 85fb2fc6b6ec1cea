// The part of STOMP 1.2 that this page needs: frames in and out of text. Bodies here are JSON, which holds no NUL,
// so a frame ends at the first one and content-length need not be counted.

const ESCAPES = { "\r": "\\r", "\n": "\\n", ":": "\\c", "\\": "\\\\" };
const ESCAPED = { "\\r": "\r", "\\n": "\n", "\\c": ":", "\\\\": "\\" };
const escape = text => String(text).replace(/[\r\n:\\]/g, found => ESCAPES[found]);
const unescape = text => text.replace(/\\[rnc\\]/g, found => ESCAPED[found]);

/** A frame as text. In CONNECT nothing is escaped, as the specification has it. */
export function frame(command, headers = {}, body = "") {
  const plain = command === "CONNECT";
  const lines = Object.entries(headers).map(([name, value]) => plain ? `${name}:${value}\n` : `${escape(name)}:${escape(value)}\n`);
  return `${command}\n${lines.join("")}\n${body}\0`;
}

/** The frames of one WebSocket message; a heart-beat has none. Of a repeated header the first counts. */
export function frames(text) {
  const found = [];
  for (const piece of text.split("\0")) {
    const start = piece.replace(/^[\r\n]+/, "");
    if (!start) continue;
    const [head, ...rest] = start.replace(/\r\n/g, "\n").split("\n\n");
    const [command, ...lines] = head.split("\n"), headers = {};
    for (const line of lines) {
      const colon = line.indexOf(":"), name = unescape(line.slice(0, colon));
      if (!(name in headers)) headers[name] = unescape(line.slice(colon + 1));
    }
    found.push({ command, headers, body: rest.join("\n\n") });
  }
  return found;
}

/** What both sides agreed on in milliseconds: how often we send, how often we hear. Zero: never. */
export function heartBeat(ours, theirs) {
  const [sx, sy] = (theirs || "0,0").split(",").map(Number);
  return { send: ours && sy ? Math.max(ours, sy) : 0, hear: ours && sx ? Math.max(ours, sx) : 0 };
}

// An echo server on Node.js: a tight loop over each read, and one write for its replies.
'use strict';

const net = require('net');
const zlib = require('zlib');

const HEADER = 8;
const MAX_PACKET = 29000;
const BACKLOG = 4096;

const table = new Uint32Array(256).map((_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? (n >>> 1) ^ 0xedb88320 : n >>> 1;
  return n;
});

// What Node before 20.15 has to do.
function crcByTable(data) {
  let crc = -1;
  for (let i = 0; i < data.length; i++) crc = (crc >>> 8) ^ table[(crc ^ data[i]) & 255];
  return ~crc >>> 0;
}

const crc32 = zlib.crc32 || crcByTable;

function serve(connection) {
  let rest = null;
  connection.on('error', () => {}); // the client has left
  connection.on('data', (data) => {
    if (rest) data = Buffer.concat([rest, data]);
    const size = data.length;
    const replies = Buffer.allocUnsafe(size); // an echo is as long as its request
    let offset = 0;
    let filled = 0;
    while (size - offset >= HEADER) {
      const length = data.readUInt16BE(offset);
      if (length < HEADER || length > MAX_PACKET) {
        connection.destroy();
        return;
      }
      if (size - offset < length) break;
      const body = data.subarray(offset + HEADER, offset + length);
      if (crc32(body) === data.readUInt32BE(offset + 4)) {
        replies.writeUInt16BE(HEADER + body.length, filled);
        replies.writeUInt16BE(data.readUInt16BE(offset + 2), filled + 2);
        replies.writeUInt32BE(crc32(body), filled + 4);
        body.copy(replies, filled + HEADER);
        filled += HEADER + body.length;
      }
      offset += length;
    }
    // a copy: a slice would keep the whole read in memory
    rest = offset < size ? Buffer.from(data.subarray(offset)) : null;
    if (filled) connection.write(replies.subarray(0, filled));
  });
}

const server = net.createServer({ noDelay: true }, serve);
server.listen({ host: '127.0.0.1', port: Number(process.argv[2]), backlog: BACKLOG }, () => {
  console.log('ready');
});

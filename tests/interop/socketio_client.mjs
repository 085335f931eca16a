// Drives the npm package socket.io-client: every client begins with long polling and upgrades to WebSocket.
// Arguments: URL, number of clients, "cookie" or "header". Prints what happened as JSON.
import { io } from "socket.io-client";

const [url, count, sticky] = process.argv.slice(2);

function one(number) {
  return new Promise((resolve) => {
    const socket = io(url, {
      forceNew: true,
      reconnection: false,
      withCredentials: sticky === "cookie",
      extraHeaders: sticky === "header" ? { "X-Session": `session-${number}` } : {},
      transports: ["polling", "websocket"],
    });
    const fail = (error) => {
      socket.disconnect();
      resolve({ number, ok: false, error: String(error) });
    };
    const timer = setTimeout(() => fail("timeout"), 20000);
    socket.on("connect_error", fail);
    const upgraded = new Promise((done) => socket.io.engine.on("upgrade", done));
    socket.on("connect", async () => {
      const transport = await upgraded;
      const server = await socket.emitWithAck("where");
      const echoed = [];
      for (let turn = 0; turn < 5; turn += 1) echoed.push(await socket.emitWithAck("echo", `${number}:${turn}`));
      clearTimeout(timer);
      const ok = transport.name === "websocket" && echoed.every((text, turn) => text === `${number}:${turn}`);
      socket.disconnect();
      resolve({ number, ok, server, transport: transport.name });
    });
  });
}

const results = await Promise.all(Array.from({ length: Number(count) }, (_, number) => one(number)));
console.log(JSON.stringify({ results }));

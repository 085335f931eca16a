// Drives the npm package ws. Argument: the WebSocket URL. Prints what it saw as JSON.
import WebSocket from "ws";

const [url] = process.argv.slice(2);
const sizes = [0, 1, 125, 126, 65535, 65536, 500000];

function one(number) {
  return new Promise((resolve, reject) => {
    const socket = new WebSocket(url, ["chat"]);
    const seen = { protocol: "", extensions: "", echoed: 0, pongs: 0 };
    const send = () => socket.send(Buffer.alloc(sizes[seen.echoed], number), { binary: true });
    socket.on("open", () => {
      seen.protocol = socket.protocol;
      seen.extensions = socket.extensions;
      socket.ping("are you there");
    });
    socket.on("pong", (data) => {
      if (data.toString() !== "are you there") reject(new Error("wrong pong"));
      seen.pongs += 1;
      send();
    });
    socket.on("message", (data, isBinary) => {
      if (!isBinary || data.length !== sizes[seen.echoed] || data.some((byte) => byte !== number)) {
        reject(new Error(`wrong echo of ${sizes[seen.echoed]} bytes`));
      }
      seen.echoed += 1;
      if (seen.echoed < sizes.length) send();
      else socket.close(3001, "done");
    });
    socket.on("close", (code) => resolve({ ...seen, code }));
    socket.on("error", reject);
  });
}

const results = await Promise.all(Array.from({ length: 20 }, (_, number) => one(number + 1)));
console.log(JSON.stringify({ results }));

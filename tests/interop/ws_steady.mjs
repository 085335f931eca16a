// WebSockets of the npm package ws that stay: each sends numbered messages to an echo server and checks what comes
// back, until the standard input ends. Arguments: the URL, how many. Prints "open", and at the end what it saw.
import WebSocket from "ws";

const [url, count] = process.argv.slice(2);
const sizes = [32, 1024, 20000, 200000];
let stopping = false;

function body(number, sequence) {
  const text = `${number}:${sequence}:`;
  return text + "abcdefghij".repeat(sizes[sequence % sizes.length] / 10);
}

function one(number, opened) {
  return new Promise((resolve) => {
    const seen = { sent: 0, echoed: 0, wrong: 0, code: 0 };
    const socket = new WebSocket(url, { perMessageDeflate: number % 2 === 0 });
    const send = () => {
      if (stopping) socket.close(1000);
      else socket.send(body(number, seen.sent++));
    };
    socket.on("open", () => {
      opened();
      send();
    });
    socket.on("message", (data) => {
      if (data.toString() === body(number, seen.echoed)) seen.echoed += 1;
      else seen.wrong += 1;
      setTimeout(send, 30);
    });
    socket.on("close", (code) => resolve({ ...seen, code }));
    socket.on("error", () => (seen.wrong += 1));
  });
}

let open = 0;
const opened = () => {
  open += 1;
  if (open === Number(count)) console.log("open");
};
process.stdin.on("end", () => (stopping = true)).resume();
const results = await Promise.all(Array.from({ length: Number(count) }, (_, number) => one(number, opened)));
console.log(JSON.stringify({ results }));

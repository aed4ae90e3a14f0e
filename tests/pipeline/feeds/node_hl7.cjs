// A sender and a receiver of HL7 v2 of other authors (npm: node-hl7-client, node-hl7-server), for test_hl7_peers.py.
//
//   node node_hl7.cjs MODULES receive PORT    prints "listening", then control id and patient of each message
//   node node_hl7.cjs MODULES send PORT FILE  prints code and control id of the acknowledgement

const { createRequire } = require("module");
const { readFileSync } = require("fs");

const [modules, what, port, file] = process.argv.slice(2);
const peer = createRequire(`${modules}/`);

if (what === "receive") {
  const { Server } = peer("node-hl7-server");
  const server = new Server({ bindAddress: "127.0.0.1" });
  const inbound = server.createInbound({ port: Number(port) }, async (request, response) => {
    const message = request.getMessage();
    console.log(`${message.get("MSH.10")} ${message.get("PID.3")}`);
    await response.sendResponse("AA");
  });
  inbound.on("listen", () => console.log("listening"));
} else {
  const { Client, Message } = peer("node-hl7-client");
  const connection = new Client({ host: "127.0.0.1" }).createConnection({ port: Number(port) }, async (response) => {
    const acknowledgement = response.getMessage();
    console.log(`${acknowledgement.get("MSA.1")} ${acknowledgement.get("MSA.2")}`);
    process.exit(0);
  });
  connection.sendMessage(new Message({ text: readFileSync(file, "utf8") }));
}

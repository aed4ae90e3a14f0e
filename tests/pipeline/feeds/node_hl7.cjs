// A sender and a receiver of HL7 v2 of other authors (npm: node-hl7-client, node-hl7-server), for test_hl7_peers.py.
//
//   node node_hl7.cjs MODULES receive        prints its port, then the control id of each message that it accepts
//   node node_hl7.cjs MODULES send PORT FILE  prints code and control id of the acknowledgement

const { createRequire } = require("module");
const { createServer } = require("net");
const { readFileSync } = require("fs");

const [modules, what, port, file] = process.argv.slice(2);
const peer = createRequire(`${modules}/`);

/** Calls `use` with a port that nothing uses. */
function withFreePort(use) {
  const probe = createServer().listen(0, "127.0.0.1", () => {
    const { port: free } = probe.address();
    probe.close(() => use(free));
  });
}

if (what === "receive") {
  const { Server } = peer("node-hl7-server");
  withFreePort((free) => {
    const inbound = new Server({ bindAddress: "127.0.0.1" }).createInbound({ port: free }, async (request, response) => {
      const message = request.getMessage();
      console.log(`${message.get("MSH.10")} ${message.get("PID.3")}`);
      await response.sendResponse("AA");
    });
    inbound.on("listen", () => console.log(free));
  });
} else {
  const { Client, Message } = peer("node-hl7-client");
  const connection = new Client({ host: "127.0.0.1" }).createConnection({ port: Number(port) }, async (response) => {
    const acknowledgement = response.getMessage();
    console.log(`${acknowledgement.get("MSA.1")} ${acknowledgement.get("MSA.2")}`);
    process.exit(0);
  });
  connection.sendMessage(new Message({ text: readFileSync(file, "utf8") }));
}

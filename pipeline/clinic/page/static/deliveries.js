// What was delivered of an answer to other systems, and what failed: with what to do, and a button to send it again.

import { ask } from "./api.js";
import { briefly, byId, element, say } from "./dom.js";
import { SYSTEMS } from "./words.js";

/** Whether a delivery failed, or waits after a failed attempt. */
export const isProblem = ({ state, code }) => state === "failed" || (state === "waiting" && Boolean(code));

/** Fetches all open problems: a map from the id of an answer to its deliveries that failed or are retried. */
export async function openProblems() {
  const { deliveries } = await ask("deliveries");
  const found = new Map();
  for (const each of deliveries) found.set(each.answer_id, [...(found.get(each.answer_id) ?? []), each]);
  return found;
}

/** One short text for the worklist, "" without a problem. */
export const briefProblems = (problems = []) => problems.map(({ target, code }) => `${SYSTEMS[target]}: not delivered (${code})`).join(", ");

/** Shows the deliveries of an answer below its head. The state of the PACS is shown there already. */
export function showDeliveries({ deliveries, id }, { maySend, changed }) {
  const lines = deliveries.filter((each) => each.state !== "dropped" && (each.target !== "pacs" || isProblem(each)));
  byId("deliveries").replaceChildren(...lines.map((each) => element("li", {}, ...line(each), ...again(id, each, maySend, changed))));
}

function line(delivery) {
  const { target, state, attempts, code, remedy, sent_at: at } = delivery;
  const name = SYSTEMS[target];
  if (state === "sent") return [`${name}: sent `, briefly(at)];
  if (!isProblem(delivery)) return [`${name}: being sent`];
  const tries = `${attempts} ${attempts === 1 ? "try" : "tries"}`;
  const what = state === "failed" ? "not accepted" : "not delivered yet, it is tried again";
  return [`${name}: ${what} (${tries}, ${code}). ${remedy ?? ""} `];
}

function again(id, delivery, maySend, changed) {
  if (!maySend || !isProblem(delivery)) return [];
  const button = element("button", { type: "button", ariaLabel: `Send to the ${SYSTEMS[delivery.target]} again` }, "Send again");
  button.addEventListener("click", async () => {
    button.disabled = true;
    say(byId("send-refused"), "");
    try {
      await ask(`answers/${id}/send?target=${delivery.target}`, { method: "POST" });
    } catch (error) {
      say(byId("send-refused"), error.text ?? String(error));
    }
    await changed(id);
  });
  return [button];
}

// What the sections of the administrator's page share: messages, questions before a change, and buttons in tables.

import { byId, element, moment, say } from "./dom.js";

const SEEN_MS = 10000; // how long a message stays

let fading = null;

export function announce(text) {
  clearTimeout(fading);
  say(byId("refused"), "");
  byId("live").textContent = text;
  fading = setTimeout(() => (byId("live").textContent = ""), SEEN_MS);
}

export function fail(error) {
  say(byId("refused"), error.text ?? String(error));
}

/** Asks before a change; resolves to whether the person agrees. `does`: the text of the button. */
export function confirmed(title, says, does) {
  const dialog = byId("confirm");
  say(byId("confirm-title"), title);
  say(byId("confirm-says"), says);
  say(byId("confirm-yes"), does);
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) =>
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }),
  );
}

/** Creates a button of a table's row. `about`: what it acts on, for screen readers, because all rows have the same. */
export function rowButton(text, about, act) {
  const button = element("button", { type: "button", ariaLabel: `${text}: ${about}` }, text);
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      await act();
    } catch (error) {
      fail(error);
    } finally {
      button.disabled = false;
    }
  });
  return button;
}

export const does = (...buttons) => element("div", { className: "does" }, ...buttons);

export const when = (iso) => (iso ? moment(iso) : "–");

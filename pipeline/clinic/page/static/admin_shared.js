// What the sections of the administrator's page share: messages, questions before a change, and buttons in tables.

import { byId, element, moment, say } from "./dom.js";

const SEEN_MS = 10000; // how long a message stays

let fading = null;

export function announce(text) {
  clearTimeout(fading);
  clearFailure();
  byId("live").textContent = text;
  fading = setTimeout(() => (byId("live").textContent = ""), SEEN_MS);
}

export function fail(error) {
  say(byId("refused"), error.text ?? String(error));
}

export const clearFailure = () => say(byId("refused"), "");

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
  button.dataset.about = about;
  button.addEventListener("click", async () => {
    const found = button.closest(".scrolls");
    button.disabled = true;
    clearFailure();
    try {
      await act();
    } catch (error) {
      fail(error);
    } finally {
      button.disabled = false;
      returnFocus(button, found);
    }
  });
  return button;
}

/** After an action, whose button was disabled or drawn again: focuses it, else what its row has instead, else the table. */
function returnFocus(button, found) {
  const { activeElement, body } = document;
  if (activeElement && activeElement !== body && activeElement.checkVisibility()) return; // the person went on
  const { about } = button.dataset;
  const ofRow = [button, ...found.querySelectorAll("button")].filter((each) => each.isConnected && each.dataset.about === about);
  (ofRow.find((each) => each.textContent === button.textContent) ?? ofRow[0] ?? found).focus();
}

/** Puts a table into a box in which it scrolls sideways on a narrow screen, also with the keyboard. */
export const scrolling = (made) =>
  element("div", { className: "scrolls", tabIndex: 0, role: "region", ariaLabel: made.caption.textContent }, made);

export const does = (...buttons) => element("div", { className: "does" }, ...buttons);

export const when = (iso) => (iso ? moment(iso) : "–");

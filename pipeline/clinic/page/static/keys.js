// Keyboard shortcuts. They can be switched off, for users of speech input or other assistive tools.

import { byId, describe, element } from "./dom.js";
import { KEYS } from "./words.js";

const KEPT = "fedthorax-single-keys"; // a preference; nothing else is stored in the browser

/** `actions`: the function of each key. */
export function startKeys(actions) {
  const single = byId("single-keys");
  single.checked = localStorage.getItem(KEPT) !== "off";
  single.addEventListener("change", () => localStorage.setItem(KEPT, single.checked ? "on" : "off"));
  describe(
    byId("keys-list"),
    KEYS.map(([keys, does]) => [element("kbd", {}, keys), does]),
  );
  byId("show-keys").addEventListener("click", showKeys);
  addEventListener("keydown", (event) => {
    const action = actions[event.key];
    if (!action || !single.checked || isTyping(event) || byId("desk").hidden) return;
    event.preventDefault();
    action();
  });
}

export function showKeys() {
  byId("keys").showModal();
}

/** Whether the key belongs to a field, a dialog or the browser. */
function isTyping({ target, ctrlKey, altKey, metaKey }) {
  const field = target.closest?.("input:not([type=range], [type=radio], [type=checkbox]), textarea, select");
  return Boolean(field || document.querySelector("dialog[open]") || ctrlKey || altKey || metaKey);
}

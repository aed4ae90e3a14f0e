// Signing in with the hospital's account: the browser goes to the provider, and comes back with a code in its address.

import { ask } from "./api.js";
import { byId, say, show } from "./dom.js";

const PLACE = /^#\/(scans\/[0-9a-f]{32})?$/; // what the page shows again after the sign-in

/** `refused`: is called with a text if the sign-in cannot be started. */
export function startSignIn(refused) {
  byId("sso-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    say(byId("sign-in-refused"), "");
    const to = PLACE.test(location.hash) ? location.hash : "";
    try {
      location.assign((await ask("sign-in", { method: "POST", json: { to } })).url);
    } catch (error) {
      refused(error.text ?? String(error));
    }
  });
}

/** Shows the button if the clinic has set up the hospital's accounts. */
export async function offerSignIn() {
  const { provider, tokens } = await ask("sign-in").catch(() => ({ provider: false, tokens: true }));
  show(byId("sso-form"), provider);
  show(byId("sso-only"), provider && !tokens);
}

/** Ends a sign-in if the browser comes from the provider; returns the session, or null if it does not. */
export async function endSignIn() {
  const given = new URLSearchParams(location.search);
  if (!given.has("state")) return null;
  history.replaceState(null, "", location.pathname); // a code must not stay in the history
  const json = Object.fromEntries(["state", "code", "iss", "error"].map((name) => [name, given.get(name) ?? ""]));
  const session = await ask("sign-in/finish", { method: "POST", json });
  if (session.to) history.replaceState(null, "", location.pathname + session.to);
  return session;
}

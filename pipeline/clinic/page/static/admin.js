// The administrator's page: who may see it, which section is shown, and what all sections share.

import { openModels } from "./admin_models.js";
import { openReaders, openRecords, openRetention, startRecords } from "./admin_records.js";
import { fail } from "./admin_shared.js";
import { openSystems } from "./admin_systems.js";
import { openUsers, startUsers } from "./admin_users.js";
import { ask, onSignedOut } from "./api.js";
import { byId, outside, say, show } from "./dom.js";

const SECTIONS = {
  users: openUsers,
  models: openModels,
  readers: openReaders,
  systems: openSystems,
  records: openRecords,
  retention: openRetention,
};

let signOutUrl = "";

async function begin() {
  try {
    const session = await ask("session");
    byId("who-asks").replaceChildren(Object.assign(outside(session.name), { title: session.name })); // a long name is shortened
    signOutUrl = session.sign_out_url;
    show(byId("sign-out"), true);
    if (session.role !== "admin") {
      say(byId("closed"), "This page needs the role admin.");
      return;
    }
    show(byId("desk"), true);
    await follow();
  } catch (error) {
    close(error.status === 401 ? "" : error.text);
  }
}

function close(text = "") {
  for (const dialog of document.querySelectorAll("dialog[open]")) dialog.close();
  for (const found of document.querySelectorAll("[id$=-found]")) found.replaceChildren();
  byId("who-asks").replaceChildren();
  for (const id of ["desk", "sign-out"]) show(byId(id), false);
  say(byId("closed"), text || "Sign in on the worklist first, as an administrator.");
}

/** Shows the section that the address names, with what the service says now. */
async function follow() {
  const name = location.hash.slice(1) in SECTIONS ? location.hash.slice(1) : "users";
  for (const link of byId("sections").querySelectorAll("a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  for (const each of Object.keys(SECTIONS)) show(byId(each), each === name);
  say(byId("refused"), "");
  await SECTIONS[name]().catch(fail);
}

onSignedOut(() => close());
startUsers();
startRecords();
byId("sign-out").addEventListener("click", async () => {
  await ask("session", { method: "DELETE" }).catch(() => {});
  close();
  if (signOutUrl) location.assign(signOutUrl);
});
addEventListener("hashchange", () => byId("desk").hidden || location.hash === "#content" || follow());
begin();

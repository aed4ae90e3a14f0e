// Users: tokens of the clinic, and accounts of the hospital's provider.

import { announce, clearFailure, confirmed, does, fail, rowButton, when } from "./admin_shared.js";
import { ask } from "./api.js";
import { byId, element, outside, personName, table } from "./dom.js";

const ROLES = ["read", "score", "admin"];

export function startUsers() {
  byId("new-token").addEventListener("submit", async (event) => {
    event.preventDefault();
    const form = event.target;
    const { name, role, person, days } = Object.fromEntries(new FormData(form));
    clearFailure();
    try {
      const json = { name, role, person: person.trim(), days: days ? Number(days) : null };
      const closed = reveal(await ask("accounts", { method: "POST", json }));
      form.reset();
      await openUsers();
      await closed;
      announce("The token was created.");
    } catch (error) {
      fail(error);
    }
  });
}

export async function openUsers() {
  draw(await ask("accounts"));
}

function draw({ accounts }) {
  const headings = ["Name", "Person", "Role", "Last sign-in", "Open sessions", "Valid until", "Actions"];
  byId("users-found").replaceChildren(table("Users", headings, accounts.map(row)));
}

function row(user) {
  const name = element("span", { className: user.revoked_at ? "ended" : "" }, outside(user.name));
  if (user.is_emergency) name.append(element("span", { className: "flag" }, " emergency administrator"));
  if (user.is_own) name.append(element("span", { className: "soft" }, " you"));
  return [
    name,
    user.person ? outside(personName(user.person)) : "–",
    role(user),
    when(user.used_at),
    String(user.open_sessions),
    valid(user),
    actions(user),
  ];
}

function valid({ kind, revoked_at: revoked, ends_at: ends }) {
  if (revoked) return element("span", { className: "ended" }, "disabled ", when(revoked));
  return kind === "token" && !ends ? "no expiry" : when(ends);
}

const isFixed = (user) => user.is_own || user.is_emergency;

function role(user) {
  if (user.kind === "account" || user.revoked_at || user.once || isFixed(user)) return user.role;
  const options = ROLES.map((each) => element("option", { value: each, selected: each === user.role }, each));
  const select = element("select", { ariaLabel: `Role of ${user.name}` }, ...options);
  const set = rowButton("Set role", user.name, async () => {
    const agreed = await confirmed(`${user.name}: role ${select.value}`, "The role holds at once, in open sessions too.", "Set role");
    if (agreed) await change("role", user.name, "The role was changed.", { role: select.value });
    else select.value = user.role;
  });
  return does(select, set);
}

function actions(user) {
  if (user.is_own) return does();
  if (user.revoked_at) {
    return user.kind === "account" ? does(rowButton("Enable", user.name, () => change("enable", user.name, "The account is enabled."))) : does();
  }
  const isToken = user.kind === "token";
  const final = isToken ? "A revoked token never becomes valid again." : "The account can be enabled again.";
  return does(
    isToken && !user.once ? rowButton("Reset", user.name, () => reset(user.name)) : null,
    user.is_emergency
      ? null
      : rowButton(isToken ? "Revoke" : "Disable", user.name, async () => {
          const text = isToken ? "Revoke" : "Disable";
          if (!(await confirmed(`${text} ${user.name}`, `All its sessions end at once. ${final}`, text))) return;
          await change("disable", user.name, isToken ? "The token is revoked." : "The account is disabled.");
        }),
  );
}

async function change(what, name, told, more = {}) {
  draw(await ask(`accounts/${what}`, { method: "POST", json: { name, ...more } }));
  announce(told);
}

async function reset(name) {
  if (!(await confirmed(`Reset ${name}`, "The token of today and all its sessions end at once. The new token is shown once.", "Reset"))) return;
  const closed = reveal(await ask("accounts/reset", { method: "POST", json: { name } }));
  await openUsers();
  await closed;
  announce("The token was reset.");
}

/** Shows a token once; resolves when its dialog is closed. */
function reveal({ token }) {
  const dialog = byId("secret");
  byId("secret-token").textContent = token;
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true })).then(() => (byId("secret-token").textContent = ""));
}

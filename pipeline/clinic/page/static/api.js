// The service's API, version 1. URLs are relative, so that a reverse proxy can serve the page below a path.

const BASE = "api/v1/";

/** An error response of the service: a stable code, what happened, and what to do next. */
export class Refused extends Error {
  constructor(status, { code = "", says = "the page cannot read the service's response", remedy = "" } = {}) {
    super(says);
    Object.assign(this, { status, code, says, remedy });
  }

  get text() {
    const sentence = this.says.charAt(0).toUpperCase() + this.says.slice(1);
    return [`${sentence}.`, this.remedy, this.code && `(${this.code})`].filter(Boolean).join(" ");
  }
}

const SILENT = { says: "the service does not respond", remedy: "The page retries automatically." };

/** Calls `whenSignedOut` each time the service reports that the session is invalid. */
let signedOut = () => {};
export function onSignedOut(whenSignedOut) {
  signedOut = whenSignedOut;
}

export const address = (path) => BASE + path;

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function refused(status, text) {
  if (status === 401) signedOut();
  return new Refused(status, parsed(text));
}

/** Sends one request; `json` is sent with PUT or POST. Returns the content, null if there is none. */
export async function ask(path, { method = "GET", json } = {}) {
  const headers = json === undefined ? {} : { "Content-Type": "application/json" };
  const body = json === undefined ? undefined : JSON.stringify(json);
  let response, text;
  try {
    response = await fetch(address(path), { method, headers, body, cache: "no-store", credentials: "same-origin" });
    text = await response.text();
  } catch {
    throw new Refused(0, SILENT);
  }
  if (!response.ok) throw refused(response.status, text);
  return text ? parsed(text) : null;
}

/** Loads a file. */
export async function bytes(path) {
  let response, content;
  try {
    response = await fetch(address(path), { cache: "no-store", credentials: "same-origin" });
    content = await response.arrayBuffer();
  } catch {
    throw new Refused(0, SILENT);
  }
  if (!response.ok) throw refused(response.status, new TextDecoder().decode(content));
  return content;
}

/** Sends a form and reports its progress, 0 to 1, which fetch cannot do. */
export function upload(path, form, onProgress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", address(path));
    request.upload.addEventListener("progress", (event) => event.lengthComputable && onProgress(event.loaded / event.total));
    request.addEventListener("error", () => reject(new Refused(0, SILENT)));
    request.addEventListener("load", () => {
      if (request.status < 300) resolve(parsed(request.responseText));
      else reject(refused(request.status, request.responseText));
    });
    request.send(form);
  });
}

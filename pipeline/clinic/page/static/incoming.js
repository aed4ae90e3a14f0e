// Adding a scan: by drag and drop (files, a zip, nested folders), or with a button.

import { upload } from "./api.js";
import { byId, say, show } from "./dom.js";

/** `arrived(job)`: called when the service has accepted a scan. */
export function startIncoming(arrived) {
  const [files, folder] = [byId("files"), byId("folder")];
  byId("choose-files").addEventListener("click", () => files.click());
  byId("choose-folder").addEventListener("click", () => folder.click());
  for (const input of [files, folder]) {
    input.addEventListener("change", async () => {
      await send([...input.files], arrived);
      input.value = ""; // so that the same files can be chosen again
    });
  }
  // The whole window accepts a drop: a scan dropped beside the box must not replace the page.
  const drop = byId("drop");
  let depth = 0;
  const mark = (by) => drop.classList.toggle("over", (depth = by === 0 ? 0 : Math.max(0, depth + by)) > 0);
  addEventListener("dragenter", () => mark(1));
  addEventListener("dragleave", () => mark(-1));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", async (event) => {
    event.preventDefault();
    mark(0);
    if (!byId("desk").hidden) await send(await dropped(event.dataTransfer), arrived);
  });
}

/** Returns all files of a drop, including those in folders. */
async function dropped(transfer) {
  // Read the entries before the first await: the browser empties the list after it.
  const entries = [...transfer.items].filter(({ kind }) => kind === "file").map((item) => item.webkitGetAsEntry());
  if (entries.some((entry) => entry === null)) return [...transfer.files];
  return (await Promise.all(entries.map(filesOf))).flat();
}

async function filesOf(entry) {
  if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return found; // browsers return a hundred entries at a time
    for (const each of some) found.push(...(await filesOf(each)));
  }
}

async function send(files, arrived) {
  const refused = byId("upload-refused");
  say(refused, "");
  if (!files.length) return;
  const form = new FormData();
  for (const file of files) form.append("files", file, file.name);
  const progress = byId("sent");
  const says = byId("sending-says");
  progress.value = 0;
  say(says, files.length === 1 ? "Sending 1 file" : `Sending ${files.length} files`);
  show(byId("sending"), true);
  try {
    arrived(await upload("scans", form, (share) => (progress.value = share)));
  } catch (error) {
    say(refused, error.text ?? String(error));
  } finally {
    show(byId("sending"), false);
  }
}

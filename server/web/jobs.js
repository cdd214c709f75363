// Uploads: the files that are sent, the jobs that read them, and what became of each file.

import { get, Problem, send, upload } from "./api.js";
import { $, button, make, notice, reason, tell } from "./dom.js";
import { receipt, say } from "./messages.js";

const AWAY = [429, 502, 503, 504];
const RECENT = 86400; // seconds during which a reload shows a failed job again
const POLL_INTERVAL = 500; // ms between two requests for a job
const ORDER = ["refused", "cancelled", "waiting", "added", "changed", "unchanged"];
let base = "";
let session = null;
let writable = false;
let changed = async () => {}; // called when documents were added
let createFirstBase = async () => {}; // called when files are added to a server without a knowledge base
const panels = new Set(); // jobs that have a panel
const unfinished = new Map(); // job -> its newest state

export const reading = () => [...unfinished.values()];

export async function useJobs(name, limits, canWrite) {
  base = name;
  session = limits;
  writable = canWrite;
  $("jobs").replaceChildren();
  panels.clear();
  unfinished.clear();
  if (!base) return;
  const { jobs } = await get(`/jobs?knowledge_base=${encodeURIComponent(base)}`);
  const shown = jobs.filter((job) => job.kind !== "purge" && !panels.has(job.id));
  for (const job of shown) {
    if (job.finished !== null && job.files.some((file) => file.problem) && fresh(job)) conclude(job, panel(true));
  }
  for (const job of shown.reverse()) if (job.finished === null) follow(job, panel());
}

function panel(last = false) {
  const node = make("section", { class: "job" });
  if (last) $("jobs").append(node);
  else $("jobs").prepend(node);
  return node;
}

// Files of folders have the folder in their name if another file has the same one.
function named(files) {
  const seen = new Map();
  return files.map((file) => {
    const path = (file.path || file.webkitRelativePath || file.name).split("/");
    const name = seen.has(file.name) ? path.join(" - ") : file.name;
    seen.set(file.name, true);
    return { file: file.file || file, name };
  });
}

// `folder`: whether files of formats that can't be read are left out, since nobody chose them.
export async function add(files, { folder = false } = {}) {
  let list = [...files];
  if (!list.length || !writable) return;
  const all = list.length;
  if (folder) list = list.filter((file) => readable(file.name));
  if (all > list.length) notice(say("leftOut", all - list.length));
  if (!list.length) return;
  if (!base) await createFirstBase();
  const node = panel();
  const limit = session.largest_upload;
  const large = list.find((file) => (file.file || file).size > limit);
  const wrong = list.length > session.most_files
    ? say("tooMany", list.length, session.most_files)
    : large && say("tooLarge", large.name, limit / 1e6);
  if (wrong) return ended(node, wrong, true);
  const line = make("p", {}, say("uploading", 0));
  const bar = make("progress", { max: 1, value: 0, "aria-label": say("upload") });
  node.append(line, bar);
  try {
    const job = await upload(base, named(list), (share) => {
      line.textContent = say("uploading", Math.floor(share * 100));
      bar.value = share;
    });
    await follow(job, node);
  } catch (error) {
    ended(node, reason(error), true, { run: () => { node.remove(); add(files, { folder }); } });
  }
}

function readable(name) {
  const end = name.toLowerCase().split(".").at(-1);
  return !name.startsWith(".") && session.formats.some((format) => format.replace(/^\./, "") === end);
}

// Reads documents again, for example after a better reader was installed.
export async function reread(documents) {
  const job = await send("POST", `/knowledge-bases/${encodeURIComponent(base)}/reread`, { documents });
  follow(job, panel());
}

async function follow(job, node) {
  const current = base;
  panels.add(job.id);
  const line = make("p", {});
  const bar = make("progress", { "aria-label": say("documents") });
  const stop = button(say("cancelJob"), () =>
    send("POST", `/jobs/${job.id}/cancel`).catch((error) => notice(reason(error), { problem: true })));
  node.replaceChildren(line, bar, writable ? stop : "");
  tell(say("queued"));
  let done = -1;
  for (;;) {
    unfinished.set(job.id, job);
    line.textContent = job.state === "running"
      ? say("running", job.files_done, job.files_total, job.chunks) : say("queued");
    bar.max = Math.max(1, job.bytes_total);
    bar.value = job.bytes_done;
    if (job.finished !== null) break;
    if (job.files_done !== done) {
      done = job.files_done;
      await changed();
    }
    await new Promise((resolve) => setTimeout(resolve, POLL_INTERVAL));
    if (current !== base) return;
    try {
      job = await get(`/jobs/${job.id}`);
    } catch (error) {
      const text = reason(error);
      if (error instanceof Problem && !AWAY.includes(error.status)) { // not the server's absence
        unfinished.delete(job.id);
        return ended(node, text, true, { run: () => follow(job, node) });
      }
      line.textContent = `${text} ${say("waitingForServer")}`;
    }
  }
  unfinished.delete(job.id);
  conclude(job, node);
  await changed();
}

const dismissed = () => JSON.parse(localStorage.getItem("seen") || "[]"); // jobs that were dismissed

function fresh(job) {
  return Date.now() / 1000 - job.finished < RECENT && !dismissed().includes(job.id);
}

// "8 added, 4 refused", and the files, the refused ones first.
function conclude(job, node) {
  const counts = ORDER.map((state) => [state, job.files.filter((file) => file.state === state).length])
    .filter(([, count]) => count).sort(([a], [b]) => (a === "refused") - (b === "refused"));
  const summary = counts.map(([state, count]) => say(`count_${state}`, count)).join(say("comma"));
  const text = job.state === "failed" ? say("failed", job.error)
    : job.state === "cancelled" ? [say("cancelled"), summary].filter(Boolean).join(": ") : summary;
  const files = [...job.files].sort((a, b) => ORDER.indexOf(a.state) - ORDER.indexOf(b.state));
  ended(node, text, job.state === "failed" || counts.some(([state]) => state === "refused"), { files, id: job.id });
}

function ended(node, text, wrong, { files = [], id = "", run = null } = {}) {
  const dismiss = () => {
    node.remove();
    if (id) localStorage.setItem("seen", JSON.stringify([...dismissed(), id].slice(-200)));
  };
  node.replaceChildren(
    make("div", { class: "row" }, make("p", { class: wrong ? "problem" : "" }, text),
      make("span", { class: "gap" }), run ? button(say("again"), run) : null, button(say("dismiss"), dismiss)),
    make("ul", {}, ...files.map((file) => make("li", { class: `file ${file.state}` },
      make("span", { class: "name" }, file.name),
      make("span", { class: "state" },
        say(file.state === "cancelled" ? "cancelledFile" : file.state)),
      file.problem ? make("span", { class: "problem" }, file.problem) : null,
      file.receipt ? make("span", { class: "receipt" }, receipt(file.receipt).join(" · ")) : null,
      file.receipt ? warnings(file.receipt) : null))));
  tell(text);
}

export function warnings(report) {
  if (!report.replaced && !report.warnings.length) return null;
  return make("span", { class: "receipt" },
    report.replaced ? make("strong", { class: "loss" }, say("replaced", report.replaced)) : null,
    ...report.warnings.map((warning) => make("span", { class: "warning" }, warning)));
}

// The files of what was dropped, with those of folders.
async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry && item.webkitGetAsEntry()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return [[...transfer.files], false];
  const found = [];
  const walk = async (entry) => {
    if (entry.isFile) {
      const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
      found.push({ file, name: file.name, path: entry.fullPath.slice(1) });
      return;
    }
    const reader = entry.createReader();
    for (;;) {
      const part = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      if (!part.length) return;
      for (const each of part) await walk(each);
    }
  };
  for (const entry of entries) await walk(entry);
  return [found, true];
}

function preparePaste() {
  const dialog = $("paste");
  $("paste-text").onclick = () => {
    $("paste-problem").textContent = "";
    dialog.showModal();
    $("paste-name").focus();
  };
  $("paste-cancel").onclick = () => dialog.close();
  dialog.querySelector("form").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = $("paste-field").value;
    if (!text.trim()) {
      $("paste-problem").textContent = say("pasteEmpty");
      return $("paste-field").focus();
    }
    const first = text.trim().split("\n")[0].replace(/[\\/\p{C}]/gu, " ").trim();
    const name = $("paste-name").value.trim() || Array.from(first).slice(0, 40).join("");
    dialog.close();
    event.target.reset();
    return add([new File([text], /\.(md|txt)$/i.test(name) ? name : `${name}.txt`)]);
  });
}

export function prepareJobs(onChange, onFirst) {
  changed = onChange;
  createFirstBase = onFirst;
  for (const id of ["files", "folder"]) {
    $(id).addEventListener("change", (event) => {
      const files = [...event.target.files];
      event.target.value = "";
      add(files, { folder: id === "folder" });
    });
  }
  $("add-folder").onclick = () => $("folder").click();
  preparePaste();
  let depth = 0; // of nested elements under the dragged files
  const over = (event) => event.dataTransfer && [...event.dataTransfer.types].includes("Files");
  const curtain = (change) => {
    depth = Math.max(0, change === 0 ? 0 : depth + change);
    $("curtain").hidden = depth === 0 || !writable;
  };
  addEventListener("dragenter", (event) => over(event) && curtain(1));
  addEventListener("dragleave", (event) => over(event) && curtain(-1));
  addEventListener("dragover", (event) => over(event) && event.preventDefault());
  addEventListener("drop", async (event) => {
    if (!over(event)) return;
    event.preventDefault();
    curtain(0);
    const [files, folder] = await dropped(event.dataTransfer);
    add(files, { folder });
  });
}

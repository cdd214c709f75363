// The documents of a knowledge base: the list, how they were parsed, running jobs.

import { get, Problem, send, upload } from "./api.js";
import { $, make, sure, tell } from "./dom.js";
import { openSource } from "./source.js";
import { say } from "./messages.js";

const PAGE = 50; // documents that are shown at one time
const AWAY = [429, 502, 503, 504];
const RECENT = 86400; // seconds during which a reload shows a failed job again
const POLL_INTERVAL = 500; // ms between two requests for a job
let base = "";
let session = null;
let writable = false;
let shown = 0;
const panels = new Set(); // jobs that have a panel

const path = (more = "") => `/knowledge-bases/${encodeURIComponent(base)}/documents${more}`;

export async function useDocuments(name, limits, scopes) {
  base = name;
  session = limits;
  writable = scopes.includes("write");
  $("upload").hidden = !writable;
  $("jobs").replaceChildren();
  panels.clear();
  $("find").value = "";
  $("find").disabled = !base;
  if (!base) {
    $("list").replaceChildren();
    $("count").textContent = "";
    $("more").hidden = true;
    return;
  }
  await list();
  const { jobs } = await get(`/jobs?knowledge_base=${encodeURIComponent(base)}`);
  for (const job of jobs) {
    if (job.kind !== "ingest" || panels.has(job.id)) continue;
    if (job.finished === null) follow(job, panel());
    else if (job.files.some((file) => file.problem) && fresh(job)) conclude(job, panel());
  }
}

export async function list(more = false) {
  const current = base;
  const offset = more ? shown : 0;
  const q = $("find").value.trim();
  const { documents, total } = await get(path(`?${new URLSearchParams({ q, limit: PAGE, offset })}`));
  if (current !== base || q !== $("find").value.trim()) return; // a later request replaces this one
  if (!more) $("list").replaceChildren();
  $("list").append(...documents.map(row));
  shown = offset + documents.length;
  $("count").textContent = total ? String(total) : "";
  $("more").hidden = shown >= total;
  if (!total) {
    const word = q ? "nothingFound" : "noDocuments";
    $("list").append(make("li", { class: "soft" }, say(word)));
  }
}

function row(document) {
  const whole = { ...document, document: document.id, label: "", start: 0, end: 0 };
  return make("li", { class: "document" },
    make("button", {
      type: "button", class: "name", "aria-label": say("open", document.name),
      onclick: () => openSource(base, whole),
    }, document.name),
    writable ? make("button", {
      type: "button", class: "quiet delete", "aria-label": say("remove", document.name),
      onclick: () => remove(document),
    }, "×") : null,
    receipt(document.receipt, say("characters", document.length)));
}

// How the file was parsed, with losses highlighted.
function receipt(report, ...more) {
  const parts = [report.format, report.encoding, ...more].filter(Boolean);
  if (report.ocr_pages) parts.push(say("ocr", report.ocr_pages));
  return make("span", { class: "receipt" }, parts.join(" · "),
    report.replaced ? make("strong", { class: "loss" }, ` · ${say("replaced", report.replaced)}`) : null,
    ...report.warnings.map((warning) => make("span", { class: "warning" }, warning)));
}

async function remove(document) {
  if (!(await sure(say("surely", document.name)))) return;
  try {
    await send("DELETE", path(`/${document.id}`));
    tell(say("removed", document.name));
  } catch (error) {
    complain(error);
  }
  await list();
  $("find").focus();
}

// Jobs

function panel() {
  const node = make("section", { class: "job" });
  $("jobs").prepend(node);
  return node;
}

export async function add(files) {
  files = [...files];
  if (!files.length || !base || !writable) return;
  const node = panel();
  const limit = session.largest_upload;
  const large = files.find((file) => file.size > limit);
  const wrong = files.length > session.most_files
    ? say("tooMany", files.length, session.most_files)
    : large && say("tooLarge", large.name, limit / 1e6);
  if (wrong) {
    ended(node, wrong, true);
    return;
  }
  const line = make("p", {}, say("uploading", 0));
  const bar = make("progress", { max: 1, value: 0, "aria-label": say("upload") });
  node.append(line, bar);
  try {
    const job = await upload(base, files, (share) => {
      line.textContent = say("uploading", Math.floor(share * 100));
      bar.value = share;
    });
    await follow(job, node);
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    ended(node, error.message || say("brokenOff"), true);
  }
}

async function follow(job, node) {
  const current = base;
  panels.add(job.id);
  const line = make("p", {});
  const bar = make("progress", { "aria-label": say("documents") });
  const stop = make("button", {
    type: "button", class: "quiet", onclick: () => send("POST", `/jobs/${job.id}/cancel`).catch(complain),
  }, say("cancelJob"));
  node.replaceChildren(line, bar, writable ? stop : "");
  tell(say("queued"));
  let done = -1;
  for (;;) {
    line.textContent = job.state === "running"
      ? say("running", job.files_done, job.files_total, job.chunks) : say("queued");
    bar.max = Math.max(1, job.bytes_total);
    bar.value = job.bytes_done;
    if (job.files_done !== done && current === base) {
      done = job.files_done;
      await list();
    }
    if (job.finished !== null) break;
    await new Promise((resolve) => setTimeout(resolve, POLL_INTERVAL));
    if (current !== base) return;
    try {
      job = await get(`/jobs/${job.id}`);
    } catch (error) {
      // The server does not answer, perhaps behind a proxy: try again.
      if (error instanceof Problem && !AWAY.includes(error.status)) throw error;
    }
  }
  await list();
  conclude(job, node);
}

const dismissed = () => JSON.parse(localStorage.getItem("seen") || "[]"); // jobs that were dismissed

function fresh(job) {
  return Date.now() / 1000 - job.finished < RECENT && !dismissed().includes(job.id);
}

function conclude(job, node) {
  const text = job.state === "failed" ? say("failed", job.error)
    : job.state === "cancelled" ? say("cancelled") : say("done", job.files_total);
  ended(node, text, job.state === "failed", job.files, job.id);
}

function ended(node, text, wrong, files = [], id = "") {
  const dismiss = () => {
    node.remove();
    if (id) localStorage.setItem("seen", JSON.stringify([...dismissed(), id].slice(-200)));
  };
  const hide = make("button", { type: "button", class: "quiet", onclick: dismiss }, say("dismiss"));
  node.replaceChildren(
    make("div", { class: "row" }, make("p", { class: wrong ? "problem" : "" }, text),
      make("span", { class: "gap" }), hide),
    make("ul", {}, ...files.map((file) => make("li", { class: `file ${file.state}` },
      make("span", { class: "name" }, file.name),
      make("span", { class: "state" },
        say(file.state === "cancelled" ? "cancelledFile" : file.state)),
      file.problem ? make("span", { class: "problem" }, file.problem) : null,
      file.receipt ? receipt(file.receipt) : null))));
  tell(text);
}

function complain(error) {
  if (!(error instanceof Problem)) throw error;
  ended(panel(), error.message || say("brokenOff"), true);
}

export function prepareDocuments() {
  let waiting = 0;
  $("find").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => list().catch(complain), 200);
  });
  $("more").onclick = () => list(true).catch(complain);
  $("files").addEventListener("change", (event) => {
    add(event.target.files);
    event.target.value = "";
  });
  let depth = 0; // of nested elements under the dragged files
  const over = (event) => event.dataTransfer && [...event.dataTransfer.types].includes("Files");
  const curtain = (change) => {
    depth = Math.max(0, change === 0 ? 0 : depth + change);
    $("curtain").hidden = depth === 0 || !writable || !base;
  };
  window.addEventListener("dragenter", (event) => over(event) && curtain(1));
  window.addEventListener("dragleave", (event) => over(event) && curtain(-1));
  window.addEventListener("dragover", (event) => over(event) && event.preventDefault());
  window.addEventListener("drop", (event) => {
    if (!over(event)) return;
    event.preventDefault();
    curtain(0);
    add(event.dataTransfer.files);
  });
}

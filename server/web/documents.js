// The documents of a knowledge base: the list, how each was read, and what is done with several.

import { get, send } from "./api.js";
import { $, button, make, notice, reason, sure } from "./dom.js";
import { reading, reread, warnings } from "./jobs.js";
import { receipt, say, size, when } from "./messages.js";
import { openSource } from "./source.js";

const PAGE = 50; // documents that are shown at one time
let base = "";
let writable = false;
let shown = 0;
let total = 0;
const chosen = new Map(); // id -> document

const path = (more = "") => `/knowledge-bases/${encodeURIComponent(base)}/documents${more}`;

export const count = () => total;

export async function useDocuments(name, canWrite) {
  base = name;
  writable = canWrite;
  total = 0;
  $("upload").hidden = $("more-ways").hidden = !writable;
  $("find").value = "";
  $("find").disabled = $("sort").disabled = !base;
  chosen.clear();
  drawChosen();
  $("list").replaceChildren();
  $("count").textContent = "";
  $("more").hidden = true;
  if (base) await list();
}

// A failure is shown in the list, with a way to try again.
export async function list(more = false) {
  if (!base) return;
  const current = base;
  const offset = more ? shown : 0;
  const q = $("find").value.trim();
  const sort = $("sort").value;
  let found;
  try {
    found = await get(path(`?${new URLSearchParams({ q, sort, limit: PAGE, offset })}`));
  } catch (error) {
    const text = reason(error);
    if (current !== base) return;
    if (!more) $("list").replaceChildren();
    $("list").append(make("li", {}, make("p", { class: "problem", role: "alert" }, text),
      button(say("again"), (event) => { event.target.closest("li").remove(); list(more); })));
    return;
  }
  // A later request replaces this one.
  if (current !== base || q !== $("find").value.trim() || sort !== $("sort").value) return;
  const rows = found.documents.map(row);
  if (more) $("list").append(...rows);
  else $("list").replaceChildren(...rows);
  shown = offset + rows.length;
  if (!q) total = found.total;
  $("count").textContent = found.total ? String(found.total) : "";
  $("more").hidden = shown >= found.total;
  if (!found.total) {
    const word = q ? "nothingFound" : "noDocuments";
    $("list").append(make("li", { class: "soft" }, say(word)));
  }
}

function row(document) {
  const whole = { ...document, document: document.id, label: "", start: 0, end: 0 };
  const report = document.receipt;
  const busy = reading().some((job) => job.files.some((file) => file.name === document.name && file.state === "waiting"));
  const state = busy ? "stateReading" : report.replaced || report.warnings.length ? "stateLosses" : "stateRead";
  return make("li", { class: "document" },
    make("input", {
      type: "checkbox", class: "pick", "aria-label": say("choose", document.name), checked: chosen.has(document.id),
      onchange: (event) => {
        if (event.target.checked) chosen.set(document.id, document);
        else chosen.delete(document.id);
        drawChosen();
      },
    }),
    make("button", {
      type: "button", class: "name", "aria-label": say("open", document.name), title: document.name,
      onclick: () => openSource(base, whole),
    }, document.name),
    writable ? button("×", () => remove([document]), {
      class: "quiet delete", "aria-label": say("remove", document.name),
    }) : null,
    make("span", { class: "receipt" }, [
      document.added && when(document.added), document.size && size(document.size),
      say("characters", document.length.toLocaleString()), ...receipt(report), say(state),
    ].filter(Boolean).join(" · ")),
    warnings(report));
}

function drawChosen() {
  $("chosen").hidden = !chosen.size;
  $("chosen-count").textContent = say("chosenCount", chosen.size);
  $("chosen-reread").hidden = $("chosen-delete").hidden = !writable;
}

async function remove(documents) {
  const names = documents.length === 1 ? say("surely", documents[0].name) : say("surelyMany", documents.length);
  if (!(await sure(names))) return;
  let removed = 0;
  try {
    for (const document of documents) {
      await send("DELETE", path(`/${document.id}`));
      chosen.delete(document.id);
      removed += 1;
    }
    notice(documents.length === 1 ? say("removed", documents[0].name) : say("removedMany", removed));
  } catch (error) {
    notice(removed ? `${say("removedMany", removed)} ${reason(error)}` : reason(error), { problem: true });
  }
  drawChosen();
  await list();
  $("find").focus();
}

function chooseNone() {
  chosen.clear();
  drawChosen();
  list();
}

// `askOnly` gets the names of the documents that are to be asked.
export function prepareDocuments(askOnly) {
  let waiting = 0;
  $("find").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => list(), 200);
  });
  $("sort").addEventListener("change", () => list());
  $("more").onclick = () => list(true);
  $("chosen-delete").onclick = () => remove([...chosen.values()]);
  $("chosen-none").onclick = chooseNone;
  $("chosen-ask").onclick = () => {
    askOnly([...chosen.values()].map((each) => each.name));
    chooseNone();
  };
  $("chosen-reread").onclick = async () => {
    const elsewhere = [...chosen.values()].filter((each) => each.size === null);
    const own = [...chosen.values()].filter((each) => each.size !== null);
    try {
      if (own.length) await reread(own.map((each) => each.id));
      if (elsewhere.length) notice(say("notReread", elsewhere.length));
      chosen.clear();
      drawChosen();
      await list();
    } catch (error) {
      notice(reason(error), { problem: true });
    }
  };
}

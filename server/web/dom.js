// Creates elements. Text stays text: nothing on this page parses it as markup.

import { say } from "./messages.js";

export const $ = (id) => document.getElementById(id);

export function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "class") node.className = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

export function button(text, onclick, properties = {}) {
  return make("button", { type: "button", class: "quiet", onclick, ...properties }, text);
}

export function tell(text) {
  $("status").textContent = text;
}

// A message at the edge of the page, with one action at most. It stays until it is closed if it
// reports a problem, otherwise for a while.
export function notice(text, { action = "", run = null, problem = false } = {}) {
  const node = make("div", { class: problem ? "notice wrong" : "notice", role: problem ? "alert" : "status" },
    make("p", {}, text));
  const end = () => node.remove();
  if (run) node.append(button(action, () => { end(); run(); }));
  node.append(button("×", end, { "aria-label": say("close"), class: "quiet cross" }));
  for (const other of $("notices").children) if (other.textContent === node.textContent) other.remove();
  $("notices").append(node);
  if (!problem) setTimeout(end, 10_000);
}

// What a request's failure means to a reader. Anything else is a fault of the page.
export function reason(error) {
  if (error.status !== undefined) {
    const text = error.message || say("brokenOff");
    return error.after ? `${text} ${say("later", error.after)}` : text;
  }
  if (error instanceof TypeError && /fetch|network|load failed/i.test(error.message)) return say("brokenOff");
  throw error;
}

// The server counts code points, JavaScript counts UTF-16 units.
export function points(text) {
  return Array.from(text);
}

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Browsers allow the clipboard on secure addresses only; this older way works on all.
    const field = make("textarea", { class: "unseen", "aria-hidden": "true" });
    field.value = text;
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
  notice(say("copied"));
}

// Saves bytes under a name. The address is released when the browser has surely begun.
export function save(blob, name) {
  const address = URL.createObjectURL(blob);
  make("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

// Asks for confirmation and resolves to true or false. Escape means no.
export function sure(text) {
  const dialog = $("confirm");
  $("confirm-text").textContent = text;
  dialog.showModal();
  $("no").focus();
  return new Promise((resolve) => {
    const end = (answer) => () => {
      $("yes").onclick = $("no").onclick = dialog.onclose = null;
      if (dialog.open) dialog.close();
      resolve(answer);
    };
    $("yes").onclick = end(true);
    $("no").onclick = end(false);
    dialog.onclose = end(false);
  });
}

// A document's text as elements: tables as tables, Markdown rendered, a passage marked.

import { make, points } from "./dom.js";

const ROW = /^\|(?: .*)? ?\|$/;
const RULE = /^\|(?: :?-{3,}:? \|)+$/;
const SHORT = 12; // characters of a cell that stays on one line
const LETTERS = /[\p{L}\p{N}]/u;
const CLEAN = {
  RETURN_DOM_FRAGMENT: true, USE_PROFILES: { html: true },
  FORBID_TAGS: ["img", "picture", "video", "audio", "style", "form", "input", "button", "select", "textarea",
    "dialog", "iframe"],
  // Links of a document lead out of the page under a name that the document chooses.
  FORBID_ATTR: ["style", "id", "class", "name", "href", "src", "srcset", "title", "popover", "background"],
  ALLOW_DATA_ATTR: false, ALLOW_ARIA_ATTR: false,
};

// A text with its tables. `start` and `end` count characters of it; `header` is the first line of a
// table that began before it.
export function withTables(text, start, end, header) {
  const letters = points(text);
  const whole = header ? `${header}\n${header.replace(/[^|]+/g, " --- ")}\n${text}` : text;
  const [from, to] = [start, end].map((at) =>
    letters.slice(0, Math.max(0, at)).join("").length + whole.length - text.length);
  return fromText(whole, from, to);
}

// Lines of a table are together; all others are one text.
function fromText(text, from, to) {
  const parts = [];
  let at = 0;
  for (const line of text.split(/(?<=\n)/)) {
    const row = ROW.test(line.trimEnd());
    const last = parts.at(-1);
    if (last && last.row === row) last.text += line;
    else parts.push({ row, text: line, at });
    at += line.length;
  }
  return parts.map((part) => {
    const lines = part.text.trimEnd().split("\n");
    return part.row && lines.length > 1 && RULE.test(lines[1].trim())
      ? table(part, from, to) : make("div", { class: "text" }, ...marked(part.text, part.at, from, to));
  });
}

function table(part, from, to) {
  const rows = [];
  let at = part.at;
  for (const [index, line] of part.text.split("\n").entries()) {
    if (line.trim() && !(index === 1)) {
      const cells = [];
      let place = at + 1;
      for (const cell of line.trimEnd().slice(1, -1).split("|")) {
        cells.push(make(index ? "td" : "th", { scope: index ? null : "col", class: short(cell) },
          ...marked(cell.trim(), place + cell.length - cell.trimStart().length, from, to)));
        place += cell.length + 1;
      }
      rows.push(make("tr", {}, ...cells));
    }
    at += line.length + 1;
  }
  return make("div", { class: "wide", tabindex: "0" },
    make("table", {}, make("thead", {}, rows[0]), make("tbody", {}, ...rows.slice(1))));
}

// The class of cells that are not broken, such as codes with hyphens.
const short = (text) => (points(text.trim()).length <= SHORT ? "short" : null);

// The text, which begins at `at`, with what lies in [from, to) marked.
function marked(text, at, from, to) {
  const [a, b] = [from - at, to - at].map((each) => Math.min(text.length, Math.max(0, each)));
  if (a >= b) return [text];
  return [text.slice(0, a), make("mark", { tabindex: "-1" }, text.slice(a, b)), text.slice(b)];
}

// A Markdown file, rendered, with a passage of its text marked. The text has no notation any more,
// so the passage is found by its letters and digits, nearest to `share` of the whole. Returns the
// element, and whether the passage was found.
export async function fromMarkdown(text, passage, share) {
  const [{ Marked }] = await Promise.all([import("./vendor/marked.js"), import("./vendor/purify.js")]);
  const html = new Marked({ renderer: { html: () => "" } }).parse(text); // markup in the file is left out
  const node = make("div", { class: "prose" }, window.DOMPurify.sanitize(html, CLEAN));
  for (const cell of node.querySelectorAll("th, td")) cell.className = short(cell.textContent) || "";
  for (const wide of node.querySelectorAll("table")) {
    const box = make("div", { class: "wide", tabindex: "0" });
    wide.replaceWith(box);
    box.append(wide);
  }
  return [node, !passage || markLetters(node, passage, share)];
}

function markLetters(node, passage, share) {
  const wanted = points(passage).filter((letter) => LETTERS.test(letter)).join("");
  const places = [];
  let letters = "";
  const walker = document.createTreeWalker(node, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    let at = 0;
    for (const letter of walker.currentNode.data) {
      if (LETTERS.test(letter)) {
        letters += letter;
        for (let unit = 0; unit < letter.length; unit += 1) places.push([walker.currentNode, at + unit]);
      }
      at += letter.length;
    }
  }
  if (!wanted) return true;
  const near = share * letters.length;
  let best = -1;
  for (let at = letters.indexOf(wanted); at >= 0; at = letters.indexOf(wanted, at + 1)) {
    if (best < 0 || Math.abs(at - near) < Math.abs(best - near)) best = at;
  }
  if (best < 0) return false;
  const found = places.slice(best, best + wanted.length);
  const spans = new Map();
  for (const [text, at] of found) {
    const span = spans.get(text) || [at, at];
    spans.set(text, [span[0], at + 1]);
  }
  for (const [text, [first, last]] of spans) {
    const range = document.createRange();
    range.setStart(text, first);
    range.setEnd(text, last);
    range.surroundContents(make("mark", { tabindex: "-1" }));
  }
  return true;
}

// An answer on the page: its text with citation chips, its sources, and remarks for the reader.

import { $, copy, make, points } from "./dom.js";
import { placeName, say } from "./messages.js";
import { openSource } from "./source.js";

const MARK = /[[［【]\s*(\d{1,3}(?:\s*[,，、;；]\s*\d{1,3})*)\s*[\]］】](?!\()/g;
const NEAREST = 3; // passages that a refusal shows
const LONGEST_PREVIEW = 118; // characters of one of them
const LONG_PRESS = 500; // ms

export function showAnswer(base, answer, note = "") {
  if (answer.refused) return [refusal(base, answer, note), details(answer)];
  return [
    make("div", { class: "text answer" }, ...pieces(base, answer)),
    ...sources(base, answer),
    ...remarks(answer),
    details(answer),
  ];
}

// `note` says why a knowledge base can't answer yet.
function refusal(base, answer, note) {
  const nearest = answer.hits.slice(0, NEAREST);
  return make("div", { class: "refusal" },
    make("p", { class: "label answer" }, note || answer.answer),
    note && nearest.length ? make("h3", {}, say("searched")) : null,
    nearest.length ? make("ul", {}, ...nearest.map((hit) =>
      make("li", {}, make("button", {
        type: "button", class: "source", onclick: () => openSource(base, hit, nearest),
      }, placed(hit), make("span", { class: "quote" }, shortened(flat(hit.text))))))) : null);
}

function shortened(text) {
  const letters = points(text);
  return letters.length > LONGEST_PREVIEW ? `${letters.slice(0, LONGEST_PREVIEW).join("").trimEnd()}…` : text;
}

// Without empty lines, and rows of a table without their bars, for a line or two of preview.
function flat(text) {
  return text.trim().split(/\n\s*/).filter((line) => !/^\|(?: --- \|)+$/.test(line)).map((line) =>
    (/^\|.*\|$/.test(line) ? line.slice(1, -1).split("|").map((cell) => cell.trim()).filter(Boolean).join(" · ") : line))
    .join("\n");
}

// The text as nodes: citation marks become chips, unsupported sentences become flagged spans.
// Offsets of unsupported sentences count code points, so the text is split there first.
function* pieces(base, answer) {
  const letters = points(answer.answer);
  const next = new Map();
  let at = 0;
  if (answer.span) { // only an answer of quotes has one, and such an answer has no unsupported sentences
    at = answer.span.end;
    yield letters.slice(0, answer.span.start).join("");
    yield make("mark", {}, letters.slice(answer.span.start, at).join(""));
  }
  for (const { start, end } of answer.unsupported) {
    yield* chips(base, answer, letters.slice(at, start).join(""), next);
    const claim = letters.slice(start, end).join("");
    yield make("span", { class: "unsupported" }, ...chips(base, answer, claim, next),
      make("small", {}, ` ${say("unsupported")}`));
    at = end;
  }
  yield* chips(base, answer, letters.slice(at).join(""), next);
}

function* chips(base, answer, text, next) {
  let at = 0;
  for (const match of text.matchAll(MARK)) {
    yield text.slice(at, match.index);
    const made = [];
    for (const number of match[1].split(/\D+/).map(Number)) {
      const all = answer.citations.filter((citation) => citation.number === number);
      if (!all.length) continue;
      // A number that occurs twice may have two quotes, in the order of the marks.
      const index = Math.min(next.get(number) ?? 0, all.length - 1);
      next.set(number, index + 1);
      made.push(chip(base, all[index], answer.citations));
    }
    yield* made.length ? made : [match[0]];
    at = match.index + match[0].length;
  }
  yield text.slice(at);
}

// A citation's number. Its quote is previewed under the pointer, at the focus, and by a long press.
function chip(base, citation, all) {
  let timer = 0;
  let pressed = false;
  const node = make("button", {
    type: "button", class: "chip", "aria-label": say("openSource", citation.number, citation.name),
    onclick: () => {
      if (pressed) pressed = false; // this was the end of a long press
      else openSource(base, citation, all);
    },
    onmouseenter: () => preview(node, citation),
    onmouseleave: hidePreview,
    onfocus: () => node.matches(":focus-visible") && preview(node, citation),
    onblur: hidePreview,
    oncontextmenu: (event) => event.preventDefault(),
    onpointerdown: (event) => {
      pressed = false;
      if (event.pointerType !== "mouse") timer = setTimeout(() => { pressed = true; preview(node, citation); }, LONG_PRESS);
    },
    onpointerup: () => clearTimeout(timer),
    onpointercancel: () => clearTimeout(timer),
  }, String(citation.number));
  return node;
}

function preview(node, citation) {
  const box = $("preview");
  box.replaceChildren(placed(citation), make("span", { class: "quote" }, flat(citation.quote)));
  box.showPopover();
  const at = node.getBoundingClientRect();
  const left = Math.min(at.left, innerWidth - box.offsetWidth - 8);
  const below = at.bottom + 6 + box.offsetHeight < innerHeight;
  box.style.left = `${Math.max(8, left)}px`;
  box.style.top = `${below ? at.bottom + 6 : Math.max(8, at.top - box.offsetHeight - 6)}px`;
}

export function hidePreview() {
  if ($("preview").matches(":popover-open")) $("preview").hidePopover();
}

function sources(base, answer) {
  if (!answer.citations.length) return [];
  return [
    make("h3", {}, say("sources")),
    make("ol", { class: "sources" }, ...answer.citations.map((citation) =>
      make("li", {}, make("button", {
        type: "button", class: "source", onclick: () => openSource(base, citation, answer.citations),
      },
      make("span", { class: "number" }, String(citation.number)), placed(citation),
      make("span", { class: "quote" }, flat(citation.quote)))))),
  ];
}

export const whereOf = (place) => [place.name, placeName(place.label)].filter(Boolean).join(" · ");

function placed(place) {
  return make("span", { class: "place" }, whereOf(place));
}

function remarks(answer) {
  if (!answer.remarks.length) return [];
  return [make("ul", { class: "remarks" },
    ...answer.remarks.map((remark) => make("li", {}, remark)))];
}

// For an operator who is asked about this answer.
function details(answer) {
  return make("details", { class: "trace" }, make("summary", {}, say("details")),
    make("p", {}, say("confidence", Math.round(answer.confidence * 100)),
      answer.generator ? ` · ${answer.generator}` : ""),
    make("p", {}, make("code", {}, `rag trace ${answer.id}`), " ",
      make("button", { type: "button", class: "quiet small", onclick: () => copy(`rag trace ${answer.id}`) }, say("copy"))));
}

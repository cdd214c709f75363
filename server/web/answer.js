// An answer on the page: its text with citation chips, its sources, and remarks for the reader.

import { make, points } from "./dom.js";
import { openSource } from "./source.js";
import { say } from "./messages.js";

const MARK = /[[［【]\s*(\d{1,3}(?:\s*[,，、;；]\s*\d{1,3})*)\s*[\]］】](?!\()/g;

export function showAnswer(base, answer) {
  if (answer.refused) return [refusal(base, answer)];
  return [
    make("div", { class: "text" }, ...pieces(base, answer)),
    ...sources(base, answer),
    ...remarks(answer),
    trace(answer),
  ];
}

function refusal(base, answer) {
  return make("div", { class: "refusal" },
    make("p", { class: "label" }, say("notFound")),
    make("p", {}, answer.answer),
    answer.hits.length ? make("h3", {}, say("searched")) : null,
    make("ul", {}, ...answer.hits.map((hit) =>
      make("li", {}, make("button", {
        type: "button", class: "source", onclick: () => openSource(base, hit),
      }, placed(hit), make("span", { class: "quote" }, hit.text.trim().slice(0, 120)))))),
    trace(answer));
}

// The text as nodes: citation marks become chips, unsupported sentences become flagged spans.
// Offsets of unsupported sentences count code points, so the text is split there first.
function* pieces(base, answer) {
  const letters = points(answer.answer);
  const next = new Map();
  let at = 0;
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
      made.push(chip(base, all[index]));
    }
    yield* made.length ? made : [match[0]];
    at = match.index + match[0].length;
  }
  yield text.slice(at);
}

function chip(base, citation) {
  return make("button", {
    type: "button", class: "chip", title: citation.name,
    "aria-label": say("openSource", citation.number, citation.name),
    onclick: () => openSource(base, citation),
  }, String(citation.number));
}

function sources(base, answer) {
  if (!answer.citations.length) return [];
  return [
    make("h3", {}, say("sources")),
    make("ol", { class: "sources" }, ...answer.citations.map((citation) =>
      make("li", {}, make("button", {
        type: "button", class: "source", onclick: () => openSource(base, citation),
      },
      make("span", { class: "number" }, String(citation.number)), placed(citation),
      make("span", { class: "quote" }, citation.quote.trim()))))),
  ];
}

function placed(place) {
  return make("span", { class: "place" },
    [place.name, place.label].filter(Boolean).join(" · "));
}

function remarks(answer) {
  if (!answer.remarks.length) return [];
  return [make("ul", { class: "remarks" },
    ...answer.remarks.map((remark) => make("li", {}, remark)))];
}

function trace(answer) {
  return make("p", { class: "trace", title: say("trace", answer.id) }, answer.id);
}

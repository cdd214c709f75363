// The source of a quote: its page as a picture, if there is one, and the text around it.

import { get, picture, Problem } from "./api.js";
import { $, make, points } from "./dom.js";
import { say } from "./messages.js";

const AROUND = 600; // characters before and after a quote
const STEP = 3000; // characters that each further step shows
let shown = null;

// `place` has document, name, label, start, end, and a page if there is one.
export async function openSource(base, place) {
  const dialog = $("source");
  $("source-title").textContent = place.name;
  $("source-place").textContent = [place.title === place.name ? "" : place.title, place.label]
    .filter(Boolean).join(" · ");
  $("source-body").replaceChildren();
  shown = { base, place };
  if (!dialog.open) dialog.showModal();
  $("source-title").focus();
  try {
    await Promise.all([text(base, place), page(base, place)]);
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    $("source-body").append(make("p", { class: "problem", role: "alert" }, error.message));
  }
}

function path(base, document) {
  return `/knowledge-bases/${encodeURIComponent(base)}/documents/${document}`;
}

async function text(base, place) {
  const from = Math.max(0, place.start - AROUND);
  const to = (place.end ?? place.start) + AROUND;
  const part = await get(`${path(base, place.document)}/text?start=${from}&end=${to}`);
  const letters = points(part.text);
  const start = place.start - part.start;
  const end = (place.end ?? place.start) - part.start;
  const mark = make("mark", { tabindex: "-1" }, letters.slice(start, end).join(""));
  const body = make("div", { class: "text" }, letters.slice(0, start).join(""), mark,
    letters.slice(end).join(""));
  const before = make("button", { type: "button", class: "quiet" }, say("before"));
  const after = make("button", { type: "button", class: "quiet" }, say("after"));
  let [first, last] = [part.start, part.end];
  const update = () => {
    before.hidden = first <= 0;
    after.hidden = last >= part.length;
  };
  before.onclick = async () => {
    const wanted = Math.max(0, first - STEP);
    const more = await get(`${path(base, place.document)}/text?start=${wanted}&end=${first}`);
    body.prepend(more.text);
    first = wanted;
    update();
  };
  after.onclick = async () => {
    const more = await get(`${path(base, place.document)}/text?start=${last}&end=${last + STEP}`);
    body.append(more.text);
    last = more.end;
    update();
  };
  update();
  $("source-body").append(before, body, after);
  if (end > start) mark.scrollIntoView({ block: "center" });
}

async function page(base, place) {
  if (!place.page) return;
  try {
    const drawn = await picture(
      `${path(base, place.document)}/pages/${place.page}?start=${place.start}&end=${place.end}`);
    const alternative = say(drawn.marked ? "pageMarked" : "pagePlain", place.page);
    const image = make("img", { src: drawn.address, alt: alternative });
    image.onload = () => URL.revokeObjectURL(drawn.address);
    const caption = make("figcaption", { class: "soft" }, say("page", place.page));
    if (shown && shown.place === place) $("source-body").prepend(make("figure", {}, image, caption));
  } catch (error) {
    // Some pages can't be drawn; the text is shown anyway.
    if (!(error instanceof Problem) || error.status !== 404) throw error;
  }
}

export function prepareSource() {
  $("close-source").onclick = () => $("source").close();
  $("source").addEventListener("click", (event) => {
    if (event.target === $("source")) $("source").close(); // the backdrop
  });
}

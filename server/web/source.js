// The source of a quote, beside the answer on a desk and over it as a sheet on a phone: the page
// as a picture if there is one, the text around the quote, and a search through the whole text.

import { address, go, leaveSource, wholeLink } from "./address.js";
import { bytes, get, picture } from "./api.js";
import { $, button, copy, make, points, reason, save } from "./dom.js";
import { placeName, say } from "./messages.js";
import { fromMarkdown, withTables } from "./rendered.js";

const AROUND = 1200; // characters before and after a quote
const STEP = 4000; // characters that each further step shows
const WINDOW = 200_000; // characters of one response, the server's limit
const HEADER_WINDOWS = 5; // so far back the header of a table is looked for
const MOST_RENDERED = 1_000_000; // characters of a Markdown file; a larger one is shown as text
const ZOOMS = [1, 1.5, 2, 3];
const narrow = matchMedia("(max-width: 54rem)");
let shown = null; // { base, place, places, head, page, zoom, view, from, to }
let opener = null;

const path = (more = "") =>
  `/knowledge-bases/${encodeURIComponent(shown.base)}/documents/${shown.place.document}${more}`;
const body = () => $("source-body");

// `place` has document, start, end, and name, label and page if they are known; `places` are the
// citations of the same answer, in order.
export async function openSource(base, place, places = []) {
  if (!$("source").open) opener = document.activeElement;
  const mine = shown = { base, place, places, head: null, zoom: 0, page: place.page || 0 };
  $("source-title").textContent = $("source-title").title = place.name || "";
  drawPlace();
  body().replaceChildren(make("p", { class: "soft" }, say("loading")));
  $("source-tabs").hidden = true;
  $("source-find").value = "";
  open();
  go({ base, document: place.document, start: place.start, end: place.end, page: place.page },
    { push: !address().document });
  mine.ready = guarded(mine, async () => {
    mine.head = await get(path());
    if (shown !== mine) return;
    mine.place = { ...place, name: mine.head.name };
    $("source-title").textContent = $("source-title").title = mine.head.name;
    $("open-original").hidden = !mine.head.pages;
    drawPlace();
    const markdown = mine.head.receipt.format === "md" && mine.head.length < MOST_RENDERED;
    $("source-tabs").hidden = !mine.head.pages && !markdown;
    $("source-page").textContent = say(markdown ? "viewRendered" : "viewPage");
    if (mine.head.pages) mine.page = mine.page || 1;
    await view(mine.head.pages || markdown ? "page" : "text");
  });
  await mine.ready;
}

function open() {
  const dialog = $("source");
  if (!dialog.open) narrow.matches ? dialog.showModal() : dialog.show();
  document.body.classList.add("with-source");
  $("source-title").focus({ preventScroll: true });
}

// What the place line says, and the way to the citations before and after.
function drawPlace() {
  const { place, places } = shown;
  const title = place.title && !place.name.startsWith(place.title) ? place.title : "";
  $("source-place").textContent = [title, placeName(place.label)].filter(Boolean).join(" · ");
  const index = places.indexOf(places.find((each) => each === place
    || (each.document === place.document && each.start === place.start && each.end === place.end)));
  $("citations").hidden = places.length < 2 || index < 0;
  $("citation-number").textContent = say("ofAll", index + 1, places.length);
  for (const [id, step] of [["previous-citation", -1], ["next-citation", 1]]) {
    const other = places[index + step];
    $(id).disabled = !other;
    $(id).onclick = () => openSource(shown.base, other, places);
  }
}

// Runs one step; a failure is shown in the pane, unless another source is shown by then.
async function guarded(mine, step) {
  try {
    await step();
  } catch (error) {
    if (shown !== mine) return; // nobody waits for it any more
    const text = reason(error);
    body().replaceChildren(make("p", { class: "problem", role: "alert" }, text),
      button(say("again"), () => openSource(mine.base, mine.place, mine.places)));
  }
}

async function view(name) {
  shown.view = name;
  for (const each of ["page", "text"]) $(`source-${each}`).setAttribute("aria-pressed", String(each === name));
  if (name === "text") await drawText(shown.place.start, shown.place.end ?? shown.place.start);
  else await (shown.head.pages ? drawPage() : drawMarkdown());
}

// The page

async function drawPage() {
  const mine = shown;
  const { place } = mine;
  const number = mine.page;
  let drawn;
  try {
    drawn = await picture(path(`/pages/${number}?start=${place.start}&end=${place.end ?? place.start}`));
  } catch (error) {
    if (error.status !== 404) throw error;
    $("source-tabs").hidden = true; // its file is gone: the text is there
    return view("text");
  }
  if (shown !== mine || mine.view !== "page" || mine.page !== number) return;
  const image = make("img", { src: drawn.address, alt: say(drawn.top === null ? "pagePlain" : "pageMarked", number) });
  const figure = make("figure", { tabindex: "0", "aria-label": say("page", number) }, image);
  const turn = (step) => {
    mine.page += step;
    guarded(mine, drawPage);
  };
  const zoom = (step) => {
    mine.zoom = Math.min(ZOOMS.length - 1, Math.max(0, mine.zoom + step));
    image.style.width = `${ZOOMS[mine.zoom] * 100}%`;
    smaller.disabled = mine.zoom === 0;
    larger.disabled = mine.zoom === ZOOMS.length - 1;
    toMark();
  };
  const toMark = () => {
    if (drawn.top === null) body().scrollTop = 0;
    else body().scrollTop = Math.max(0, figure.offsetTop + drawn.top * image.clientHeight - body().clientHeight / 4);
  };
  const smaller = button("−", () => zoom(-1), { "aria-label": say("smaller") });
  const larger = button("+", () => zoom(1), { "aria-label": say("larger") });
  const before = button("‹", () => turn(-1), { "aria-label": say("pageBefore") });
  const after = button("›", () => turn(1), { "aria-label": say("pageAfter") });
  before.disabled = number <= 1;
  after.disabled = number >= drawn.pages;
  body().replaceChildren(figure);
  $("source-tools").replaceChildren(before, make("span", { class: "soft" }, say("pageOf", number, drawn.pages)), after,
    make("span", { class: "gap" }), smaller, larger);
  image.onload = () => {
    URL.revokeObjectURL(drawn.address);
    zoom(0);
  };
}

// A Markdown file as it is meant to look; its text if the file is gone or reads otherwise.
async function drawMarkdown() {
  const mine = shown;
  const { start, end } = mine.place;
  $("source-tools").replaceChildren();
  let file;
  try {
    file = await bytes(path("/file"));
  } catch (error) {
    if (error.status !== 404) throw error;
    $("source-tabs").hidden = true;
    return view("text");
  }
  const passage = end > start ? (await get(path(`/text?start=${start}&end=${end}`))).text : "";
  const text = new TextDecoder(decoder(mine.head.receipt.encoding)).decode(await file.arrayBuffer());
  const [node, found] = await fromMarkdown(text, passage, start / Math.max(1, mine.head.length));
  if (shown !== mine || mine.view !== "page") return undefined;
  if (!found) return view("text");
  body().replaceChildren(node);
  showMark();
  return undefined;
}

// A decoder of the browser for an encoding's name; the most likely one if it has none.
function decoder(name) {
  try {
    return new TextDecoder((name || "utf-8").replace(/-sig$/, "").replace(/_/g, "-")).encoding;
  } catch {
    return "utf-8";
  }
}

function showMark() {
  const mark = body().querySelector("mark");
  if (mark) mark.scrollIntoView({ block: "center" });
  else body().scrollTop = 0;
}

// The text

async function drawText(start, end) {
  const mine = shown;
  $("source-tools").replaceChildren();
  mine.from = Math.max(0, start - AROUND);
  mine.to = end + AROUND;
  await redraw(mine, start, end);
  showMark();
}

async function redraw(mine, start, end) {
  const part = await get(path(`/text?start=${mine.from}&end=${mine.to}`));
  const { text, from, to } = wholeLines(part, start, end);
  const header = await headerOf(text, from);
  const parts = withTables(text, start - from, end - from, header);
  if (shown !== mine || mine.view !== "text") return;
  const more = (word, change, hidden) => {
    const node = button(say(word), () => guarded(mine, async () => {
      const bottom = body().scrollHeight - body().scrollTop;
      change();
      await redraw(mine, start, end);
      if (word === "before") body().scrollTop = body().scrollHeight - bottom;
    }));
    node.hidden = hidden;
    return node;
  };
  body().replaceChildren(
    more("before", () => { mine.from = Math.max(0, from - STEP); }, from <= 0), ...parts,
    more("after", () => { mine.to = to + STEP; }, to >= part.length));
}

// Without the halves of lines at both ends, but with all of [start, end).
function wholeLines(part, start, end) {
  const letters = points(part.text);
  let [first, last] = [0, letters.length];
  if (part.start > 0) {
    const line = letters.indexOf("\n") + 1;
    if (line > 0 && part.start + line <= start) first = line;
  }
  if (part.end < part.length) {
    const line = letters.lastIndexOf("\n");
    if (line >= 0 && part.start + line >= end) last = line;
  }
  return { text: letters.slice(first, last).join(""), from: part.start + first, to: part.start + last };
}

// The first line of the table in whose middle the text begins; "" if it begins in none.
async function headerOf(text, from) {
  if (!from || !text.startsWith("|") || /^\|.*\n\|(?: --- \|)+(?:\n|$)/.test(text)) return "";
  let end = from;
  for (let step = 0; step < HEADER_WINDOWS && end > 0; step += 1) {
    const start = Math.max(0, end - WINDOW);
    const found = (await get(path(`/text?start=${start}&end=${Math.min(from, end + 2000)}`))).text;
    const lines = found.trimEnd().split("\n");
    for (let index = lines.length - 1; index > 0; index -= 1) {
      if (!lines[index].startsWith("|")) return "";
      if (/^\|(?: --- \|)+$/.test(lines[index])) return lines[index - 1];
    }
    end = start;
  }
  return "";
}

// Search through the whole text, from the last place found on.

async function find(words) {
  const mine = shown;
  await mine.ready;
  const sought = new RegExp(words.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&").replace(/\s+/g, "\\s+"), "iu");
  const first = mine.found === words ? mine.foundAt + 1 : 0;
  for (const [from, limit] of [[first, Infinity], [0, first]]) {
    for (let start = from; start < limit;) {
      const part = await get(path(`/text?start=${start}&end=${start + WINDOW}`));
      if (shown !== mine) return;
      const match = sought.exec(part.text);
      if (match) {
        const at = part.start + points(part.text.slice(0, match.index)).length;
        Object.assign(mine, { found: words, foundAt: at });
        mine.view = "text";
        for (const each of ["page", "text"]) $(`source-${each}`).setAttribute("aria-pressed", String(each === "text"));
        await drawText(at, at + points(match[0]).length);
        return;
      }
      if (part.end >= part.length) break;
      start = part.end - words.length;
    }
  }
  $("source-tools").replaceChildren(make("p", { class: "problem", role: "alert" }, say("notInDocument", words)));
}

// Closing

export function closeSource() {
  document.body.classList.remove("with-source");
  if (!$("source").open) return;
  shown = null;
  $("source").close();
  $("source-tools").replaceChildren();
  if (opener && opener.isConnected) opener.focus();
  opener = null;
}

// Shows what the address names, after the reader went back or forward, or followed a link.
export function followAddress(base) {
  const { document: id, start, end, page } = address();
  if (!id || !base) return closeSource();
  if (shown && shown.place.document === id && String(shown.place.start) === start) return undefined;
  return openSource(base, {
    document: id, start: Number(start) || 0, end: Number(end) || Number(start) || 0, page: Number(page) || null,
    name: "", label: "",
  });
}

export const refreshSource = () => shown && openSource(shown.base, shown.place, shown.places);

export function prepareSource() {
  const dialog = $("source");
  $("close-source").onclick = leave;
  dialog.addEventListener("cancel", (event) => {
    event.preventDefault();
    leave();
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog && narrow.matches) leave(); // the backdrop
  });
  document.addEventListener("keydown", (event) => {
    const other = document.querySelector("dialog:modal, :popover-open:not(#preview)");
    if (event.key === "Escape" && dialog.open && !narrow.matches && !other) leave();
  });
  narrow.addEventListener("change", () => {
    if (!dialog.open) return;
    dialog.close();
    open();
    if (shown && shown.view === "text") showMark();
  });
  $("source-page").onclick = () => guarded(shown, () => view("page"));
  $("source-text").onclick = () => guarded(shown, () => view("text"));
  $("link-source").onclick = () => copy(wholeLink({ conversation: null, answer: null }));
  $("find-in-source").addEventListener("submit", (event) => {
    event.preventDefault();
    const words = $("source-find").value.trim();
    if (words && shown) guarded(shown, () => find(words));
  });
  $("download").onclick = () => guarded(shown, async () => save(await bytes(path("/file")), shown.head.name));
  $("open-original").onclick = () => guarded(shown, async () => {
    // Only what the browser's own PDF viewer shows is opened; other files could hold scripts.
    const file = new Blob([await bytes(path("/file"))], { type: "application/pdf" });
    const place = URL.createObjectURL(file);
    window.open(`${place}${shown.page ? `#page=${shown.page}` : ""}`, "_blank", "noopener");
    setTimeout(() => URL.revokeObjectURL(place), 60_000);
  });
}

function leave() {
  const before = location.hash;
  leaveSource();
  if (location.hash !== before || !address().document) closeSource();
}

